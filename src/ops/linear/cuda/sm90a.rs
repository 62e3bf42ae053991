//! Launches of `kernels/gemm_sm90a.cu`.

use super::accumulate::{Accumulate, rows_of_part};
use super::{FinishForward, FinishInput, Product};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, TensorMap, arguments};
use crate::error::Result;
use half::bf16;

/// m of a tile.
const ROWS: u32 = 128;
/// k of a stage of the ring, and columns of a box of an operand whose rows run along m or n.
const DEPTH: u32 = 64;

/// A tile of the results, with the names of the kernels that compute it.
#[derive(Debug, PartialEq)]
pub(super) struct Tile {
    /// n; m is 128.
    cols: u32,
    /// Stages of the ring.
    stages: u32,
    /// The kernels: forward, dx, dW.
    forward: &'static str,
    input: &'static str,
    weight: &'static str,
}

pub(super) const SQUARE: Tile = Tile {
    cols: 128,
    stages: 6,
    forward: "gemm_forward_sm90a_128",
    input: "gemm_input_sm90a_128",
    weight: "gemm_weight_sm90a_128",
};
pub(super) const WIDE: Tile = Tile {
    cols: 256,
    stages: 4,
    forward: "gemm_forward_sm90a_256",
    input: "gemm_input_sm90a_256",
    weight: "gemm_weight_sm90a_256",
};

impl Tile {
    /// The tile for m by n results: the wider one, which reads fewer bytes, unless places that it leaves empty
    /// in the last round of tiles cost more than a twentieth of the time. None if not even half of the
    /// multiprocessors would have a tile.
    pub(super) fn choose(m: u32, n: u32, multiprocessors: u32) -> Option<&'static Self> {
        // Rounds, in units of the square tile's time.
        let rounds = |tile: &Self| tile.tiles(m, n).div_ceil(multiprocessors) * (tile.cols / SQUARE.cols);
        if SQUARE.tiles(m, n) < multiprocessors / 2 {
            None
        } else if rounds(&WIDE) <= rounds(&SQUARE) + rounds(&SQUARE) / 20 {
            Some(&WIDE)
        } else {
            Some(&SQUARE)
        }
    }

    /// The tile for dW of m by n results summed over so many rows, and the rows of a part that a block sums over,
    /// if blocks that share them are enough for half of the multiprocessors and have one part each.
    pub(super) fn choose_parts(
        [m, n]: [u32; 2],
        rows: u32,
        multiprocessors: u32,
    ) -> Option<(&'static Self, u32)> {
        let parts_for = |tile: &'static Self| {
            let tiles = tile.tiles(m, n);
            let rows_of_part = rows_of_part([m, n], rows, multiprocessors / tiles);
            let blocks = tiles * rows.div_ceil(rows_of_part);
            (rows_of_part < rows && blocks >= multiprocessors / 2).then_some((tile, rows_of_part))
        };
        // What takes least time, and of equals what reads fewer bytes.
        [&WIDE, &SQUARE].into_iter().filter_map(parts_for).min_by_key(|(tile, rows)| tile.cols * rows)
    }

    fn tiles(&self, m: u32, n: u32) -> u32 {
        m.div_ceil(ROWS) * n.div_ceil(self.cols)
    }

    /// Blocks that stay, each for many tiles of m by n results, or of parts of them.
    fn grid(&self, gpu: &Cuda, m: u32, n: u32, parts: u32) -> Grid {
        const FLOAT: u32 = 4;
        const BF16: u32 = 2;
        // Ones, the ring, the warps' results [8, 16, 64], and two barriers a stage: twin of `Shared` in
        // kernels/gemm_sm90a.cu.
        let ring = self.stages * (ROWS + self.cols) * DEPTH * BF16;
        let shared_bytes = 1024 + ring + 8 * 16 * 64 * FLOAT + self.stages * 2 * 8;
        let blocks = (self.tiles(m, n) * parts).min(gpu.multiprocessors());
        Grid { blocks: [blocks, 1, 1], threads: 3 * 128, shared_bytes }
    }

    /// y from x and W.
    pub(super) fn forward(
        &self,
        gpu: &Cuda,
        x: In<'_, bf16>,
        weight: In<'_, bf16>,
        Product { rows, inputs, outputs, finish }: Product<FinishForward<'_>>,
    ) -> Result<()> {
        let x = TensorMap::new(x, [rows, inputs], ROWS)?;
        let weight = TensorMap::new(weight, [outputs, inputs], self.cols)?;
        let args = GemmForwardSm90aArgs { x, weight, finish, rows, outputs, inputs };
        gpu.launch_variant(self.forward, self.grid(gpu, rows, outputs, 1), args)
    }

    /// dx from dy and W.
    pub(super) fn input(
        &self,
        gpu: &Cuda,
        dy: In<'_, bf16>,
        weight: In<'_, bf16>,
        Product { rows, inputs, outputs, finish }: Product<FinishInput<'_>>,
    ) -> Result<()> {
        let dy = TensorMap::new(dy, [rows, outputs], ROWS)?;
        let weight = TensorMap::new(weight, [outputs, inputs], DEPTH)?;
        let args = GemmInputSm90aArgs { dy, weight, finish, rows, outputs, inputs };
        gpu.launch_variant(self.input, self.grid(gpu, rows, inputs, 1), args)
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
        let dy = TensorMap::new(dy, [rows, outputs], DEPTH)?;
        let x = TensorMap::new(x, [rows, inputs], DEPTH)?;
        let args = GemmWeightSm90aArgs { dy, x, finish, dbias, rows, outputs, inputs, rows_of_part };
        let grid = self.grid(gpu, outputs, inputs, rows.div_ceil(rows_of_part));
        gpu.launch_variant(self.weight, grid, args)
    }
}

arguments! {
    struct GemmForwardSm90aArgs("gemm_sm90a", "gemm_forward", 384) {
        /// [rows, in]
        x: TensorMap<'a>,
        /// [out, in]
        weight: TensorMap<'a>,
        finish: FinishForward<'a>,
        rows: u32,
        outputs: u32,
        inputs: u32,
    }

    struct GemmInputSm90aArgs("gemm_sm90a", "gemm_input", 384) {
        /// [rows, out]
        dy: TensorMap<'a>,
        /// [out, in]
        weight: TensorMap<'a>,
        finish: FinishInput<'a>,
        rows: u32,
        outputs: u32,
        inputs: u32,
    }

    struct GemmWeightSm90aArgs("gemm_sm90a", "gemm_weight", 320) {
        /// [rows, out]
        dy: TensorMap<'a>,
        /// [rows, in]
        x: TensorMap<'a>,
        finish: Accumulate<'a>,
        /// [1, out]
        dbias: Out<'a, f32>,
        rows: u32,
        outputs: u32,
        inputs: u32,
        rows_of_part: u32,
    }
}
