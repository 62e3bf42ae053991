//! Ctrl-C, SIGTERM, and SIGHUP, which a terminal sends when it is closed.

use crate::say;
use qformer::{Error, Result};
use std::process;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Exit code of a run that was stopped after it was saved: it can be started again.
pub(super) const STOPPED: u8 = 75;
/// Exit code of a run that was stopped at once.
const KILLED: i32 = 130;

/// Set by the first signal.
static ASKED: AtomicBool = AtomicBool::new(false);

/// From now on the first signal asks for an end, and the second ends the process.
pub(super) fn watch() -> Result<&'static AtomicBool> {
    let ignores_hang_up = ignores_hang_up();
    ctrlc::set_handler(|| {
        if ASKED.swap(true, Ordering::Relaxed) {
            process::exit(KILLED);
        }
        // On a thread of its own: where nobody reads what is written, it waits, and the second signal must not.
        let _ = thread::Builder::new()
            .spawn(|| say("stopping after this step, with a checkpoint; once more to stop at once"));
    })
    .map_err(|error| Error::device(format!("cannot watch for Ctrl-C: {error}")))?;
    if ignores_hang_up {
        ignore_hang_up();
    }
    Ok(&ASKED)
}

/// Whether SIGHUP was to be ignored when the process began, as it is by nohup. It is ignored from now on.
#[cfg(unix)]
fn ignores_hang_up() -> bool {
    ignore_hang_up() == libc::SIG_IGN
}

/// Ignores SIGHUP, and returns what became of it before.
#[cfg(unix)]
fn ignore_hang_up() -> libc::sighandler_t {
    // SAFETY: a signal's number, and no handler that could be called.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) }
}

#[cfg(not(unix))]
fn ignores_hang_up() -> bool {
    false
}

#[cfg(not(unix))]
fn ignore_hang_up() {}
