//! Training from the command line: what is learnt, what is written, and what happens when it is
//! interrupted.

mod arguments;
#[path = "../support/bert.rs"]
mod bert;
mod common;
#[cfg(target_os = "linux")]
mod crash;
mod faults;
mod features;
mod folders;
mod golden;
mod gpu;
mod hostile;
mod mistakes;
mod objective;
#[path = "../support/paths.rs"]
mod paths;
mod pictures;
#[path = "../support/program.rs"]
mod program;
mod resume;
mod settings;
mod signals;
#[path = "../support/simulated.rs"]
mod simulated;
