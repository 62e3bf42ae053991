//! Launches of `kernels/layer_norm.cu`.

use super::{LayerNormBackward, LayerNormForward, LayerNormGradients, LayerNormOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use crate::ops::dropout::DropoutArgs;
use half::bf16;

arguments! {
    struct LayerNormForwardArgs("layer_norm", "layer_norm_forward", 152) {
        dropout: DropoutArgs<'a>,
        /// [rows, width]
        x: In<'a, bf16>,
        /// [rows, width]
        residual: In<'a, bf16>,
        /// [1, width]
        weight: In<'a, bf16>,
        /// [1, width]
        bias: In<'a, bf16>,
        /// [rows, width]
        sum: Out<'a, bf16>,
        /// [rows, 2]
        statistics: Out<'a, f32>,
        /// [rows, width]
        y: Out<'a, bf16>,
        rows: u32,
        width: u32,
        vector: u32,
        epsilon: f32,
    }

    struct LayerNormBackwardArgs("layer_norm", "layer_norm_backward", 152) {
        dropout: DropoutArgs<'a>,
        /// [rows, width]
        sum: In<'a, bf16>,
        /// [rows, 2]
        statistics: In<'a, f32>,
        /// [1, width]
        weight: In<'a, bf16>,
        /// [rows, width]
        dy: In<'a, bf16>,
        /// [rows, width]
        dsum: Out<'a, bf16>,
        /// [rows, width]
        dx: Out<'a, bf16>,
        /// [blocks, 2·width]; absent if γ and β are frozen
        partials: Out<'a, f32>,
        rows: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }

    struct LayerNormBackwardWideArgs("layer_norm", "layer_norm_backward_wide", 152) {
        all: LayerNormBackwardArgs<'a>,
    }

    struct LayerNormParametersArgs("layer_norm", "layer_norm_parameters", 56) {
        /// [blocks, 2·width]
        partials: In<'a, f32>,
        /// [1, width]
        dweight: Out<'a, f32>,
        /// [1, width]
        dbias: Out<'a, f32>,
        blocks: u32,
        width: u32,
    }
}

/// Threads of the forward kernel's blocks, a warp a row.
const FORWARD_THREADS: u32 = 256;
/// Threads of the backward kernels' blocks, a warp a row.
const BACKWARD_THREADS: u32 = 128;
/// Threads of the last kernel's blocks, each for 32 columns.
const PARAMETERS_THREADS: u32 = 256;
/// Backward blocks a multiprocessor: as many as a Hopper has registers for, with rows of up to 768.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;
/// Widths whose backward pass has a kernel of its own.
const WIDE: std::ops::RangeInclusive<u32> = 769..=1536;

impl LayerNormOp for Cuda {
    fn layer_norm_partials(&self, rows: usize) -> usize {
        let most = (self.multiprocessors() * BLOCKS_PER_MULTIPROCESSOR) as usize;
        rows.div_ceil(BACKWARD_THREADS as usize / 32).min(most)
    }

    fn layer_norm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()> {
        args.check();
        let LayerNormForward { x, dropout, residual, weight, bias, epsilon, sum, statistics, y } = args;
        let (rows, width) = (count(x.rows()), count(x.cols()));
        let (x, residual, y) = (In::of(x), In::optional(residual), Out::of(y));
        let (weight, bias) = (In::of(weight), In::of(bias));
        let (sum, statistics) = (Out::optional(sum), Out::optional(statistics));
        let extents =
            [x.extent(), residual.extent(), weight.extent(), bias.extent(), sum.extent(), y.extent()];
        let vector = vector_width(width, &extents);
        let dropout = DropoutArgs::of(dropout);
        let epsilon = epsilon as f32;
        let blocks = [rows.div_ceil(FORWARD_THREADS / 32), 1, 1];
        self.launch(
            Grid { blocks, threads: FORWARD_THREADS, shared_bytes: 0 },
            LayerNormForwardArgs {
                dropout,
                x,
                residual,
                weight,
                bias,
                sum,
                statistics,
                y,
                rows,
                width,
                vector,
                epsilon,
            },
        )
    }

    fn layer_norm_backward(&self, args: LayerNormBackward<'_, Self>) -> Result<()> {
        args.check(self);
        let LayerNormBackward { dropout, sum, statistics, weight, dy, dsum, dx, parameters } = args;
        let (partials, sums) = parameters
            .map(|LayerNormGradients { partials, dweight, dbias }| (partials, [dweight, dbias]))
            .unzip();
        let partials = Out::optional(partials);
        let (rows, width) = (count(sum.rows()), count(sum.cols()));
        let blocks = count(self.layer_norm_partials(sum.rows()));
        let (sum, statistics, weight, dy) = (In::of(sum), In::of(statistics), In::of(weight), In::of(dy));
        let (dsum, dx) = (Out::of(dsum), Out::optional(dx));
        let extents = [sum.extent(), weight.extent(), dy.extent(), dsum.extent(), dx.extent()];
        let vector = vector_width(width, &extents);
        let all = LayerNormBackwardArgs {
            dropout: DropoutArgs::of(dropout),
            sum,
            statistics,
            weight,
            dy,
            dsum,
            dx,
            partials: partials.again(),
            rows,
            width,
            vector,
            unused: 0,
        };
        let grid = Grid { blocks: [blocks, 1, 1], threads: BACKWARD_THREADS, shared_bytes: 0 };
        if vector > 1 && WIDE.contains(&width) {
            self.launch(grid, LayerNormBackwardWideArgs { all })?;
        } else {
            self.launch(grid, all)?;
        }
        let Some([dweight, dbias]) = sums else { return Ok(()) };
        let columns = (2 * width).div_ceil(32);
        self.launch(
            Grid { blocks: [columns, 1, 1], threads: PARAMETERS_THREADS, shared_bytes: 0 },
            LayerNormParametersArgs {
                partials: partials.before(),
                dweight: Out::of(dweight),
                dbias: Out::of(dbias),
                blocks,
                width,
            },
        )
    }
}
