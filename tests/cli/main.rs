//! The command line, run as a user runs it.

mod checkpoints;
mod common;
mod embed;
mod errors;
mod init;
mod inspect;
mod score;
