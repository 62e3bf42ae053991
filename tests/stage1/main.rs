//! Training of stage 1: against what LAVIS computes (tests/golden/stage1), against finite differences,
//! and against itself where one result is to be had in several ways.

mod common;
#[path = "../support/cuda.rs"]
mod cuda;
mod differences;
mod lavis;
mod memory;
mod micro_batches;
#[path = "../support/paths.rs"]
mod paths;
