//! A run's progress, for people.

use crate::Remarks;
use qformer::train::Report;
use std::time::Duration;

/// Tells of a step on the standard error: of the first, of every `every`-th, and of the last.
pub(super) fn tell(report: &Report, first: usize, every: usize, remarks: Remarks) {
    for fault in &report.unreadable {
        remarks.warning(format_args!("{fault}; left out"));
    }
    let (step, steps) = (report.record.step, report.steps);
    let is_shown = step == first || step == steps || step.is_multiple_of(every);
    if let (true, Remarks::Shown) = (is_shown, remarks) {
        crate::say(line(report));
    }
}

/// Tells how much memory the run takes, and what for.
pub(super) fn memory(purposes: &[(&str, usize)], remarks: Remarks) {
    let mib = |bytes: usize| format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20));
    let peak = purposes.iter().map(|(_, bytes)| bytes).sum();
    let parts: Vec<String> = purposes
        .iter()
        .filter(|(_, bytes)| *bytes > 0)
        .map(|(purpose, bytes)| format!("{purpose} {}", mib(*bytes)))
        .collect();
    remarks.note(format_args!("steps take {} of memory: {}", mib(peak), parts.join(", ")));
}

fn line(report: &Report) -> String {
    let (record, steps) = (&report.record, report.steps.to_string());
    let told = record.measured.iter().filter_map(|(measure, value)| Some((measure.short?, value)));
    let measured: String = told.map(|(name, value)| format!("  {name} {value:.3}")).collect();
    format!(
        "step {:>width$}/{steps}  loss {:.3}{measured}  lr {:.1e}  |g| {:.2}  {:.1} img/s  {} left",
        record.step,
        record.loss,
        record.lr,
        record.grad_norm,
        report.samples_per_second,
        time(report.left),
        width = steps.len(),
    )
}

/// A duration by its two largest units.
fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m{:02}s", seconds % 60),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{:02}h", hours % 24),
    }
}
