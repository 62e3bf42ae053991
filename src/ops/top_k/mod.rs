//! What may follow: the k largest of each row of logits, and the log-sum-exp of the row, which turns logits into
//! probabilities.
//!
//! It belongs to inference and has no backward pass.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, SM, V};
use crate::error::Result;
use crate::tensor::{Shape, View, ViewMut};

/// The largest k.
pub const LONGEST: usize = 128;

/// Operands of [`TopKOp::top_k`].
///
/// A NaN counts as −∞ where logits are compared. The log-sum-exp of a row with a NaN or +∞ in it, or of nothing but −∞,
/// is NaN or infinite: whoever reads it can refuse the row, whose ids are tokens nonetheless.
pub struct TopK<'a, D: Device> {
    /// [rows, V]
    pub logits: V<'a, D>,
    /// Tokens whose logits are wanted, however small: ids [rows, m], each less than V, and where their logits go
    /// [rows, m].
    pub asked: Option<(View<'a, D, u32>, SM<'a, D>)>,
    /// [1, rows], written: ln Σ exp of all logits of a row
    pub lse: SM<'a, D>,
    /// [rows, k], written: the tokens of the k largest logits, the largest first, of equals the smaller id first;
    /// k from 1 to [`LONGEST`] and to V
    pub ids: ViewMut<'a, D, u32>,
    /// [rows, k], written: their logits
    pub values: SM<'a, D>,
}

/// The largest logits of rows.
pub trait TopKOp: Device {
    /// The k largest logits of each row and their log-sum-exp.
    fn top_k(&self, args: TopK<'_, Self>) -> Result<()>;
}

impl<D: Device> TopK<'_, D> {
    /// Asserts the shapes.
    fn check(&self) {
        let Shape { rows, cols } = self.logits.shape();
        let k = self.ids.cols();
        assert!((1..=LONGEST.min(cols)).contains(&k), "{k} of {cols} logits");
        assert_eq!(self.ids.shape(), Shape::new(rows, k), "ids [rows, k]");
        assert_eq!(self.values.shape(), self.ids.shape(), "values [rows, k]");
        assert_eq!(self.lse.shape(), Shape::new(1, rows), "lse [1, rows]");
        if let Some((ids, values)) = &self.asked {
            assert!(ids.shape() == values.shape() && ids.rows() == rows, "asked [rows, m]");
        }
    }
}
