//! Launches of `kernels/gate.cu`.

use super::{GateBackward, GateForward, GateOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use crate::ops::activation::Activation;
use half::bf16;

const THREADS: u32 = 128;

arguments! {
    struct GateForwardArgs("gate", "gate_forward", 48) {
        /// [rows, 2·width]
        x: In<'a, bf16>,
        /// [rows, width]
        y: Out<'a, bf16>,
        activation: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }

    struct GateBackwardArgs("gate", "gate_backward", 64) {
        /// [rows, 2·width]
        x: In<'a, bf16>,
        /// [rows, width]
        dy: In<'a, bf16>,
        /// [rows, 2·width]
        dx: Out<'a, bf16>,
        activation: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }
}

/// A thread for `vector` columns of a row of y.
fn grid(rows: u32, width: u32, vector: u32) -> Grid {
    Grid { blocks: [rows, width.div_ceil(THREADS * vector), 1], threads: THREADS, shared_bytes: 0 }
}

impl GateOp for Cuda {
    fn gate_forward(&self, args: GateForward<'_, Self>) -> Result<()> {
        args.check();
        let GateForward { activation, x, y } = args;
        let (rows, width) = (count(y.rows()), count(y.cols()));
        let (x, y) = (In::of(x), Out::of(y));
        let vector = vector_width(width, &[x.extent(), y.extent()]);
        let activation = Activation::number(Some(activation));
        let args = GateForwardArgs { x, y, activation, width, vector, unused: 0 };
        self.launch(grid(rows, width, vector), args)
    }

    fn gate_backward(&self, args: GateBackward<'_, Self>) -> Result<()> {
        args.check();
        let GateBackward { activation, x, dy, dx } = args;
        let (rows, width) = (count(dy.rows()), count(dy.cols()));
        let (x, dy, dx) = (In::of(x), In::of(dy), Out::of(dx));
        let vector = vector_width(width, &[x.extent(), dy.extent(), dx.extent()]);
        let activation = Activation::number(Some(activation));
        let args = GateBackwardArgs { x, dy, dx, activation, width, vector, unused: 0 };
        self.launch(grid(rows, width, vector), args)
    }
}
