//! Launches of `kernels/cross_entropy.cu`.

use super::{CrossEntropyBackward, CrossEntropyForward, CrossEntropyOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count};
use crate::error::Result;
use half::bf16;

const THREADS: u32 = 256;
/// Threads of the one block that takes the mean.
const MEAN_THREADS: u32 = 1024;

arguments! {
    struct CrossEntropyForwardArgs("cross_entropy", "cross_entropy_forward", 96) {
        /// [rows, width]
        logits: In<'a, bf16>,
        /// [1, rows]
        labels: In<'a, u32>,
        /// [1, rows]
        lse: Out<'a, f32>,
        /// [1, rows]
        row_losses: Out<'a, f32>,
        /// [1, rows]
        predictions: Out<'a, u32>,
        width: u32,
        /// 1 − ε
        at_label: f32,
        /// ε/V
        at_all: f32,
        unused: u32,
    }

    struct CrossEntropyMeanArgs("cross_entropy", "cross_entropy_mean", 88) {
        /// [1, rows]
        row_losses: In<'a, f32>,
        /// [1, rows]
        predictions: In<'a, u32>,
        /// [1, rows]
        labels: In<'a, u32>,
        /// [1, 1]
        loss: Out<'a, f32>,
        /// [1, 1]
        correct: Out<'a, u32>,
        rows: u32,
        unused: u32,
    }

    struct CrossEntropyBackwardArgs("cross_entropy", "cross_entropy_backward", 72) {
        /// [1, rows]
        labels: In<'a, u32>,
        /// [1, rows]
        lse: In<'a, f32>,
        /// [rows, width]
        logits: Out<'a, bf16>,
        rows: u32,
        width: u32,
        /// w
        weight: f32,
        /// 1 − ε
        at_label: f32,
        /// ε/V
        at_all: f32,
        unused: u32,
    }
}

impl CrossEntropyOp for Cuda {
    fn cross_entropy_forward(&self, args: CrossEntropyForward<'_, Self>) -> Result<()> {
        args.check();
        let CrossEntropyForward { smoothing, logits, labels, lse, mut row_losses, mut predictions, .. } =
            args;
        let (rows, width) = (count(logits.rows()), count(logits.cols()));
        let labels = In::of(labels);
        let forward = CrossEntropyForwardArgs {
            logits: In::of(logits),
            labels,
            lse: Out::of(lse),
            row_losses: Out::of(row_losses.reborrow()),
            predictions: Out::of(predictions.reborrow()),
            width,
            at_label: (1.0 - smoothing) as f32,
            at_all: (smoothing / f64::from(width)) as f32,
            unused: 0,
        };
        self.launch(Grid { blocks: [rows, 1, 1], threads: THREADS, shared_bytes: 0 }, forward)?;
        let mean = CrossEntropyMeanArgs {
            row_losses: In::of(row_losses.into_view()),
            predictions: In::of(predictions.into_view()),
            labels,
            loss: Out::of(args.loss),
            correct: Out::of(args.correct),
            rows,
            unused: 0,
        };
        self.launch(Grid { blocks: [1, 1, 1], threads: MEAN_THREADS, shared_bytes: 0 }, mean)
    }

    fn cross_entropy_backward(&self, args: CrossEntropyBackward<'_, Self>) -> Result<()> {
        args.check();
        let (rows, width) = (count(args.logits.rows()), count(args.logits.cols()));
        let backward = CrossEntropyBackwardArgs {
            labels: In::of(args.labels),
            lse: In::of(args.lse),
            logits: Out::of(args.logits),
            rows,
            width,
            weight: args.weight as f32,
            at_label: (1.0 - args.smoothing) as f32,
            at_all: (args.smoothing / f64::from(width)) as f32,
            unused: 0,
        };
        self.launch(Grid { blocks: [rows, 1, 1], threads: THREADS, shared_bytes: 0 }, backward)
    }
}
