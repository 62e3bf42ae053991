//! Rows of a table by index: `y[i] = table[ids[i]] (+ positions[places[i]])`.
//!
//! Besides word and position embeddings it lays out the learned queries for a batch (a table of Q
//! rows, indexed 0..Q again and again) and gathers the `[CLS]` rows out of a stream of text.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, SM, V, W};
use crate::error::Result;
use crate::tensor::View;

/// Indices on a device, [1, count].
pub type Ids<'a, D> = View<'a, D, u32>;

/// Operands of [`EmbeddingOp::embedding_forward`].
pub struct EmbeddingForward<'a, D: Device> {
    /// Row of the table for each row of y; less than the table's rows.
    pub ids: Ids<'a, D>,
    /// [table rows, width], by rows; on the CPU of any type
    pub table: W<'a, D>,
    /// Indices into a second table [table rows, width] that is added.
    pub positions: Option<(Ids<'a, D>, V<'a, D>)>,
    /// [count, width]
    pub y: M<'a, D>,
}

/// Operands of [`EmbeddingOp::embedding_backward`].
pub struct EmbeddingBackward<'a, D: Device> {
    /// As in the forward pass.
    pub ids: Ids<'a, D>,
    /// A row of the table that is not trained, such as the padding token's.
    pub frozen: Option<u32>,
    /// [count, width]
    pub dy: V<'a, D>,
    /// [table rows, width], added to in the order of the rows of y
    pub dtable: SM<'a, D>,
    /// Indices and gradient of the second table, added to.
    pub dpositions: Option<(Ids<'a, D>, SM<'a, D>)>,
}

/// Lookups and their scattered sums.
pub trait EmbeddingOp: Device {
    /// `y[i] = table[ids[i]] (+ positions[places[i]])`
    fn embedding_forward(&self, args: EmbeddingForward<'_, Self>) -> Result<()>;
    /// `dtable[ids[i]] += dy[i]`, and the same for the positions
    fn embedding_backward(&self, args: EmbeddingBackward<'_, Self>) -> Result<()>;
}
