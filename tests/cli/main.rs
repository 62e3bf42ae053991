//! The command line, run as a user runs it.

mod attention;
mod caption;
mod checkpoints;
mod common;
mod device;
mod embed;
mod encode;
mod errors;
mod evaluate;
mod gpu;
mod init;
mod inspect;
mod language;
mod names;
#[path = "../support/paths.rs"]
mod paths;
#[path = "../support/program.rs"]
mod program;
mod score;
#[path = "../support/simulated.rs"]
mod simulated;
mod streams;
