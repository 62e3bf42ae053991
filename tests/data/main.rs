//! Data sets: formats, bad input, and batches.

mod common;
mod faults;
mod formats;
mod loader;
