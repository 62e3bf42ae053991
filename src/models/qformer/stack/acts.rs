//! What a stream is embedded in and its blocks work in.

use super::block::BlockActs;
use super::plan::StreamPlan;
use crate::config::QFormerConfig;
use crate::device::{M, V};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::layer_norm::LayerNormActs;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::attention::Sequences;
use crate::tensor::ViewMut;

/// What stays of a pass over a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// The output alone: inference, in which all blocks work in the same memory.
    Output,
    /// All that the backward pass needs.
    Everything,
    /// What enters each block; the backward pass computes the rest again. Whether a later stream sees this one's keys
    /// and values, which then stay too.
    Inputs(Seen),
}

/// Whether a later stream sees the keys and values of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    ByLater,
    ByNone,
}

/// What a stream is embedded in and its blocks work in.
pub(crate) struct StackActs<'a, B: Backend> {
    /// [1, query rows]: rows of the table of queries
    pub(crate) query_ids: ViewMut<'a, B, u32>,
    /// [1, text rows]
    pub(crate) tokens: ViewMut<'a, B, u32>,
    /// [1, text rows]: places of the tokens in their texts
    pub(crate) positions: ViewMut<'a, B, u32>,
    /// Tables of self-attention's sequences, each [1, words]
    pub(crate) groups: Vec<ViewMut<'a, B, u32>>,
    /// Table of the query sets over their images [1, words]
    pub(crate) cross: Option<ViewMut<'a, B, u32>>,
    /// Of the embeddings' norm.
    pub(super) norm: Option<LayerNormActs<'a, B>>,
    /// [rows, D]: the normed embeddings, before dropout
    pub(super) normed: Option<M<'a, B>>,
    /// [rows, D]: the blocks' inputs, then the last one's output; or two that are both in turns
    pub(super) x: Vec<M<'a, B>>,
    pub(super) blocks: Blocks<'a, B>,
}

/// What the blocks of a stream work in.
pub(super) struct Blocks<'a, B: Backend> {
    pub(super) kept: Kept,
    /// One for each, or one for all in turn, in which the last one's work stays.
    acts: Vec<BlockActs<'a, B>>,
    /// Queries, keys and values [rows, 3·D] of each block but the last, where all share the rest and a
    /// later stream sees these.
    qkv: Vec<M<'a, B>>,
}

/// What the host knows of a stream.
pub(crate) struct StreamInputs<'s> {
    /// Q
    pub(crate) queries: usize,
    /// [text rows]
    pub(crate) tokens: &'s [u32],
    /// [text rows]
    pub(crate) positions: &'s [u32],
    pub(crate) sequences: &'s Sequences,
    pub(crate) cross: Option<&'s Sequences>,
}

impl<'s> StreamInputs<'s> {
    /// Of a stream of text alone.
    pub(crate) fn of_text(tokens: &'s [u32], positions: &'s [u32], sequences: &'s Sequences) -> Self {
        Self { queries: 1, tokens, positions, sequences, cross: None }
    }
}

impl<'a, B: Backend> Blocks<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, plan: &StreamPlan, config: &QFormerConfig, kept: Kept) -> Self {
        let (rows, layers) = (plan.rows(), config.num_hidden_layers);
        let split = [plan.query_rows(), plan.text_rows];
        let (own, qkv, keep) = match kept {
            Kept::Output => (1, 0, Keep::Nothing),
            Kept::Everything => (layers, 0, Keep::ForBackward),
            Kept::Inputs(Seen::ByLater) => (1, layers - 1, Keep::ForBackward),
            Kept::Inputs(Seen::ByNone) => (1, 0, Keep::ForBackward),
        };
        Self {
            kept,
            acts: (0..own).map(|_| BlockActs::carve(cursor, split, config, keep)).collect(),
            qkv: (0..qkv).map(|_| cursor.take(rows, 3 * config.hidden_size)).collect(),
        }
    }

    fn own(&self, block: usize) -> usize {
        block.min(self.acts.len() - 1)
    }

    /// What a block works in, for as long as `work` lasts.
    pub(super) fn with<R>(&mut self, block: usize, work: impl FnOnce(&mut BlockActs<'a, B>) -> R) -> R {
        let own = self.own(block);
        let Some(qkv) = self.qkv.get_mut(block) else { return work(&mut self.acts[own]) };
        std::mem::swap(&mut self.acts[own].attention.qkv, qkv);
        let result = work(&mut self.acts[own]);
        std::mem::swap(&mut self.acts[own].attention.qkv, qkv);
        result
    }
}

impl<'a, B: Backend> StackActs<'a, B> {
    pub(crate) fn carve(
        cursor: &mut Cursor<'a, B>,
        plan: &StreamPlan,
        config: &QFormerConfig,
        kept: Kept,
    ) -> Self {
        let (rows, hidden) = (plan.rows(), config.hidden_size);
        let (inputs, keep) = match kept {
            Kept::Output => (2, Keep::Nothing),
            Kept::Everything | Kept::Inputs(_) => (config.num_hidden_layers + 1, Keep::ForBackward),
        };
        Self {
            query_ids: cursor.take(1, plan.query_rows()),
            tokens: cursor.take(1, plan.text_rows),
            positions: cursor.take(1, plan.text_rows),
            groups: plan.groups.iter().map(|(s, ..)| cursor.take(1, s.words())).collect(),
            cross: plan.cross.map(|sizes| cursor.take(1, sizes.words())),
            norm: LayerNormActs::carve(cursor, rows, hidden, keep),
            normed: (keep == Keep::ForBackward).then(|| cursor.take(rows, hidden)),
            x: (0..inputs).map(|_| cursor.take(rows, hidden)).collect(),
            blocks: Blocks::carve(cursor, plan, config, kept),
        }
    }

    /// What the stream is embedded from, and who attends to whom.
    pub(crate) fn write(&mut self, b: &B, inputs: &StreamInputs<'_>) -> Result<()> {
        let ids = 0..self.query_ids.cols();
        let ids: Vec<u32> = ids.map(|row| (row % inputs.queries) as u32).collect();
        b.write_indices(&ids, self.query_ids.reborrow())?;
        b.write_indices(inputs.tokens, self.tokens.reborrow())?;
        b.write_indices(inputs.positions, self.positions.reborrow())?;
        inputs.sequences.place(b, self.groups[0].reborrow())?;
        if let (Some(cross), Some(table)) = (inputs.cross, &mut self.cross) {
            cross.place(b, table.reborrow())?;
        }
        Ok(())
    }

    /// The output of a stack of so many blocks [rows, D].
    pub(crate) fn output(&self, blocks: usize) -> V<'_, B> {
        self.x[blocks % self.x.len()].view()
    }

    /// What block `block` worked in, if it was the last or all is kept.
    pub(crate) fn block(&self, block: usize) -> &BlockActs<'a, B> {
        &self.blocks.acts[self.blocks.own(block)]
    }

    /// Queries, keys and values of each block [rows, 3·D], of a stream that is seen by a later one.
    pub(crate) fn qkv(&self, blocks: usize) -> Vec<V<'_, B>> {
        let of_block =
            |block| self.blocks.qkv.get(block).unwrap_or_else(|| &self.block(block).attention.qkv).view();
        (0..blocks).map(of_block).collect()
    }
}
