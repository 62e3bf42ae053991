//! Training from the command line: what is learnt, what is written, and what happens when it is
//! interrupted.

mod arguments;
#[path = "../support/bert.rs"]
mod bert;
mod common;
mod faults;
mod golden;
mod gpu;
mod mistakes;
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
