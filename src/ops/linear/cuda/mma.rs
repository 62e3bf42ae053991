//! Launches of `kernels/gemm.cu`.

use super::accumulate::{Accumulate, rows_of_part};
use super::{FinishForward, FinishInput, Product};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments};
use crate::error::Result;
use half::bf16;

/// A block's work: twin of `Tile` in kernels/gemm.cu, with the names of its kernels.
#[derive(Debug, PartialEq)]
pub(super) struct Tile {
    /// m and n of the results.
    size: [u32; 2],
    threads: u32,
    shared_bytes: u32,
    /// The kernels: forward, dx, dW.
    forward: &'static str,
    input: &'static str,
    weight: &'static str,
}

pub(super) const LARGE: Tile = Tile {
    size: [128, 128],
    threads: 256,
    shared_bytes: (128 + 128) * 32 * 2 * 3,
    forward: "gemm_forward_large",
    input: "gemm_input_large",
    weight: "gemm_weight_large",
};
pub(super) const MEDIUM: Tile = Tile {
    size: [64, 64],
    threads: 128,
    shared_bytes: (64 + 64) * 64 * 2 * 3,
    forward: "gemm_forward_medium",
    input: "gemm_input_medium",
    weight: "gemm_weight_medium",
};
pub(super) const NARROW: Tile = Tile {
    size: [32, 32],
    threads: 128,
    shared_bytes: (32 + 32) * 128 * 2 * 4,
    forward: "gemm_forward_narrow",
    input: "gemm_input_narrow",
    weight: "gemm_weight_narrow",
};
pub(super) const SLIM: Tile = Tile {
    size: [32, 16],
    threads: 128,
    shared_bytes: (32 + 16) * 128 * 2 * 4,
    forward: "gemm_forward_slim",
    input: "gemm_input_slim",
    weight: "gemm_weight_slim",
};
/// For operands whose rows do not start at multiples of 16 bytes.
pub(super) const UNALIGNED: Tile = Tile {
    forward: "gemm_forward_unaligned",
    input: "gemm_input_unaligned",
    weight: "gemm_weight_unaligned",
    ..MEDIUM
};

impl Tile {
    /// The tile for m by n results. The largest has the most products for each byte that it reads; smaller
    /// ones are for grids that would leave multiprocessors idle.
    pub(super) fn choose(m: u32, n: u32, aligned: bool, multiprocessors: u32) -> &'static Self {
        if !aligned {
            &UNALIGNED
        } else if LARGE.tiles(m, n) >= multiprocessors {
            &LARGE
        } else if m > NARROW.size[0] && MEDIUM.tiles(m, n) >= multiprocessors / 2 {
            &MEDIUM
        } else if NARROW.tiles(m, n) >= multiprocessors / 2 {
            &NARROW
        } else {
            &SLIM
        }
    }

    /// The large tile for dW of m by n results summed over so many rows, and the rows of a part that a block sums
    /// over, if blocks that share them are enough for all multiprocessors.
    pub(super) fn choose_parts(
        [m, n]: [u32; 2],
        rows: u32,
        multiprocessors: u32,
    ) -> Option<(&'static Self, u32)> {
        /// Blocks that a multiprocessor has at a time.
        const BLOCKS: u32 = 2;
        let tiles = LARGE.tiles(m, n);
        let rows_of_part = rows_of_part([m, n], rows, BLOCKS * multiprocessors / tiles);
        let blocks = tiles * rows.div_ceil(rows_of_part);
        let pays = tiles < multiprocessors && rows_of_part < rows && blocks >= multiprocessors;
        pays.then_some((&LARGE, rows_of_part))
    }

    fn tiles(&self, m: u32, n: u32) -> u32 {
        m.div_ceil(self.size[0]) * n.div_ceil(self.size[1])
    }

    /// A block for each tile of m by n results.
    fn grid(&self, m: u32, n: u32) -> Grid {
        Grid { blocks: [self.tiles(m, n), 1, 1], threads: self.threads, shared_bytes: self.shared_bytes }
    }

    /// y from x and W.
    pub(super) fn forward(
        &self,
        gpu: &Cuda,
        x: In<'_, bf16>,
        weight: In<'_, bf16>,
        Product { rows, inputs, outputs, finish }: Product<FinishForward<'_>>,
    ) -> Result<()> {
        let args = GemmForwardArgs { x, weight, finish, rows, outputs, inputs, unused: 0 };
        gpu.launch_variant(self.forward, self.grid(rows, outputs), args)
    }

    /// dx from dy and W.
    pub(super) fn input(
        &self,
        gpu: &Cuda,
        dy: In<'_, bf16>,
        weight: In<'_, bf16>,
        Product { rows, inputs, outputs, finish }: Product<FinishInput<'_>>,
    ) -> Result<()> {
        let args = GemmInputArgs { dy, weight, finish, rows, outputs, inputs, unused: 0 };
        gpu.launch_variant(self.input, self.grid(rows, inputs), args)
    }

    /// dW and db from dy and x.
    pub(super) fn weight(
        &self,
        gpu: &Cuda,
        dy: In<'_, bf16>,
        x: In<'_, bf16>,
        dbias: Out<'_, f32>,
        Product { rows, inputs, outputs, finish }: Product<Accumulate<'_>>,
        rows_of_part: u32,
    ) -> Result<()> {
        let args = GemmWeightArgs { dy, x, finish, dbias, rows, outputs, inputs, rows_of_part };
        let mut grid = self.grid(outputs, inputs);
        grid.blocks[1] = rows.div_ceil(rows_of_part);
        gpu.launch_variant(self.weight, grid, args)
    }
}

arguments! {
    struct GemmForwardArgs("gemm", "gemm_forward", 120) {
        /// [rows, in]
        x: In<'a, bf16>,
        /// [out, in]
        weight: In<'a, bf16>,
        finish: FinishForward<'a>,
        rows: u32,
        outputs: u32,
        inputs: u32,
        unused: u32,
    }

    struct GemmInputArgs("gemm", "gemm_input", 104) {
        /// [rows, out]
        dy: In<'a, bf16>,
        /// [out, in]
        weight: In<'a, bf16>,
        finish: FinishInput<'a>,
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
        rows_of_part: u32,
    }
}
