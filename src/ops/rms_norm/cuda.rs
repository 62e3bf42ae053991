//! Launches of `kernels/rms_norm.cu`.

use super::{RmsNormBackward, RmsNormForward, RmsNormGradients, RmsNormOp};
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::device::{Cuda, Write};
use crate::error::Result;
use half::bf16;

arguments! {
    struct RmsNormForwardArgs("rms_norm", "rms_norm_forward", 80) {
        /// [rows, width]
        x: In<'a, bf16>,
        /// [1, width]
        weight: In<'a, bf16>,
        /// [rows, 1]
        statistics: Out<'a, f32>,
        /// [rows, width]
        y: Out<'a, bf16>,
        width: u32,
        vector: u32,
        scale: f32,
        epsilon: f32,
    }

    struct RmsNormBackwardArgs("rms_norm", "rms_norm_backward", 120) {
        /// [rows, width]
        x: In<'a, bf16>,
        /// [rows, 1]
        statistics: In<'a, f32>,
        /// [1, width]
        weight: In<'a, bf16>,
        /// [rows, width]
        dy: In<'a, bf16>,
        /// [rows, width]
        dx: Out<'a, bf16>,
        /// [blocks, width]; absent if γ is frozen
        partials: Out<'a, f32>,
        rows: u32,
        width: u32,
        vector: u32,
        scale: f32,
        write: u32,
        unused: u32,
    }

    struct RmsNormParametersArgs("rms_norm", "rms_norm_parameters", 40) {
        /// [blocks, width]
        partials: In<'a, f32>,
        /// [1, width]
        dweight: Out<'a, f32>,
        blocks: u32,
        width: u32,
    }
}

/// Threads of a block, which has a row at a time, or 32 columns of partial sums.
const THREADS: u32 = 256;
/// Backward blocks a multiprocessor: as many as it has registers for.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 2;

fn grid(blocks: u32) -> Grid {
    Grid { blocks: [blocks, 1, 1], threads: THREADS, shared_bytes: 0 }
}

impl RmsNormOp for Cuda {
    fn rms_norm_partials(&self, rows: usize) -> usize {
        rows.min((self.multiprocessors() * BLOCKS_PER_MULTIPROCESSOR) as usize)
    }

    fn rms_norm_forward(&self, args: RmsNormForward<'_, Self>) -> Result<()> {
        args.check();
        let RmsNormForward { epsilon, scale, x, weight, statistics, y } = args;
        let (rows, width) = (count(x.rows()), count(x.cols()));
        let (x, weight, statistics, y) = (In::of(x), In::of(weight), Out::optional(statistics), Out::of(y));
        let vector = vector_width(width, &[x.extent(), weight.extent(), y.extent()]);
        let (scale, epsilon) = (scale as f32, epsilon as f32);
        self.launch(
            grid(rows),
            RmsNormForwardArgs { x, weight, statistics, y, width, vector, scale, epsilon },
        )
    }

    fn rms_norm_backward(&self, args: RmsNormBackward<'_, Self>) -> Result<()> {
        args.check(self);
        let RmsNormBackward { scale, x, weight, statistics, dy, write, dx, gradients } = args;
        let (partials, dweight) =
            gradients.map(|RmsNormGradients { partials, dweight }| (partials, dweight)).unzip();
        let (rows, width) = (count(x.rows()), count(x.cols()));
        let blocks = count(self.rms_norm_partials(x.rows()));
        let (x, statistics, weight, dy) = (In::of(x), In::of(statistics), In::of(weight), In::of(dy));
        let (dx, partials) = (Out::of(dx), Out::optional(partials));
        let extents = [x.extent(), weight.extent(), dy.extent(), dx.extent(), partials.extent()];
        let vector = vector_width(width, &extents);
        self.launch(
            grid(blocks),
            RmsNormBackwardArgs {
                x,
                statistics,
                weight,
                dy,
                dx,
                partials: partials.again(),
                rows,
                width,
                vector,
                scale: scale as f32,
                write: u32::from(write == Write::Add),
                unused: 0,
            },
        )?;
        let Some(dweight) = dweight else { return Ok(()) };
        let (partials, dweight) = (partials.before(), Out::of(dweight));
        self.launch(grid(width.div_ceil(32)), RmsNormParametersArgs { partials, dweight, blocks, width })
    }
}
