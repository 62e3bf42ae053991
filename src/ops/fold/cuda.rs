//! Launches of `kernels/fold.cu`.

use super::{FoldBackward, FoldForward, FoldOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

/// Threads of a block, a warp a row.
const THREADS: u32 = 256;
/// Vectors of columns of a block that sums columns.
const VECTORS: u32 = 4;

arguments! {
    struct FoldForwardArgs("fold", "fold_forward", 112) {
        /// [out, in]
        weight: In<'a, bf16>,
        /// [1, out]
        bias: In<'a, bf16>,
        /// [1, in]
        norm_weight: In<'a, bf16>,
        /// [1, in]
        norm_bias: In<'a, bf16>,
        /// [out, in]
        folded_weight: Out<'a, bf16>,
        /// [1, out]
        folded_bias: Out<'a, bf16>,
        rows: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }

    struct FoldBackwardRows("fold", "fold_backward_rows", 160) {
        args: FoldBackwardArgs<'a>,
    }

    struct FoldBackwardColumns("fold", "fold_backward_columns", 160) {
        args: FoldBackwardArgs<'a>,
    }
}

/// What both backward kernels take.
#[repr(C)]
struct FoldBackwardArgs<'a> {
    /// [out, in]
    weight: In<'a, bf16>,
    /// [1, in]
    norm_weight: In<'a, bf16>,
    /// [1, in]
    norm_bias: In<'a, bf16>,
    /// [out, in]
    dfolded_weight: In<'a, f32>,
    /// [1, out]
    dfolded_bias: In<'a, f32>,
    /// [out, in]
    dweight: Out<'a, f32>,
    /// [1, out]
    dbias: Out<'a, f32>,
    /// [1, in]
    dnorm_weight: Out<'a, f32>,
    /// [1, in]
    dnorm_bias: Out<'a, f32>,
    rows: u32,
    width: u32,
    vector: u32,
    unused: u32,
}

fn rows_grid(rows: u32) -> Grid {
    Grid { blocks: [rows.div_ceil(THREADS / 32), 1, 1], threads: THREADS, shared_bytes: 0 }
}

impl FoldOp for Cuda {
    fn fold_forward(&self, args: FoldForward<'_, Self>) -> Result<()> {
        args.check();
        let (rows, width) = (count(args.weight.rows()), count(args.weight.cols()));
        let (weight, bias) = (In::of(args.weight), In::of(args.bias));
        let (norm_weight, norm_bias) = (In::of(args.norm_weight), In::of(args.norm_bias));
        let (folded_weight, folded_bias) = (Out::of(args.folded_weight), Out::of(args.folded_bias));
        let extents = [weight.extent(), folded_weight.extent(), norm_weight.extent(), norm_bias.extent()];
        let vector = vector_width(width, &extents);
        let args = FoldForwardArgs {
            weight,
            bias,
            norm_weight,
            norm_bias,
            folded_weight,
            folded_bias,
            rows,
            width,
            vector,
            unused: 0,
        };
        self.launch(rows_grid(rows), args)
    }

    fn fold_backward(&self, mut args: FoldBackward<'_, Self>) -> Result<()> {
        args.check();
        let (rows, width) = (count(args.weight.rows()), count(args.weight.cols()));
        let launched = FoldBackwardArgs::of(&mut args);
        let vector = launched.vector;
        self.launch(rows_grid(rows), FoldBackwardRows { args: launched })?;
        let blocks = [width.div_ceil(VECTORS * vector), 1, 1];
        let args = FoldBackwardArgs::of(&mut args);
        self.launch(Grid { blocks, threads: THREADS, shared_bytes: 0 }, FoldBackwardColumns { args })
    }
}

impl<'a> FoldBackwardArgs<'a> {
    fn of(args: &'a mut FoldBackward<'_, Cuda>) -> Self {
        let (rows, width) = (count(args.weight.rows()), count(args.weight.cols()));
        let (weight, dfolded_weight) = (In::of(args.weight), In::of(args.dfolded_weight));
        let (norm_weight, norm_bias) = (In::of(args.norm_weight), In::of(args.norm_bias));
        let dweight = Out::of(args.dweight.reborrow());
        let extents = [
            weight.extent(),
            norm_weight.extent(),
            norm_bias.extent(),
            dfolded_weight.extent(),
            dweight.extent(),
        ];
        Self {
            weight,
            norm_weight,
            norm_bias,
            dfolded_weight,
            dfolded_bias: In::of(args.dfolded_bias),
            dweight,
            dbias: Out::of(args.dbias.reborrow()),
            dnorm_weight: Out::of(args.dnorm_weight.reborrow()),
            dnorm_bias: Out::of(args.dnorm_bias.reborrow()),
            rows,
            width,
            vector: vector_width(width, &extents),
            unused: 0,
        }
    }
}
