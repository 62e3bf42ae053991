//! The program, run as a user runs it.

use crate::paths::path;
use std::process::{Child, Command, Output};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The program, with nothing of this process's settings, on the CPU unless it is told otherwise.
pub(crate) fn command() -> Command {
    let mut command = Command::new(path(env!("CARGO_BIN_EXE_qformer")));
    for name in ["MODEL", "THREADS", "BATCH_SIZE"] {
        command.env_remove(format!("QFORMER_{name}"));
    }
    command.env("QFORMER_DEVICE", "cpu");
    command
}

/// Waits for the end of a process that a fault might keep from ending.
#[track_caller]
pub(crate) fn end(mut child: Child) -> Output {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > Duration::from_secs(120) {
            child.kill().unwrap();
            panic!("it does not end: {:?}", child.wait_with_output().unwrap());
        }
        sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}
