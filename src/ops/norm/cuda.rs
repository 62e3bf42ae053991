//! Launches of `kernels/norm.cu`.

use super::{Norm, NormOp, PARTIAL_SUMS};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, assert_aligned, count};
use crate::error::Result;

const THREADS: u32 = 256;

arguments! {
    struct NormPartialSumsArgs("norm", "norm_partial_sums", 40) {
        /// [1, size], at a multiple of 16 bytes
        x: In<'a, f32>,
        /// [1, PARTIAL_SUMS]
        partial_sums: Out<'a, f32>,
        size: u32,
        unused: u32,
    }

    struct NormTotalArgs("norm", "norm_total", 32) {
        /// [1, PARTIAL_SUMS]
        partial_sums: In<'a, f32>,
        /// [1, 1]
        norm: Out<'a, f32>,
    }
}

impl NormOp for Cuda {
    fn norm(&self, args: Norm<'_, Self>) -> Result<()> {
        args.check();
        let Norm { x, mut partial_sums, norm } = args;
        let size = count(x.cols());
        let (x, sums) = (In::of(x), Out::of(partial_sums.reborrow()));
        assert_aligned(&[x.extent(), sums.extent()]);
        let grid = |blocks| Grid { blocks: [blocks, 1, 1], threads: THREADS, shared_bytes: 0 };
        self.launch(
            grid(count(PARTIAL_SUMS)),
            NormPartialSumsArgs { x, partial_sums: sums, size, unused: 0 },
        )?;
        let partial_sums = In::of(partial_sums.into_view());
        self.launch(grid(1), NormTotalArgs { partial_sums, norm: Out::of(norm) })
    }
}
