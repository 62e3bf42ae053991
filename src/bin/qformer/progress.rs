//! Progress on the standard error, of work that takes longer than a second.

use crate::Remarks;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::{Duration, Instant};

/// Work shorter than this shows no progress.
const PATIENCE: Duration = Duration::from_secs(1);

/// How far some work has come; it is shown if the standard error is a terminal, and goes away with
/// this value.
pub(crate) struct Progress {
    bar: ProgressBar,
    remarks: Remarks,
    begun: Instant,
}

impl Progress {
    /// Progress of `what`, counted in images.
    pub(crate) fn of_images(what: &'static str, total: usize, remarks: Remarks) -> Self {
        Self::new(what, "{msg} {wide_bar} {pos}/{len} images, {eta} left", total, remarks)
    }

    /// Progress of `what`, counted in whatever it is that is done.
    pub(crate) fn of_steps(what: &'static str, remarks: Remarks) -> Self {
        Self::new(what, "{msg} {wide_bar} {pos}/{len}, {eta} left", 0, remarks)
    }

    /// Progress of `what`, counted in bytes.
    pub(crate) fn of_bytes(what: &'static str, remarks: Remarks) -> Self {
        Self::new(what, "{msg} {wide_bar} {bytes}/{total_bytes}, {eta} left", 0, remarks)
    }

    fn new(what: &'static str, template: &str, total: usize, remarks: Remarks) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total as u64), ProgressDrawTarget::hidden())
            .with_message(what)
            .with_style(ProgressStyle::with_template(template).expect("the templates above"));
        Self { bar, remarks, begun: Instant::now() }
    }

    /// `done` of `total` is done.
    pub(crate) fn set(&self, done: usize, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        let shown = matches!(self.remarks, Remarks::Shown);
        if shown && self.bar.is_hidden() && self.begun.elapsed() > PATIENCE {
            // Stays hidden if the standard error is no terminal.
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
