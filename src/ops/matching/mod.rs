//! The matching loss of image-text pairs: whether a text belongs to an image (BLIP-2, section 3.2;
//! LAVIS `blip2_qformer.py`).

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, S, SM, V};
use crate::error::Result;
use crate::tensor::{Shape, View, ViewMut};

/// Label of a pair that is left out, such as one for which there was no negative.
pub const LEFT_OUT: u32 = u32::MAX;

/// What says whether a pair matches.
pub enum MatchingForm<'a, D: Device> {
    /// BLIP-2's two-class classifier: cross-entropy.
    Classifier {
        /// [pairs, 2]: no match, match
        logits: V<'a, D>,
    },
    /// The largest similarity of a query output with the text's: binary cross-entropy of the logit
    /// scale·similarity + bias.
    MaxSimilarity {
        /// [pairs, 1]
        similarity: V<'a, D>,
        /// [1, 1], learned
        scale: S<'a, D>,
        /// [1, 1], learned
        bias: S<'a, D>,
    },
}

impl<D: Device> Clone for MatchingForm<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for MatchingForm<'_, D> {}

/// Operands of [`MatchingOp::matching_forward`].
pub struct MatchingForward<'a, D: Device> {
    /// What says whether a pair matches.
    pub form: MatchingForm<'a, D>,
    /// [1, pairs]: 1 match, 0 no match, [`LEFT_OUT`]
    pub labels: View<'a, D, u32>,
    /// [1, 1]: mean over the pairs that count, 0 if there is none
    pub loss: SM<'a, D>,
    /// [1, 2]: pairs that are classified correctly, and pairs that count; a tie says no match
    pub correct: ViewMut<'a, D, u32>,
}

/// Gradients by what says whether a pair matches, in the form of the forward pass.
pub enum MatchingGradient<'a, D: Device> {
    /// Of [`MatchingForm::Classifier`].
    Classifier {
        /// [pairs, 2], written; 0 where a pair is left out
        dlogits: M<'a, D>,
    },
    /// Of [`MatchingForm::MaxSimilarity`].
    MaxSimilarity {
        /// [pairs, 1], written; 0 where a pair is left out
        dsimilarity: M<'a, D>,
        /// [1, 1], added to
        dscale: SM<'a, D>,
        /// [1, 1], added to
        dbias: SM<'a, D>,
    },
}

/// Operands of [`MatchingOp::matching_backward`].
pub struct MatchingBackward<'a, D: Device> {
    /// The forward's.
    pub form: MatchingForm<'a, D>,
    /// [1, pairs], the forward's
    pub labels: View<'a, D, u32>,
    /// [1, 2], the forward's
    pub correct: View<'a, D, u32>,
    /// Weight of this loss in the whole: the gradient of the whole by `loss`.
    pub weight: f64,
    /// Where gradients go.
    pub gradient: MatchingGradient<'a, D>,
}

/// The matching loss.
pub trait MatchingOp: Device {
    /// The loss, and how many pairs are classified correctly.
    fn matching_forward(&self, args: MatchingForward<'_, Self>) -> Result<()>;
    /// Gradients of the loss, times `weight`.
    fn matching_backward(&self, args: MatchingBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> MatchingForm<'_, D> {
    fn check(&self, pairs: usize) {
        match self {
            Self::Classifier { logits } => assert_eq!(logits.shape(), Shape::new(pairs, 2)),
            Self::MaxSimilarity { similarity, scale, bias } => {
                assert_eq!(similarity.shape(), Shape::new(pairs, 1));
                assert!(scale.shape() == Shape::new(1, 1) && bias.shape() == Shape::new(1, 1));
            }
        }
    }
}

impl<D: Device> MatchingForward<'_, D> {
    /// Number of pairs.
    fn check(&self) -> usize {
        let pairs = self.labels.cols();
        assert_eq!(self.labels.rows(), 1, "labels [1, pairs]");
        self.form.check(pairs);
        assert_eq!(self.loss.shape(), Shape::new(1, 1));
        assert_eq!(self.correct.shape(), Shape::new(1, 2));
        pairs
    }
}

impl<D: Device> MatchingBackward<'_, D> {
    /// Number of pairs.
    fn check(&self) -> usize {
        let pairs = self.labels.cols();
        assert_eq!(self.labels.rows(), 1, "labels [1, pairs]");
        self.form.check(pairs);
        assert_eq!(self.correct.shape(), Shape::new(1, 2));
        match (&self.form, &self.gradient) {
            (MatchingForm::Classifier { logits }, MatchingGradient::Classifier { dlogits }) => {
                assert_eq!(dlogits.shape(), logits.shape());
            }
            (
                MatchingForm::MaxSimilarity { similarity, .. },
                MatchingGradient::MaxSimilarity { dsimilarity, dscale, dbias },
            ) => {
                assert_eq!(dsimilarity.shape(), similarity.shape());
                assert!(dscale.shape() == Shape::new(1, 1) && dbias.shape() == Shape::new(1, 1));
            }
            _ => panic!("gradients of the other form"),
        }
        pairs
    }
}
