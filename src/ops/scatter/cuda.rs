//! Launches of `kernels/scatter.cu`.

use super::{Scatter, ScatterOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

const THREADS: u32 = 128;

arguments! {
    struct ScatterArgs("scatter", "scatter", 56) {
        /// [1, count]
        ids: In<'a, u32>,
        /// [count, width]
        x: In<'a, bf16>,
        /// [rows, width]
        y: Out<'a, bf16>,
        width: u32,
        vector: u32,
    }
}

impl ScatterOp for Cuda {
    fn scatter(&self, Scatter { ids, x, y }: Scatter<'_, Self>) -> Result<()> {
        assert_eq!((x.rows(), x.cols()), (ids.cols(), y.cols()), "x [count, width]");
        let (rows, width) = (count(x.rows()), count(x.cols()));
        let (x, y) = (In::of(x), Out::of(y));
        let vector = vector_width(width, &[x.extent(), y.extent()]);
        // A thread for `vector` columns of a row.
        let blocks = [rows, width.div_ceil(THREADS * vector), 1];
        self.launch(
            Grid { blocks, threads: THREADS, shared_bytes: 0 },
            ScatterArgs { ids: In::of(ids), x, y, width, vector },
        )
    }
}
