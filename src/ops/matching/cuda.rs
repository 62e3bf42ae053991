//! Launches of `kernels/matching.cu`.

use super::{MatchingBackward, MatchingForm, MatchingForward, MatchingGradient, MatchingOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count};
use crate::error::Result;
use crate::tensor::View;
use half::bf16;

/// Twin of `Pairs` in kernels/matching.cu.
#[repr(C)]
struct PairsArgs<'a> {
    /// [pairs, 2]
    logits: In<'a, bf16>,
    /// [pairs, 1]
    similarity: In<'a, bf16>,
    /// [1, 1]
    scale: In<'a, f32>,
    /// [1, 1]
    bias: In<'a, f32>,
    /// [1, pairs]
    labels: In<'a, u32>,
    count: u32,
    unused: u32,
}

const _: () = assert!(size_of::<PairsArgs<'_>>() == 88);

impl<'a> PairsArgs<'a> {
    fn of(form: MatchingForm<'a, Cuda>, labels: View<'a, Cuda, u32>) -> Self {
        let (logits, similarity, scale, bias) = match form {
            MatchingForm::Classifier { logits } => (Some(logits), None, None, None),
            MatchingForm::MaxSimilarity { similarity, scale, bias } => {
                (None, Some(similarity), Some(scale), Some(bias))
            }
        };
        Self {
            logits: In::optional(logits),
            similarity: In::optional(similarity),
            scale: In::optional(scale),
            bias: In::optional(bias),
            labels: In::of(labels),
            count: count(labels.cols()),
            unused: 0,
        }
    }
}

arguments! {
    struct MatchingForwardArgs("matching", "matching_forward", 120) {
        pairs: PairsArgs<'a>,
        /// [1, 1]
        loss: Out<'a, f32>,
        /// [1, 2]
        correct: Out<'a, u32>,
    }

    struct MatchingBackwardArgs("matching", "matching_backward", 176) {
        pairs: PairsArgs<'a>,
        /// [1, 2]
        correct: In<'a, u32>,
        /// [pairs, 2]
        dlogits: Out<'a, bf16>,
        /// [pairs, 1]
        dsimilarity: Out<'a, bf16>,
        /// [1, 1]
        dscale: Out<'a, f32>,
        /// [1, 1]
        dbias: Out<'a, f32>,
        weight: f32,
        unused: u32,
    }
}

/// One block: sums over pairs are then of a fixed order.
const GRID: Grid = Grid { blocks: [1, 1, 1], threads: 1024, shared_bytes: 0 };

impl MatchingOp for Cuda {
    fn matching_forward(&self, args: MatchingForward<'_, Self>) -> Result<()> {
        args.check();
        let MatchingForward { form, labels, loss, correct } = args;
        let pairs = PairsArgs::of(form, labels);
        self.launch(GRID, MatchingForwardArgs { pairs, loss: Out::of(loss), correct: Out::of(correct) })
    }

    fn matching_backward(&self, args: MatchingBackward<'_, Self>) -> Result<()> {
        args.check();
        let MatchingBackward { form, labels, correct, weight, gradient } = args;
        let (dlogits, dsimilarity, dscale, dbias) = match gradient {
            MatchingGradient::Classifier { dlogits } => (Some(dlogits), None, None, None),
            MatchingGradient::MaxSimilarity { dsimilarity, dscale, dbias } => {
                (None, Some(dsimilarity), Some(dscale), Some(dbias))
            }
        };
        let args = MatchingBackwardArgs {
            pairs: PairsArgs::of(form, labels),
            correct: In::of(correct),
            dlogits: Out::optional(dlogits),
            dsimilarity: Out::optional(dsimilarity),
            dscale: Out::optional(dscale),
            dbias: Out::optional(dbias),
            weight: weight as f32,
            unused: 0,
        };
        self.launch(GRID, args)
    }
}
