//! Launches of `kernels/gemm.cu`, for every GPU, and of `kernels/gemm_sm90a.cu`, for Hopper; products may go to
//! cuBLASLt instead, which is followed by kernels of what is fused in these.

mod accumulate;
mod mma;
mod sm90a;
mod weight;

use super::{LinearBackward, LinearForward, LinearInputBackward, LinearOp, ParameterBackward};
use crate::device::cuda::{Factor, In, LinearProduct, Out, Results, count, vector_width};
use crate::device::{Cuda, Write};
use crate::error::Result;
use crate::ops::activation::Activation;
use half::bf16;
use weight::Layer;

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
        // The length of the rows does not matter: nothing beyond them is read.
        let aligned = vector_width(0, &operands.map(|operand| operand.extent())) > 1;
        Self::choose(m, n, aligned, gpu.capability(), gpu.multiprocessors())
    }
}

/// What is done to the product of a forward pass: twin of `FinishForward` in kernels/gemm.cuh.
#[repr(C)]
struct FinishForward<'a> {
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

impl<'a> FinishForward<'a> {
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
}

/// What is done to the gradient of x, or of z where x = f(z): twin of `FinishInput` in kernels/gemm.cuh.
#[repr(C)]
struct FinishInput<'a> {
    /// [m, n]
    pre_activation: In<'a, bf16>,
    /// [m, n]
    before: In<'a, bf16>,
    /// [m, n]
    dx: Out<'a, bf16>,
    activation: u32,
    vector: u32,
}

impl<'a> FinishInput<'a> {
    fn new(activation: Option<(Activation, In<'a, bf16>)>, before: In<'a, bf16>, dx: Out<'a, bf16>) -> Self {
        let pre_activation = activation.map_or(In::optional(None), |(_, z)| z);
        let vector = vector_width(0, &[pre_activation.extent(), before.extent(), dx.extent()]);
        let activation = Activation::number(activation.map(|(f, _)| f));
        Self { pre_activation, before, dx, activation, vector }
    }
}

/// A product of a layer of these sizes, and what is done to it.
struct Product<F> {
    rows: u32,
    inputs: u32,
    outputs: u32,
    finish: F,
}

impl LinearOp for Cuda {
    fn linear_forward(&self, args: LinearForward<'_, Self>) -> Result<()> {
        args.check();
        let LinearForward { x, weight, bias, activation, residual, pre_activation, y } = args;
        let (rows, inputs, outputs) = (count(x.rows()), count(x.cols()), count(weight.rows()));
        if rows == 0 {
            return Ok(());
        }
        let (x, weight, y) = (In::of(x), In::of(weight.matrix()), Out::of(y));
        let (bias, residual) = (In::optional(bias), In::optional(residual));
        let pre_activation = Out::optional(pre_activation);
        let own = |to: Results<'_, bf16>| {
            let finish = FinishForward::new(bias, activation, residual, pre_activation.again(), to.y);
            let product = Product { rows, inputs, outputs, finish };
            match Kernels::for_operands(rows, outputs, [x, weight], self) {
                Kernels::Mma(tile) => tile.forward(self, x, weight, product),
                Kernels::Sm90a(tile) => tile.forward(self, x, weight, product),
            }
        };
        let (saves, adds) = (pre_activation.address() != 0, residual.address() != 0);
        // What follows cuBLASLt's product is an activation and nothing else.
        let suits_cublaslt = if activation.is_some() { !adds } else { !saves };
        if !suits_cublaslt {
            return own(Results::of(y));
        }
        let product = LinearProduct {
            m: rows,
            n: outputs,
            k: inputs,
            a: Factor::plain(x),
            b: Factor::transposed(weight),
            bias,
            addend: residual,
            to: pre_activation.again(),
            follows: Activation::number(activation),
        };
        self.multiply(&product, Results::of(y), own, |Results { y, .. }| match activation {
            None => Ok(()),
            Some(f) => {
                let product = if saves { pre_activation.before() } else { y.before() };
                self.activate(f, product, y, [rows, outputs])
            }
        })
    }

    fn linear_input_backward(&self, args: LinearInputBackward<'_, Self>) -> Result<()> {
        args.check();
        let LinearInputBackward { weight, dy, activation, write, dx } = args;
        let (rows, inputs, outputs) = (count(dy.rows()), count(weight.cols()), count(weight.rows()));
        if rows == 0 {
            return Ok(());
        }
        let (weight, dy) = (In::of(weight.matrix()), In::of(dy));
        let activation = activation.map(|(f, z)| (f, In::of(z)));
        let (dx, none) = (Out::of(dx), In::optional(None));
        let before = match write {
            Write::Replace => none,
            Write::Add => dx.before(),
        };
        let product = LinearProduct {
            m: rows,
            n: inputs,
            k: outputs,
            a: Factor::plain(dy),
            b: Factor::plain(weight),
            bias: none,
            addend: before,
            to: Out::optional(None),
            follows: Activation::number(activation.map(|(f, _)| f)),
        };
        let own = |to: Results<'_, bf16>| {
            let finish = FinishInput::new(activation, before, to.y);
            let product = Product { rows, inputs, outputs, finish };
            match Kernels::for_operands(rows, inputs, [dy, weight], self) {
                Kernels::Mma(tile) => tile.input(self, dy, weight, product),
                Kernels::Sm90a(tile) => tile.input(self, dy, weight, product),
            }
        };
        self.multiply(&product, Results::of(dx), own, |Results { y: dx, .. }| match activation {
            None => Ok(()),
            Some((f, z)) => self.differentiate(f, z, dx, [rows, inputs]),
        })
    }

    fn linear_backward(&self, args: LinearBackward<'_, Self>) -> Result<()> {
        let (input, ParameterBackward { x, dy, dweight, dbias }) = args.parts();
        let (rows, inputs, outputs) = (count(x.rows()), count(x.cols()), count(dy.cols()));
        if rows == 0 {
            return Ok(());
        }
        input.map_or(Ok(()), |input| self.linear_input_backward(input))?;
        let layer = Layer { dy: In::of(dy), x: In::of(x), rows, inputs, outputs };
        layer.add_gradients(self, Results { y: Out::of(dweight), dbias: Out::optional(dbias) })
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
}
