//! Launches of `kernels/pool.cu`.

use super::{PoolBackward, PoolForward, PoolOp, group_size};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

const THREADS: u32 = 128;

arguments! {
    struct PoolForwardArgs("pool", "pool_forward", 48) {
        /// [groups·size, width]
        x: In<'a, bf16>,
        /// [groups, width]
        y: Out<'a, bf16>,
        size: u32,
        width: u32,
        vector: u32,
    }

    struct PoolBackwardArgs("pool", "pool_backward", 48) {
        /// [groups, width]
        dy: In<'a, bf16>,
        /// [groups·size, width]
        dx: Out<'a, bf16>,
        size: u32,
        width: u32,
        vector: u32,
    }
}

/// A thread for `vector` columns of a group.
fn grid(groups: u32, width: u32, vector: u32) -> Grid {
    Grid { blocks: [groups, width.div_ceil(THREADS * vector), 1], threads: THREADS, shared_bytes: 0 }
}

impl PoolOp for Cuda {
    fn pool_forward(&self, args: PoolForward<'_, Self>) -> Result<()> {
        let PoolForward { x, y } = args;
        assert_eq!(x.cols(), y.cols(), "x [groups·size, width] against y [groups, width]");
        let size = count(group_size(x.rows(), y.rows()));
        let (groups, width) = (count(y.rows()), count(y.cols()));
        let (x, y) = (In::of(x), Out::of(y));
        let vector = vector_width(width, &[x.extent(), y.extent()]);
        self.launch(grid(groups, width, vector), PoolForwardArgs { x, y, size, width, vector })
    }

    fn pool_backward(&self, args: PoolBackward<'_, Self>) -> Result<()> {
        let PoolBackward { dy, dx } = args;
        assert_eq!(dx.cols(), dy.cols(), "dx [groups·size, width] against dy [groups, width]");
        let size = count(group_size(dx.rows(), dy.rows()));
        let (groups, width) = (count(dy.rows()), count(dy.cols()));
        let (dy, dx) = (In::of(dy), Out::of(dx));
        let vector = vector_width(width, &[dy.extent(), dx.extent()]);
        self.launch(grid(groups, width, vector), PoolBackwardArgs { dy, dx, size, width, vector })
    }
}
