//! Launches of `kernels/normalize.cu`.

use super::{NormalizeBackward, NormalizeForward, NormalizeOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

/// Threads of a block, a warp a row.
const THREADS: u32 = 128;

arguments! {
    struct NormalizeForwardArgs("normalize", "normalize_forward", 48) {
        /// [rows, width]
        x: In<'a, bf16>,
        /// [rows, width]
        y: Out<'a, bf16>,
        rows: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }

    struct NormalizeBackwardArgs("normalize", "normalize_backward", 64) {
        /// [rows, width]
        x: In<'a, bf16>,
        /// [rows, width]
        dy: In<'a, bf16>,
        /// [rows, width]
        dx: Out<'a, bf16>,
        rows: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }
}

fn grid(rows: u32) -> Grid {
    Grid { blocks: [rows.div_ceil(THREADS / 32), 1, 1], threads: THREADS, shared_bytes: 0 }
}

impl NormalizeOp for Cuda {
    fn normalize_forward(&self, NormalizeForward { x, y }: NormalizeForward<'_, Self>) -> Result<()> {
        assert_eq!(x.shape(), y.shape());
        let (rows, width) = (count(x.rows()), count(x.cols()));
        let (x, y) = (In::of(x), Out::of(y));
        let vector = vector_width(width, &[x.extent(), y.extent()]);
        self.launch(grid(rows), NormalizeForwardArgs { x, y, rows, width, vector, unused: 0 })
    }

    fn normalize_backward(&self, NormalizeBackward { x, dy, dx }: NormalizeBackward<'_, Self>) -> Result<()> {
        assert!(x.shape() == dy.shape() && x.shape() == dx.shape());
        let (rows, width) = (count(x.rows()), count(x.cols()));
        let (x, dy, dx) = (In::of(x), In::of(dy), Out::of(dx));
        let vector = vector_width(width, &[x.extent(), dy.extent(), dx.extent()]);
        self.launch(grid(rows), NormalizeBackwardArgs { x, dy, dx, rows, width, vector, unused: 0 })
    }
}
