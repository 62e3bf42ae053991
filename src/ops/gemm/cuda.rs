//! Launches of `kernels/gemm.cu`.

use super::{GemmBackward, GemmForward, GemmOp};
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::device::{Cuda, M, Write};
use crate::error::Result;
use crate::ops::activation::Activation;
use half::bf16;

/// A block's work: twin of `Tile` in kernels/gemm.cu, with the names of its kernels.
#[derive(Debug, PartialEq)]
struct Tile {
    /// m and n of the results.
    size: [u32; 2],
    threads: u32,
    shared_bytes: u32,
    /// The kernels: forward, dx, dW.
    forward: &'static str,
    input: &'static str,
    weight: &'static str,
}

const LARGE: Tile = Tile {
    size: [128, 128],
    threads: 256,
    shared_bytes: (128 + 128) * 32 * 2 * 3,
    forward: "gemm_forward_large",
    input: "gemm_input_large",
    weight: "gemm_weight_large",
};
const MEDIUM: Tile = Tile {
    size: [64, 64],
    threads: 128,
    shared_bytes: (64 + 64) * 64 * 2 * 3,
    forward: "gemm_forward_medium",
    input: "gemm_input_medium",
    weight: "gemm_weight_medium",
};
const NARROW: Tile = Tile {
    size: [32, 32],
    threads: 128,
    shared_bytes: (32 + 32) * 128 * 2 * 4,
    forward: "gemm_forward_narrow",
    input: "gemm_input_narrow",
    weight: "gemm_weight_narrow",
};
/// For operands whose rows do not start at multiples of 16 bytes.
const UNALIGNED: Tile = Tile {
    forward: "gemm_forward_unaligned",
    input: "gemm_input_unaligned",
    weight: "gemm_weight_unaligned",
    ..MEDIUM
};

impl Tile {
    /// The tile for m by n results. The largest has the most products for each byte that it reads; smaller
    /// ones are for grids that would leave multiprocessors idle.
    fn choose(m: u32, n: u32, aligned: bool, multiprocessors: u32) -> &'static Self {
        if !aligned {
            &UNALIGNED
        } else if LARGE.tiles(m, n) >= multiprocessors {
            &LARGE
        } else if m > NARROW.size[0] && MEDIUM.tiles(m, n) >= multiprocessors / 2 {
            &MEDIUM
        } else {
            &NARROW
        }
    }

    fn tiles(&self, m: u32, n: u32) -> u32 {
        m.div_ceil(self.size[0]) * n.div_ceil(self.size[1])
    }

    /// A block for each tile of m by n results.
    fn grid(&self, m: u32, n: u32) -> Grid {
        Grid { blocks: [self.tiles(m, n), 1, 1], threads: self.threads, shared_bytes: self.shared_bytes }
    }
}

/// What is done to a product that is stored as bf16: twin of `Finish` in kernels/gemm.cuh.
#[repr(C)]
struct Finish<'a> {
    /// [1, n]
    bias: In<'a, bf16>,
    /// [m, n]
    residual: In<'a, bf16>,
    /// [m, n]
    pre_activation: Out<'a, bf16>,
    /// [m, n]
    y: Out<'a, bf16>,
    activation: u32,
    vector: u32,
}

/// How a product is added to `f32`: twin of `Accumulate` in kernels/gemm.cuh.
#[repr(C)]
struct Accumulate<'a> {
    /// [m, n]
    sum: Out<'a, f32>,
    vector: u32,
    unused: u32,
}

arguments! {
    struct GemmForwardArgs("gemm", "gemm_forward", 120) {
        /// [rows, in]
        x: In<'a, bf16>,
        /// [out, in]
        weight: In<'a, bf16>,
        finish: Finish<'a>,
        rows: u32,
        outputs: u32,
        inputs: u32,
        unused: u32,
    }

    struct GemmInputArgs("gemm", "gemm_input", 120) {
        /// [rows, out]
        dy: In<'a, bf16>,
        /// [out, in]
        weight: In<'a, bf16>,
        finish: Finish<'a>,
        rows: u32,
        outputs: u32,
        inputs: u32,
        unused: u32,
    }

    struct GemmWeightArgs("gemm", "gemm_weight", 88) {
        /// [rows, out]
        dy: In<'a, bf16>,
        /// [rows, in]
        x: In<'a, bf16>,
        finish: Accumulate<'a>,
        /// [1, out]
        dbias: Out<'a, f32>,
        rows: u32,
        outputs: u32,
        inputs: u32,
        unused: u32,
    }
}

/// Whether rows of these operands start at multiples of 16 bytes; how long they are is of no account.
fn aligned(operands: [In<'_, bf16>; 2]) -> bool {
    vector_width(0, &operands.map(|operand| operand.extent())) > 1
}

impl<'a> Finish<'a> {
    fn new(
        bias: In<'a, bf16>,
        activation: Option<Activation>,
        residual: In<'a, bf16>,
        pre_activation: Out<'a, bf16>,
        y: Out<'a, bf16>,
    ) -> Self {
        let vector =
            vector_width(0, &[bias.extent(), residual.extent(), pre_activation.extent(), y.extent()]);
        Self { bias, residual, pre_activation, y, activation: Activation::number(activation), vector }
    }

    /// The product alone, in place of what is there or added to it.
    fn plain(write: Write, y: M<'a, Cuda>) -> Self {
        let y = Out::of(y);
        let residual = match write {
            Write::Replace => In::optional(None),
            Write::Add => y.before(),
        };
        Self::new(In::optional(None), None, residual, Out::optional(None), y)
    }
}

impl GemmOp for Cuda {
    fn gemm_forward(&self, args: GemmForward<'_, Self>) -> Result<()> {
        args.check();
        let GemmForward { x, weight, bias, activation, residual, pre_activation, y } = args;
        let (rows, inputs, outputs) = (count(x.rows()), count(x.cols()), count(weight.rows()));
        let (x, weight) = (In::of(x), In::of(weight));
        let tile = Tile::choose(rows, outputs, aligned([x, weight]), self.multiprocessors());
        let finish = Finish::new(
            In::optional(bias),
            activation,
            In::optional(residual),
            Out::optional(pre_activation),
            Out::of(y),
        );
        let args = GemmForwardArgs { x, weight, finish, rows, outputs, inputs, unused: 0 };
        self.launch_variant(tile.forward, tile.grid(rows, outputs), args)
    }

    fn gemm_backward(&self, args: GemmBackward<'_, Self>) -> Result<()> {
        args.check();
        let GemmBackward { x, weight, dy, dx, dweight, dbias } = args;
        let (rows, inputs, outputs) = (count(x.rows()), count(x.cols()), count(weight.rows()));
        let (x, weight, dy) = (In::of(x), In::of(weight), In::of(dy));
        if let Some((write, dx)) = dx {
            let tile = Tile::choose(rows, inputs, aligned([dy, weight]), self.multiprocessors());
            let finish = Finish::plain(write, dx);
            let args = GemmInputArgs { dy, weight, finish, rows, outputs, inputs, unused: 0 };
            self.launch_variant(tile.input, tile.grid(rows, inputs), args)?;
        }
        let tile = Tile::choose(outputs, inputs, aligned([dy, x]), self.multiprocessors());
        let sum = Out::of(dweight);
        let vector = vector_width(0, &[sum.extent()]);
        let finish = Accumulate { sum, vector, unused: 0 };
        let dbias = Out::optional(dbias);
        let args = GemmWeightArgs { dy, x, finish, dbias, rows, outputs, inputs, unused: 0 };
        self.launch_variant(tile.weight, tile.grid(outputs, inputs), args)
    }
}
