//! Launches of `kernels/activation.cu`.

use super::{Activation, ActivationBackward, ActivationForward, ActivationOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

const THREADS: u32 = 128;

impl Activation {
    /// Number in kernels/activation.cuh, where 0 is the identity.
    pub(crate) fn number(activation: Option<Self>) -> u32 {
        match activation {
            None => 0,
            Some(Activation::Gelu) => 1,
            Some(Activation::GeluTanh) => 2,
            Some(Activation::QuickGelu) => 3,
            Some(Activation::Relu) => 4,
        }
    }
}

arguments! {
    struct ActivationForwardArgs("activation", "activation_forward", 48) {
        /// [rows, cols]
        x: In<'a, bf16>,
        /// [rows, cols]
        y: Out<'a, bf16>,
        activation: u32,
        cols: u32,
        vector: u32,
        unused: u32,
    }

    struct ActivationBackwardArgs("activation", "activation_backward", 48) {
        /// [rows, cols]
        x: In<'a, bf16>,
        /// [rows, cols]
        dy: Out<'a, bf16>,
        activation: u32,
        cols: u32,
        vector: u32,
        unused: u32,
    }
}

/// A thread for `vector` columns of a row.
fn grid(rows: u32, cols: u32, vector: u32) -> Grid {
    Grid { blocks: [rows, cols.div_ceil(THREADS * vector), 1], threads: THREADS, shared_bytes: 0 }
}

impl Cuda {
    /// y = f(x), where y may be x itself
    pub(in crate::ops) fn activate(
        &self,
        activation: Activation,
        x: In<'_, bf16>,
        y: Out<'_, bf16>,
        [rows, cols]: [u32; 2],
    ) -> Result<()> {
        let vector = vector_width(cols, &[x.extent(), y.extent()]);
        let activation = Activation::number(Some(activation));
        let args = ActivationForwardArgs { x, y, activation, cols, vector, unused: 0 };
        self.launch(grid(rows, cols, vector), args)
    }

    /// dx = dy·f'(x), in place
    pub(in crate::ops) fn differentiate(
        &self,
        activation: Activation,
        x: In<'_, bf16>,
        dy: Out<'_, bf16>,
        [rows, cols]: [u32; 2],
    ) -> Result<()> {
        let vector = vector_width(cols, &[x.extent(), dy.extent()]);
        let activation = Activation::number(Some(activation));
        let args = ActivationBackwardArgs { x, dy, activation, cols, vector, unused: 0 };
        self.launch(grid(rows, cols, vector), args)
    }
}

impl ActivationOp for Cuda {
    fn activation_forward(&self, args: ActivationForward<'_, Self>) -> Result<()> {
        let ActivationForward { activation, x, y } = args;
        assert_eq!(x.shape(), y.shape());
        let shape = [count(x.rows()), count(x.cols())];
        self.activate(activation, In::of(x), Out::of(y), shape)
    }

    fn activation_backward(&self, args: ActivationBackward<'_, Self>) -> Result<()> {
        let ActivationBackward { activation, x, dy } = args;
        assert_eq!(x.shape(), dy.shape());
        let shape = [count(x.rows()), count(x.cols())];
        self.differentiate(activation, In::of(x), Out::of(dy), shape)
    }
}
