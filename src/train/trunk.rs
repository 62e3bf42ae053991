//! A stream from its embeddings through all blocks, and back.

use super::Recompute;
use super::plan::{Alone, Plan};
use crate::arena::Cursor;
use crate::config::QFormerConfig;
use crate::device::{M, SM, V, Write};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::block::{BlockActs, BlockGradients, BlockScratch, Inputs, Stream};
use crate::layers::cross_attention::ImageTokens;
use crate::layers::dropout::{PassDropout, Place};
use crate::layers::layer_norm::LayerNormActs;
use crate::layers::linear::Linear;
use crate::layers::self_attention::Attending;
use crate::ops::Backend;
use crate::ops::attention::SequenceSizes;
use crate::ops::dropout::{DropoutBackward, DropoutForward};
use crate::ops::embedding::{EmbeddingBackward, EmbeddingForward};
use crate::ops::pairs::PADDING;
use crate::qformer::Parameters;
use crate::tensor::ViewMut;

/// What a stream is embedded in and its blocks work in.
pub(super) struct TrunkActs<'a, B: Backend> {
    /// [1, query rows]
    pub(super) query_ids: ViewMut<'a, B, u32>,
    /// [1, text rows]
    pub(super) tokens: ViewMut<'a, B, u32>,
    /// [1, text rows]
    pub(super) positions: ViewMut<'a, B, u32>,
    /// Tables of self-attention's sequences, each [1, words]
    pub(super) attending: Vec<ViewMut<'a, B, u32>>,
    /// Table of the query sets over their images [1, words]
    pub(super) cross: ViewMut<'a, B, u32>,
    /// [rows, D]
    embedded: M<'a, B>,
    norm: LayerNormActs<'a, B>,
    /// [rows, D]
    normed: M<'a, B>,
    /// [rows, D]: the blocks' inputs, then the last one's output
    x: Vec<M<'a, B>>,
    blocks: Blocks<'a, B>,
}

/// What the blocks of a stream work in.
struct Blocks<'a, B: Backend> {
    recompute: Recompute,
    /// One for each, or one for all in turn, in which the last one's work stays.
    acts: Vec<BlockActs<'a, B>>,
    /// Queries, keys and values [rows, 3·D] of each block but the last, where all share the rest and a
    /// later stream sees these.
    qkv: Vec<M<'a, B>>,
}

/// Whether a later stream sees the keys and values of this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    ByLater,
    ByNone,
}

impl<'a, B: Backend> Blocks<'a, B> {
    fn carve(
        cursor: &mut Cursor<'a, B>,
        plan: &Plan,
        config: &QFormerConfig,
        recompute: Recompute,
        seen: Seen,
    ) -> Self {
        let (rows, layers) = (plan.rows(), config.num_hidden_layers);
        let split = [plan.query_rows(), rows - plan.query_rows()];
        let (own, kept) = match (recompute, seen) {
            (Recompute::None, _) => (layers, 0),
            (Recompute::Blocks, Seen::ByLater) => (1, layers - 1),
            (Recompute::Blocks, Seen::ByNone) => (1, 0),
        };
        Self {
            recompute,
            acts: (0..own).map(|_| BlockActs::carve(cursor, split, config, Keep::ForBackward)).collect(),
            qkv: (0..kept).map(|_| cursor.take(rows, 3 * config.hidden_size)).collect(),
        }
    }

    /// What a block works in, for as long as `work` lasts.
    fn with<R>(&mut self, block: usize, work: impl FnOnce(&mut BlockActs<'a, B>) -> R) -> R {
        let own = block.min(self.acts.len() - 1);
        let Some(qkv) = self.qkv.get_mut(block) else { return work(&mut self.acts[own]) };
        std::mem::swap(&mut self.acts[own].attention.qkv, qkv);
        let result = work(&mut self.acts[own]);
        std::mem::swap(&mut self.acts[own].attention.qkv, qkv);
        result
    }

    /// Queries, keys and values of a block [rows, 3·D], of a stream that is seen.
    fn qkv(&self, block: usize) -> V<'_, B> {
        let own = block.min(self.acts.len() - 1);
        self.qkv.get(block).unwrap_or(&self.acts[own].attention.qkv).view()
    }
}

impl<'a, B: Backend> TrunkActs<'a, B> {
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        plan: &Plan,
        config: &QFormerConfig,
        recompute: Recompute,
        seen: Seen,
    ) -> Self {
        let (rows, hidden) = (plan.rows(), config.hidden_size);
        Self {
            query_ids: cursor.take(1, plan.query_rows()),
            tokens: cursor.take(1, plan.text_rows),
            positions: cursor.take(1, plan.text_rows),
            attending: plan.attending.iter().map(|(s, ..)| cursor.take(1, s.words())).collect(),
            cross: cursor.take(1, plan.cross.words()),
            embedded: cursor.take(rows, hidden),
            norm: LayerNormActs::carve(cursor, rows, hidden, Keep::ForBackward).expect("kept"),
            normed: cursor.take(rows, hidden),
            x: (0..=config.num_hidden_layers).map(|_| cursor.take(rows, hidden)).collect(),
            blocks: Blocks::carve(cursor, plan, config, recompute, seen),
        }
    }

    /// What it is embedded from, and who attends to whom; a set of `queries` rows an image.
    pub(super) fn write(&mut self, b: &B, alone: &Alone, queries: usize) -> Result<()> {
        let ids: Vec<u32> = (0..alone.plan.query_rows()).map(|row| (row % queries) as u32).collect();
        b.write_indices(&ids, self.query_ids.reborrow())?;
        b.write_indices(&alone.tokens, self.tokens.reborrow())?;
        b.write_indices(&alone.positions, self.positions.reborrow())?;
        alone.own.place(b, self.attending[0].reborrow())?;
        alone.cross.place(b, self.cross.reborrow())?;
        Ok(())
    }

    /// The last block's output [rows, D].
    pub(super) fn output(&self) -> V<'_, B> {
        self.x.last().expect("the input and the blocks' outputs").view()
    }
}

/// What a stream is computed with.
#[derive(Clone, Copy)]
pub(super) struct Trunk<'a, B: Backend> {
    pub(super) config: &'a QFormerConfig,
    pub(super) parameters: &'a Parameters<V<'a, B>>,
    /// The folded projections of the image, weight [layers·2·D, W]
    pub(super) image_kv: &'a Linear<V<'a, B>>,
    /// Keys and values of the images for all blocks [B·N, layers·2·D]
    pub(super) keys_values: V<'a, B>,
    pub(super) dropout: PassDropout<'a, B>,
}

/// Where a stream's backward pass writes, beyond its own.
pub(super) struct TrunkGradients<'a, B: Backend> {
    /// [B·N, layers·2·D]: replaced or added to
    pub(super) keys_values: (Write, M<'a, B>),
    /// Those of the queries, keys and values of this stream [rows, 3·D], one for all blocks, which is
    /// replaced, or one for each, whose keys and values are added to.
    pub(super) qkv: Qkv<'a, B>,
    /// Those of an earlier stream [rows, 3·D], for each block, whose keys and values are added to.
    pub(super) earlier: Option<Vec<M<'a, B>>>,
}

/// Gradients of queries, keys and values.
pub(super) enum Qkv<'a, B: Backend> {
    One(M<'a, B>),
    Each(Vec<M<'a, B>>),
}

impl<B: Backend> Trunk<'_, B> {
    /// From what was written to `acts` to `acts.output()`; `earlier` is a stream whose queries this one sees.
    pub(super) fn forward(
        &self,
        b: &B,
        plan: &Plan,
        acts: &mut TrunkActs<'_, B>,
        earlier: Option<&TrunkActs<'_, B>>,
    ) -> Result<()> {
        let (parameters, query_rows) = (self.parameters, plan.query_rows());
        let words = parameters.text_embeddings.as_ref().expect("a model that reads text");
        let (of_queries, of_text) = acts.embedded.reborrow().split_rows(query_rows);
        let (ids, table) = (acts.query_ids.view(), parameters.query_tokens);
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: of_queries })?;
        let positions = Some((acts.positions.view(), words.positions));
        let (ids, table) = (acts.tokens.view(), words.words);
        b.embedding_forward(EmbeddingForward { ids, table, positions, y: of_text })?;
        let dropout = self.dropout.at(0, Place::Embedding);
        let to = if dropout.is_some() { &mut acts.normed } else { &mut acts.x[0] };
        let (embedded, norm) = (acts.embedded.view(), &mut acts.norm);
        parameters.embedding_norm.training_forward(b, embedded, None, None, Some(norm), to.reborrow())?;
        if let Some(dropout) = dropout {
            let (x, y) = (acts.normed.view(), acts.x[0].reborrow());
            b.dropout_forward(DropoutForward { dropout, x, y })?;
        }

        let TrunkActs { attending, cross, x, blocks, .. } = acts;
        let attending = placed(plan, attending);
        let stream = self.stream(plan, &attending, cross);
        for (index, block) in parameters.blocks.iter().enumerate() {
            let inputs = self.inputs(index, earlier);
            let (x, y) = x[index..].split_at_mut(1);
            let (x, y) = (x[0].view(), y[0].reborrow());
            blocks.with(index, |acts| block.forward(b, x, &stream, &inputs, acts, y))?;
        }
        Ok(())
    }

    /// From the gradient of the output in `d[0]` [rows, D], with `d[1]` [rows, D] to work in, to those of
    /// the parameters.
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(super) fn backward(
        &self,
        b: &B,
        plan: &Plan,
        acts: &mut TrunkActs<'_, B>,
        earlier: Option<&TrunkActs<'_, B>>,
        gradients: &mut Parameters<SM<'_, B>>,
        mut to: TrunkGradients<'_, B>,
        [mut dy, mut dx]: [M<'_, B>; 2],
        scratch: &mut BlockScratch<'_, B>,
    ) -> Result<()> {
        let parameters = self.parameters;
        let TrunkActs { attending, cross, x, blocks, .. } = acts;
        let attending = placed(plan, attending);
        let stream = self.stream(plan, &attending, cross);
        let last = parameters.blocks.len() - 1;
        for (index, block) in parameters.blocks.iter().enumerate().rev() {
            let inputs = self.inputs(index, earlier);
            let (write, keys_values) = &mut to.keys_values;
            let block_to = BlockGradients {
                keys_values: (*write, keys_values.reborrow()),
                qkv: match &mut to.qkv {
                    Qkv::One(qkv) => (Write::Replace, qkv.reborrow()),
                    Qkv::Each(each) => (Write::Add, each[index].reborrow()),
                },
                earlier: to.earlier.as_mut().map(|each| each[index].reborrow()),
            };
            let again = blocks.recompute == Recompute::Blocks && index < last;
            let (x, y) = x[index..].split_at_mut(1);
            let (x, y) = (x[0].view(), y[0].reborrow());
            blocks.with(index, |acts| {
                if again {
                    block.forward(b, x, &stream, &inputs, acts, y)?;
                }
                let (dy, gradients) = (dy.view(), &mut gradients.blocks[index]);
                block.backward(b, x, &stream, &inputs, acts, dy, gradients, block_to, scratch, dx.reborrow())
            })?;
            std::mem::swap(&mut dy, &mut dx);
        }

        if let Some(dropout) = self.dropout.at(0, Place::Embedding) {
            b.dropout_backward(DropoutBackward { dropout, dy: dy.view(), dx: dx.reborrow() })?;
            std::mem::swap(&mut dy, &mut dx);
        }
        let (norm, partials) = (&mut gradients.embedding_norm, &mut scratch.layers.partials);
        let to = (dx.reborrow(), None);
        parameters.embedding_norm.backward(b, &acts.norm, None, dy.view(), norm, partials, to)?;
        let dembedded = dx.view();
        b.embedding_backward(EmbeddingBackward {
            ids: acts.query_ids.view(),
            frozen: None,
            dy: dembedded.row_range(0..plan.query_rows()),
            dtable: gradients.query_tokens.reborrow(),
            dpositions: None,
        })?;
        let words = gradients.text_embeddings.as_mut().expect("as the parameters");
        b.embedding_backward(EmbeddingBackward {
            ids: acts.tokens.view(),
            frozen: Some(PADDING),
            dy: dembedded.row_range(plan.query_rows()..plan.rows()),
            dtable: words.words.reborrow(),
            dpositions: Some((acts.positions.view(), words.positions.reborrow())),
        })
    }

    fn stream<'s>(
        &'s self,
        plan: &'s Plan,
        attending: &'s [Attending<'s, B>],
        cross: &'s ViewMut<'_, B, u32>,
    ) -> Stream<'s, B> {
        let (hidden, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        let sequences = plan.cross.placed_at(cross.view());
        Stream {
            query_rows: plan.query_rows(),
            attending,
            heads,
            scale: 1.0 / ((hidden / heads) as f64).sqrt(),
            image: Some(ImageTokens::KeysValues { keys_values: self.keys_values, sequences }),
            dropout: Some(self.dropout),
        }
    }

    fn inputs<'s>(&'s self, block: usize, earlier: Option<&'s TrunkActs<'_, B>>) -> Inputs<'s, B> {
        Inputs {
            block,
            cross: block / self.config.cross_attention_frequency,
            image_kv: self.image_kv,
            earlier: earlier.map(|acts| acts.blocks.qkv(block)),
        }
    }
}

/// The plan's self-attention with its tables.
fn placed<'s, B: Backend>(plan: &Plan, tables: &'s [ViewMut<'_, B, u32>]) -> Vec<Attending<'s, B>> {
    let placed = |(&(sizes, mask, first_keys), table): (&(SequenceSizes, _, _), &'s ViewMut<'_, B, u32>)| {
        Attending { sequences: sizes.placed_at(table.view()), mask, first_keys }
    };
    plan.attending.iter().zip(tables).map(placed).collect()
}
