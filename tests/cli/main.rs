//! The command line, run as a user runs it.

mod checkpoints;
mod common;
#[path = "../support/cuda.rs"]
mod cuda;
mod device;
mod embed;
mod errors;
mod init;
mod inspect;
mod score;
