//! Ctrl-C and SIGTERM.

use qformer::{Error, Result};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};

/// Exit code of a run that was stopped after it was saved: it can be started again.
pub(super) const STOPPED: u8 = 75;
/// Exit code of a run that was stopped at once.
const KILLED: i32 = 130;

/// Set by the first signal.
static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first signal asks for an end, and the second ends the process.
pub(super) fn watch() -> Result<&'static AtomicBool> {
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            process::exit(KILLED);
        }
        eprintln!("stopping after this step, with a checkpoint; once more to stop at once");
    })
    .map_err(|error| Error::device(format!("cannot watch for Ctrl-C: {error}")))?;
    Ok(&ASKED)
}
