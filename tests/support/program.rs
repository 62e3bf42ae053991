//! The program, run as a user runs it.

use crate::paths::path;
use std::process::Command;

/// The program, with nothing of this process's settings, on the CPU unless it is told otherwise.
pub(crate) fn command() -> Command {
    let mut command = Command::new(path(env!("CARGO_BIN_EXE_qformer")));
    for name in ["MODEL", "THREADS", "BATCH_SIZE"] {
        command.env_remove(format!("QFORMER_{name}"));
    }
    command.env("QFORMER_DEVICE", "cpu");
    command
}
