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

    /// Which rows are taken out: `picked` of the plan's stream. Those that are not of text get no gradient back.
    pub(super) fn write(&mut self, b: &B, picked: &[u32], plan: &Plan) -> Result<()> {
        b.write_indices(picked, self.ids.reborrow())?;
        let mut from = vec![picked.len() as u32; plan.tokens.len()];
        for (index, &row) in picked.iter().enumerate() {
            if let Some(row) = (row as usize).checked_sub(plan.query_rows()) {
                from[row] = index as u32;
            }
        }
        b.write_indices(&from, self.from.reborrow())
    }

    /// Takes the rows out of `output` [rows, D].
    pub(super) fn take(&mut self, b: &B, output: V<'_, B>) -> Result<()> {
        let (ids, y) = (self.ids.view(), self.rows.reborrow());
        b.embedding_forward(EmbeddingForward { ids, table: output, positions: None, y })
    }

    /// The gradient of all rows of text, into `dtext` [text rows, D]: that of the rows taken out, else 0.
    pub(super) fn put_back(&mut self, b: &B, dtext: M<'_, B>) -> Result<()> {
        b.clear(self.drows.reborrow().split_rows(self.ids.cols()).1)?;
        let (ids, table) = (self.from.view(), self.drows.view());
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: dtext })
    }
}
