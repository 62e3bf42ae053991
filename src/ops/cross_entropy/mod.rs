//! Cross-entropy of the softmax over a vocabulary, with label smoothing as PyTorch defines it.
//!
//! With p = softmax(x) of a row of logits x over V words and y its label, the row's loss is
//! (1 − ε)·(−ln p_y) + ε·mean_j(−ln p_j) = lse − (1 − ε)·x_y − ε/V·Σ_j x_j, lse = ln Σ_j exp x_j.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, S, SM, V};
use crate::error::Result;
use crate::tensor::{Shape, View, ViewMut};

/// The label of a row that counts for nothing, such as one that only fills up a matrix ([`Device::row_granularity`]): its
/// loss and its gradient are 0, and means are over the others, of which there is one at least.
pub const IGNORED: u32 = u32::MAX;

/// Operands of [`CrossEntropyOp::cross_entropy_forward`].
pub struct CrossEntropyForward<'a, D: Device> {
    /// ε
    pub smoothing: f64,
    /// x [rows, V]
    pub logits: V<'a, D>,
    /// y [1, rows], each less than V, or [`IGNORED`]
    pub labels: View<'a, D, u32>,
    /// [1, rows], written: what the backward pass needs
    pub lse: SM<'a, D>,
    /// [1, rows], written: each row's loss
    pub row_losses: SM<'a, D>,
    /// [1, rows], written: where each row has its largest logit, the first of equals
    pub predictions: ViewMut<'a, D, u32>,
    /// [1, 1], written: the mean of the counted rows' losses
    pub loss: SM<'a, D>,
    /// [1, 1], written: how many predictions are the label
    pub correct: ViewMut<'a, D, u32>,
}

/// Operands of [`CrossEntropyOp::cross_entropy_backward`].
pub struct CrossEntropyBackward<'a, D: Device> {
    /// The forward's.
    pub smoothing: f64,
    /// w, the loss's factor in what is differentiated
    pub weight: f64,
    /// y [1, rows]
    pub labels: View<'a, D, u32>,
    /// [1, rows]
    pub lse: S<'a, D>,
    /// x [rows, V], which becomes dx
    pub logits: M<'a, D>,
}

/// The mean cross-entropy of rows of logits.
pub trait CrossEntropyOp: Device {
    /// The loss, and what it takes to differentiate it and to tell how often it was right.
    fn cross_entropy_forward(&self, args: CrossEntropyForward<'_, Self>) -> Result<()>;
    /// dx_j = w/counted rows·(p_j − (1 − ε)·[j = y] − ε/V), in place
    fn cross_entropy_backward(&self, args: CrossEntropyBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> CrossEntropyForward<'_, D> {
    /// Asserts the shapes.
    fn check(&self) {
        let Shape { rows, cols } = self.logits.shape();
        assert!(rows > 0 && cols > 0, "logits [rows, V]");
        let row = Shape::new(1, rows);
        assert_eq!(self.labels.shape(), row, "labels [1, rows]");
        assert!(self.lse.shape() == row && self.row_losses.shape() == row, "lse and losses [1, rows]");
        assert_eq!(self.predictions.shape(), row, "predictions [1, rows]");
        let one = Shape::new(1, 1);
        assert!(self.loss.shape() == one && self.correct.shape() == one, "loss and correct [1, 1]");
    }
}

impl<D: Device> CrossEntropyBackward<'_, D> {
    /// Asserts the shapes.
    fn check(&self) {
        let Shape { rows, cols } = self.logits.shape();
        assert!(rows > 0 && cols > 0, "logits [rows, V]");
        let row = Shape::new(1, rows);
        assert!(self.labels.shape() == row && self.lse.shape() == row, "labels and lse [1, rows]");
    }
}
