//! Some rows of a stream's text, taken out for a head, and their gradients put back.

use super::plan::Plan;
use crate::arena::Cursor;
use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::embedding::EmbeddingForward;
use crate::tensor::ViewMut;

/// What n rows are taken out to.
pub(super) struct PickedActs<'a, B: Backend> {
    /// [1, n]: which rows of the stream
    ids: ViewMut<'a, B, u32>,
    /// [n, D]
    pub(super) rows: M<'a, B>,
    /// [n + 1, D]: their gradients, which heads write, then zeros
    pub(super) drows: M<'a, B>,
    /// [1, text rows]: for each row of text its row of `drows`
    from: ViewMut<'a, B, u32>,
}

impl<'a, B: Backend> PickedActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, count: usize, plan: &Plan, hidden: usize) -> Self {
        Self {
            ids: cursor.take(1, count),
            rows: cursor.take(count, hidden),
            drows: cursor.take(count + 1, hidden),
            from: cursor.take(1, plan.tokens.len()),
        }
    }

    /// Takes the rows `picked` out of `output` [rows, D].
    pub(super) fn take(&mut self, b: &B, picked: &[u32], output: V<'_, B>) -> Result<()> {
        b.write_indices(picked, self.ids.reborrow())?;
        let (ids, y) = (self.ids.view(), self.rows.reborrow());
        b.embedding_forward(EmbeddingForward { ids, table: output, positions: None, y })
    }

    /// The gradient of all rows of text, into `dtext` [text rows, D]: that of the rows `picked`, else 0.
    pub(super) fn put_back(&mut self, b: &B, picked: &[u32], plan: &Plan, dtext: M<'_, B>) -> Result<()> {
        let zeros = picked.len();
        b.clear(self.drows.reborrow().split_rows(zeros).1)?;
        let mut from = vec![zeros as u32; plan.tokens.len()];
        for (index, &row) in picked.iter().enumerate() {
            from[row as usize - plan.query_rows()] = index as u32;
        }
        b.write_indices(&from, self.from.reborrow())?;
        let (ids, table) = (self.from.view(), self.drows.view());
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: dtext })
    }
}
