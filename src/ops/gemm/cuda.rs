//! Launches of `kernels/gemm.cu`, for every GPU, and of `kernels/gemm_sm90a.cu`, for Hopper; products without an
//! activation may go to cuBLASLt instead.

mod mma;
mod sm90a;

use super::{GemmBackward, GemmForward, GemmOp};
use crate::device::cuda::{Grid, In, LinearProduct, Out, Storage, arguments, count, vector_width};
use crate::device::{Cuda, Write};
use crate::error::Result;
use crate::ops::activation::Activation;
use half::bf16;

/// The kernels that compute a product.
#[derive(Debug, PartialEq)]
enum Kernels {
    Mma(&'static mma::Tile),
    Sm90a(&'static sm90a::Tile),
}

impl Kernels {
    /// Those for m by n results on a GPU; `aligned`: whether rows of the operands start at multiples of 16
    /// bytes.
    fn choose(m: u32, n: u32, aligned: bool, capability: (u32, u32), multiprocessors: u32) -> Self {
        let hopper = capability == (9, 0) && aligned;
        match sm90a::Tile::choose(m, n, multiprocessors).filter(|_| hopper) {
            Some(tile) => Self::Sm90a(tile),
            None => Self::Mma(mma::Tile::choose(m, n, aligned, multiprocessors)),
        }
    }

    fn for_operands(m: u32, n: u32, operands: [In<'_, bf16>; 2], gpu: &Cuda) -> Self {
        // How long the rows are is of no account: what is beyond them is not read.
        let aligned = vector_width(0, &operands.map(|operand| operand.extent())) > 1;
        Self::choose(m, n, aligned, gpu.capability(), gpu.multiprocessors())
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

/// How a product is added to `f32`, or a part of it put there: twin of `Accumulate` in kernels/gemm.cuh.
#[repr(C)]
struct Accumulate<'a> {
    /// [m, n], or [parts·m, n]
    sum: Out<'a, f32>,
    vector: u32,
    write: u32,
}

impl<'a> Accumulate<'a> {
    fn new(sum: Out<'a, f32>, write: Write) -> Self {
        let vector = vector_width(0, &[sum.extent()]);
        Self { sum, vector, write: u32::from(write == Write::Add) }
    }
}

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

/// Rows of a part, if so many parts are wanted: whole stages of a ring, not so few that adding up the parts
/// would take as long as they do, and the parts, with those of db, not more than scratch memory holds.
fn rows_of_part([m, n]: [u32; 2], rows: u32, wanted: u32) -> u32 {
    const STAGE: u32 = 64;
    const LEAST: u32 = 512;
    let room = Cuda::SCRATCH_WORDS / (m as usize * (n as usize + 8));
    let parts = wanted.min(rows / LEAST).min(count(room)).max(1);
    if parts == 1 { rows } else { rows.div_ceil(parts).next_multiple_of(STAGE) }
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

    /// Without an activation.
    fn linear(bias: In<'a, bf16>, residual: In<'a, bf16>, y: Out<'a, bf16>) -> Self {
        Self::new(bias, None, residual, Out::optional(None), y)
    }
}

/// A product of a layer of these sizes, and what is done to it.
struct Product<F> {
    rows: u32,
    inputs: u32,
    outputs: u32,
    finish: F,
}

impl GemmOp for Cuda {
    fn gemm_forward(&self, args: GemmForward<'_, Self>) -> Result<()> {
        args.check();
        let GemmForward { x, weight, bias, activation, residual, pre_activation, y } = args;
        let (rows, inputs, outputs) = (count(x.rows()), count(x.cols()), count(weight.rows()));
        if rows == 0 {
            return Ok(());
        }
        let (x, weight, y) = (In::of(x), In::of(weight), Out::of(y));
        let (bias, residual) = (In::optional(bias), In::optional(residual));
        let own = |finish: Finish<'_>| {
            let product = Product { rows, inputs, outputs, finish };
            match Kernels::for_operands(rows, outputs, [x, weight], self) {
                Kernels::Mma(tile) => tile.forward(self, x, weight, product),
                Kernels::Sm90a(tile) => tile.forward(self, x, weight, product),
            }
        };
        if activation.is_some() || pre_activation.is_some() {
            return own(Finish::new(bias, activation, residual, Out::optional(pre_activation), y));
        }
        let product = LinearProduct {
            m: rows,
            n: outputs,
            k: inputs,
            a: x,
            b: weight,
            storage: Storage::Transposed,
            bias,
            addend: residual,
        };
        self.multiply(&product, y, |y| own(Finish::linear(bias, residual, y)))
    }

    fn gemm_backward(&self, args: GemmBackward<'_, Self>) -> Result<()> {
        args.check();
        let GemmBackward { x, weight, dy, dx, dweight, dbias } = args;
        let (rows, inputs, outputs) = (count(x.rows()), count(x.cols()), count(weight.rows()));
        if rows == 0 {
            return Ok(());
        }
        let (x, weight, dy) = (In::of(x), In::of(weight), In::of(dy));
        if let Some((write, dx)) = dx {
            let (dx, none) = (Out::of(dx), In::optional(None));
            let before = match write {
                Write::Replace => none,
                Write::Add => dx.before(),
            };
            let product = LinearProduct {
                m: rows,
                n: inputs,
                k: outputs,
                a: dy,
                b: weight,
                storage: Storage::Plain,
                bias: none,
                addend: before,
            };
            self.multiply(&product, dx, |dx| {
                let product = Product { rows, inputs, outputs, finish: Finish::linear(none, before, dx) };
                match Kernels::for_operands(rows, inputs, [dy, weight], self) {
                    Kernels::Mma(tile) => tile.input(self, dy, weight, product),
                    Kernels::Sm90a(tile) => tile.input(self, dy, weight, product),
                }
            })?;
        }
        // cuBLASLt has no dbias that is added to what is there: dW and db together stay with these kernels.
        let (finish, dbias) = (Accumulate::new(Out::of(dweight), Write::Add), Out::optional(dbias));
        let aligned = vector_width(0, &[dy.extent(), x.extent()]) > 1;
        let (capability, multiprocessors) = (self.capability(), self.multiprocessors());
        let kernels = WeightKernels::choose([outputs, inputs], rows, aligned, capability, multiprocessors);
        let parts = rows.div_ceil(kernels.rows_of_part);
        if parts == 1 {
            return kernels.launch(self, dy, x, dbias, Product { rows, inputs, outputs, finish });
        }
        self.with_scratch(|scratch| {
            let (sums, parts_of_dw) = scratch.matrix((parts * outputs) as usize, inputs as usize);
            let (sums_of_db, parts_of_db) = scratch.matrix(1, (parts * outputs) as usize);
            let product = Product { rows, inputs, outputs, finish: Accumulate::new(sums, Write::Replace) };
            kernels.launch(self, dy, x, sums_of_db, product)?;
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
            self.launch(grid, args)
        })
    }
}

arguments! {
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
    fn every_product_gets_the_kernels_that_suit_it() {
        const H200: ((u32, u32), u32) = ((9, 0), 132);
        const A100: ((u32, u32), u32) = ((8, 0), 108);
        let choose = |m, n, aligned, (capability, multiprocessors)| {
            Kernels::choose(m, n, aligned, capability, multiprocessors)
        };
        // The keys and values of 256 images: 141 rounds of the wide tile, each as long as two of the square
        // one's 281.
        assert_eq!(choose(257 * 256, 9216, true, H200), Kernels::Sm90a(&sm90a::WIDE));
        // Their weight's gradient: 72·11 tiles of 128×128 are six full rounds.
        assert_eq!(choose(9216, 1408, true, H200), Kernels::Sm90a(&sm90a::SQUARE));
        assert_eq!(choose(257 * 256, 9216, true, A100), Kernels::Mma(&mma::LARGE));
        // 64·3 tiles of 128×256 would be one round and a half: 64·6 of 128×128 are three.
        assert_eq!(choose(32 * 256, 768, true, H200), Kernels::Sm90a(&sm90a::SQUARE));
        // Few results: smaller tiles, so that more multiprocessors have one.
        assert_eq!(choose(768, 768, true, H200), Kernels::Mma(&mma::MEDIUM));
        assert_eq!(choose(32, 3072, true, H200), Kernels::Mma(&mma::NARROW));
        assert_eq!(choose(32, 768, true, H200), Kernels::Mma(&mma::SLIM));
        assert_eq!(choose(257 * 256, 9216, false, H200), Kernels::Mma(&mma::UNALIGNED));
        // Blackwell runs what is for every GPU.
        assert_eq!(choose(257 * 256, 9216, true, ((10, 0), 148)), Kernels::Mma(&mma::LARGE));
    }

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
    }
}
