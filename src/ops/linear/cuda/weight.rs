//! The gradients of a weight and its bias: dW and db from dy and x.

use super::accumulate::{Accumulate, number};
use super::{Kernels, Product, mma, sm90a};
use crate::device::cuda::{Factor, Grid, In, LinearProduct, Out, Results, arguments, vector_width};
use crate::device::{Cuda, Write};
use crate::error::Result;
use half::bf16;

/// The kernels for dW, and the rows of a part that a block sums over: all, or fewer where there are few results.
#[derive(Debug, PartialEq)]
struct WeightKernels {
    kernels: Kernels,
    rows_of_part: u32,
}

impl WeightKernels {
    /// Those for m by n results summed over so many rows.
    fn choose(
        [m, n]: [u32; 2],
        rows: u32,
        aligned: bool,
        capability: (u32, u32),
        multiprocessors: u32,
    ) -> Self {
        let kernels = Kernels::choose(m, n, aligned, capability, multiprocessors);
        let whole = Self { kernels, rows_of_part: rows };
        if !aligned || matches!(whole.kernels, Kernels::Sm90a(_)) {
            return whole;
        }
        if capability == (9, 0)
            && let Some((tile, rows_of_part)) = sm90a::Tile::choose_parts([m, n], rows, multiprocessors)
        {
            return Self { kernels: Kernels::Sm90a(tile), rows_of_part };
        }
        match mma::Tile::choose_parts([m, n], rows, multiprocessors) {
            Some((tile, rows_of_part)) => Self { kernels: Kernels::Mma(tile), rows_of_part },
            None => whole,
        }
    }

    fn launch(
        &self,
        gpu: &Cuda,
        dy: In<'_, bf16>,
        x: In<'_, bf16>,
        dbias: Out<'_, f32>,
        product: Product<Accumulate<'_>>,
    ) -> Result<()> {
        match self.kernels {
            Kernels::Mma(tile) => tile.weight(gpu, dy, x, dbias, product, self.rows_of_part),
            Kernels::Sm90a(tile) => tile.weight(gpu, dy, x, dbias, product, self.rows_of_part),
        }
    }
}

/// What the gradients are of.
#[derive(Clone, Copy)]
pub(super) struct Layer<'a> {
    /// [rows, out]
    pub dy: In<'a, bf16>,
    /// [rows, in]
    pub x: In<'a, bf16>,
    pub rows: u32,
    pub inputs: u32,
    pub outputs: u32,
}

impl Layer<'_> {
    /// Adds dW [out, in], and db [1, out] where it is wanted.
    pub(super) fn add_gradients(&self, gpu: &Cuda, to: Results<'_, f32>) -> Result<()> {
        let Self { dy, x, rows, inputs, outputs } = *self;
        if vector_width(outputs, &[dy.extent()]) == 1 {
            return self.by_own_kernels(gpu, to);
        }
        let product = LinearProduct {
            m: outputs,
            n: inputs,
            k: rows,
            a: Factor::transposed(dy),
            b: Factor::plain(x),
            bias: In::optional(None),
            addend: to.y.before(),
            to: Out::optional(None),
            follows: 0,
        };
        let own = |to: Results<'_, f32>| self.by_own_kernels(gpu, to);
        gpu.multiply(&product, to, own, |to| self.add_row_sums(gpu, to.dbias))
    }

    fn by_own_kernels(&self, gpu: &Cuda, Results { y: dweight, dbias }: Results<'_, f32>) -> Result<()> {
        let Self { dy, x, rows, inputs, outputs } = *self;
        let finish = Accumulate::new(dweight, Write::Add);
        let aligned = vector_width(0, &[dy.extent(), x.extent()]) > 1;
        let (capability, multiprocessors) = (gpu.capability(), gpu.multiprocessors());
        let kernels = WeightKernels::choose([outputs, inputs], rows, aligned, capability, multiprocessors);
        let parts = rows.div_ceil(kernels.rows_of_part);
        if parts == 1 {
            return kernels.launch(gpu, dy, x, dbias, Product { rows, inputs, outputs, finish });
        }
        gpu.with_scratch(|scratch| {
            let (sums, parts_of_dw) = scratch.matrix((parts * outputs) as usize, inputs as usize);
            let (sums_of_db, parts_of_db) = scratch.matrix(1, (parts * outputs) as usize);
            let product = Product { rows, inputs, outputs, finish: Accumulate::new(sums, Write::Replace) };
            kernels.launch(gpu, dy, x, sums_of_db, product)?;
            // A thread four columns.
            let grid = Grid { blocks: [inputs.div_ceil(512), outputs, 1], threads: 128, shared_bytes: 0 };
            let args = GemmPartsArgs {
                finish,
                dbias,
                parts: parts_of_dw,
                parts_of_db,
                outputs,
                inputs,
                count: parts,
                unused: 0,
            };
            gpu.launch(grid, args)
        })
    }

    /// db alone, in two steps, of which the first has enough blocks for all multiprocessors.
    fn add_row_sums(&self, gpu: &Cuda, dbias: Out<'_, f32>) -> Result<()> {
        /// Columns of a block, and the fewest rows.
        const COLS: u32 = 64;
        const LEAST: u32 = 128;
        if dbias.address() == 0 {
            return Ok(());
        }
        let (count, cols) = (self.rows, self.outputs);
        let blocks = cols.div_ceil(COLS);
        let parts = (2 * gpu.multiprocessors() / blocks).clamp(1, count.div_ceil(LEAST));
        let rows_of_part = count.div_ceil(parts);
        let parts = count.div_ceil(rows_of_part);
        let grid = |parts| Grid { blocks: [blocks, parts, 1], threads: 256, shared_bytes: 0 };
        gpu.with_scratch(|scratch| {
            let (sums, rows) = scratch.matrix(parts as usize, cols as usize);
            let write = number(Write::Replace);
            gpu.launch(
                grid(parts),
                GemmRowSumsArgs { rows: self.dy, sums, count, cols, rows_of_part, write },
            )?;
            let (sums, count, write) = (dbias, parts, number(Write::Add));
            gpu.launch(grid(1), GemmRowSumsF32Args { rows, sums, count, cols, rows_of_part: count, write })
        })
    }
}

arguments! {
    struct GemmRowSumsArgs("gemm", "gemm_row_sums", 48) {
        /// [count, cols]
        rows: In<'a, bf16>,
        /// [parts, cols]
        sums: Out<'a, f32>,
        count: u32,
        cols: u32,
        rows_of_part: u32,
        write: u32,
    }

    struct GemmRowSumsF32Args("gemm", "gemm_row_sums_f32", 48) {
        /// [count, cols]
        rows: In<'a, f32>,
        /// [1, cols]
        sums: Out<'a, f32>,
        count: u32,
        cols: u32,
        rows_of_part: u32,
        write: u32,
    }

    struct GemmPartsArgs("gemm", "gemm_parts", 88) {
        finish: Accumulate<'a>,
        /// [1, out]
        dbias: Out<'a, f32>,
        /// [count·out, in]
        parts: In<'a, f32>,
        /// [1, count·out]
        parts_of_db: In<'a, f32>,
        outputs: u32,
        inputs: u32,
        count: u32,
        unused: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_the_rows_of_a_small_gradient_of_a_weight() {
        const H200: ((u32, u32), u32) = ((9, 0), 132);
        const A100: ((u32, u32), u32) = ((8, 0), 108);
        let choose = |size, rows, aligned, (capability, multiprocessors)| {
            let chosen = WeightKernels::choose(size, rows, aligned, capability, multiprocessors);
            (chosen.kernels, rows.div_ceil(chosen.rows_of_part))
        };
        // A layer of 768 by 768 and 256 images' queries: 18 wide tiles in 7 parts are one round of 126.
        assert_eq!(choose([768, 768], 32 * 256, true, H200), (Kernels::Sm90a(&sm90a::WIDE), 7));
        assert_eq!(choose([768, 768], 32 * 256, true, A100), (Kernels::Mma(&mma::LARGE), 6));
        // Few rows: two parts of 36 square tiles.
        assert_eq!(choose([768, 768], 1024, true, H200), (Kernels::Sm90a(&sm90a::SQUARE), 2));
        assert_eq!(choose([768, 768], 512, true, H200), (Kernels::Mma(&mma::MEDIUM), 1));
        // Enough tiles, or rows that do not start at multiples of 16 bytes.
        assert_eq!(choose([3072, 768], 32 * 256, true, H200).1, 1);
        assert_eq!(choose([768, 768], 32 * 256, false, H200), (Kernels::Mma(&mma::UNALIGNED), 1));
        // What tests/ops/gemm/gpu.rs has the parts added up of.
        assert_eq!(choose([6, 518], 1536, true, ((9, 0), 12)), (Kernels::Sm90a(&sm90a::SQUARE), 2));
        assert_eq!(choose([6, 518], 1536, true, ((8, 0), 12)), (Kernels::Mma(&mma::LARGE), 3));
    }
}
