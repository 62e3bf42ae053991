//! How the gradient of a weight is summed: in one go, or in parts that are added up.

use crate::device::cuda::{Out, count, vector_width};
use crate::device::{Cuda, Write};

/// How a product is added to `f32`, or a part of it put there: twin of `Accumulate` in kernels/gemm.cuh.
#[repr(C)]
pub(super) struct Accumulate<'a> {
    /// [m, n], or [parts·m, n]
    sum: Out<'a, f32>,
    vector: u32,
    write: u32,
}

impl<'a> Accumulate<'a> {
    pub(super) fn new(sum: Out<'a, f32>, write: Write) -> Self {
        let vector = vector_width(0, &[sum.extent()]);
        Self { sum, vector, write: number(write) }
    }
}

/// Twin of `Write` in kernels/common.cuh.
pub(super) fn number(write: Write) -> u32 {
    u32::from(write == Write::Add)
}

/// Rows of a part, if so many parts are wanted: whole stages of a ring, not so few that adding up the parts
/// would take as long as they do, and the parts, with those of db, not more than scratch memory holds.
pub(super) fn rows_of_part([m, n]: [u32; 2], rows: u32, wanted: u32) -> u32 {
    const STAGE: u32 = 64;
    const LEAST: u32 = 512;
    let room = Cuda::SCRATCH_WORDS / (m as usize * (n as usize + 8));
    let parts = wanted.min(rows / LEAST).min(count(room)).max(1);
    if parts == 1 { rows } else { rows.div_ceil(parts).next_multiple_of(STAGE) }
}
