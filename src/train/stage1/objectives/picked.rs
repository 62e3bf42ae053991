//! Some rows of a stream's text, taken out for a head, and their gradients put back.

use crate::device::{M, V};
use crate::error::Result;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::embedding::EmbeddingForward;
use crate::tensor::ViewMut;

/// What n rows are taken out to.
pub(in crate::train::stage1) struct PickedActs<'a, B: Backend> {
    /// [1, n]: which rows of the stream
    pub(in crate::train::stage1) ids: ViewMut<'a, B, u32>,
    /// [n, D]
    pub(in crate::train::stage1) rows: M<'a, B>,
    /// [n + 1, D]: their gradients, which heads write, then zeros
    pub(in crate::train::stage1) drows: M<'a, B>,
    /// [1, text rows]: for each row of text its row of `drows`
    pub(in crate::train::stage1) from: ViewMut<'a, B, u32>,
}

impl<'a, B: Backend> PickedActs<'a, B> {
    pub(in crate::train::stage1) fn carve(
        cursor: &mut Cursor<'a, B>,
        count: usize,
        text_rows: usize,
        hidden: usize,
    ) -> Self {
        Self {
            ids: cursor.take(1, count),
            rows: cursor.take(count, hidden),
            drows: cursor.take(count + 1, hidden),
            from: cursor.take(1, text_rows),
        }
    }

    /// Which rows of text are taken out: `picked` of the stream's, behind those of queries.
    pub(in crate::train::stage1) fn write(&mut self, b: &B, picked: &[u32], query_rows: usize) -> Result<()> {
        b.write_indices(picked, self.ids.reborrow())?;
        let mut from = vec![picked.len() as u32; self.from.cols()];
        for (&row, index) in picked.iter().zip(0..) {
            from[row as usize - query_rows] = index;
        }
        b.write_indices(&from, self.from.reborrow())
    }

    /// Takes the rows out of `output` [rows, D].
    pub(in crate::train::stage1) fn take(&mut self, b: &B, output: V<'_, B>) -> Result<()> {
        let (ids, y) = (self.ids.view(), self.rows.reborrow());
        b.embedding_forward(EmbeddingForward { ids, table: output.into(), positions: None, y })
    }

    /// The gradient of all rows of text, into `dtext` [text rows, D]: that of the rows taken out, else 0.
    pub(in crate::train::stage1) fn put_back(&mut self, b: &B, dtext: M<'_, B>) -> Result<()> {
        b.clear(self.drows.reborrow().split_rows(self.ids.cols()).1)?;
        let (ids, table) = (self.from.view(), self.drows.view().into());
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: dtext })
    }
}
