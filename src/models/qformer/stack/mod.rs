//! The Q-Former's stack: a stream from its embeddings through all blocks, and back. Every pass, in inference and in
//! training, is this one over another stream.

mod acts;
mod block;
mod plan;

pub(crate) use acts::{Kept, Seen, StackActs, StreamInputs};
pub use block::Block;
pub(crate) use block::{BlockActs, BlockGradients, BlockScratch};
pub(crate) use plan::StreamPlan;

use super::Parameters;
use crate::config::QFormerConfig;
use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::layers::dropout::{PassDropout, Place};
use crate::layers::kv_cache::CacheStep;
use crate::layers::linear::Linear;
use crate::layers::stream::{AttentionGroup, ImageTokens, Inputs, Stream};
use crate::ops::Backend;
use crate::ops::attention::SequenceSizes;
use crate::ops::dropout::{DropoutBackward, DropoutForward};
use crate::ops::embedding::{EmbeddingBackward, EmbeddingForward};
use crate::ops::pairs::PADDING;
use crate::tensor::ViewMut;

/// What a stream is computed with.
pub(crate) struct Stack<'a, B: Backend> {
    pub(crate) config: &'a QFormerConfig,
    pub(crate) parameters: &'a Parameters<W<'a, B>>,
    /// All of the parameters' blocks, or the first of them.
    pub(crate) blocks: &'a [Block<W<'a, B>>],
    /// Projections of the image for all blocks: weight [layers·2·D, W]
    pub(crate) image_kv: &'a Linear<W<'a, B>>,
    /// What the query rows attend to; absent without query rows.
    pub(crate) image: Option<Image<'a, B>>,
    /// Absent in inference.
    pub(crate) dropout: Option<PassDropout<'a, B>>,
}

/// What the queries attend to.
pub(crate) enum Image<'a, B: Backend> {
    /// Normalised features [I·N, W] of so many images, each read by one query set.
    Features(V<'a, B>, usize),
    /// Keys and values of the images for all blocks [I·N, layers·2·D]
    KeysValues(V<'a, B>),
}

/// What a forward pass is given beside what was written to its acts.
pub(crate) struct Given<'g, 'm, B: Backend> {
    /// The queries after the first block's self-attention [Q, D], where they are known: then nothing is embedded.
    pub(crate) attended: Option<V<'g, B>>,
    /// Queries, keys and values of an earlier stream in each block [rows, 3·D], which this one sees.
    pub(crate) earlier: Option<Vec<V<'g, B>>>,
    /// Takes those of this stream, for each block [rows, 3·D].
    pub(crate) kept: Option<&'g mut [M<'m, B>]>,
    /// The texts so far, each of which a row of this stream continues.
    pub(crate) cached: Option<CacheStep<'g, 'm, B>>,
}

/// Where a stream's backward pass writes, beyond its own.
pub(crate) struct StackGradients<'a, B: Backend> {
    /// [B·N, layers·2·D]: replaced or added to
    pub(crate) keys_values: (Write, M<'a, B>),
    /// Those of the queries, keys and values of this stream [rows, 3·D], one for all blocks, which is
    /// replaced, or one for each, whose keys and values are added to.
    pub(crate) qkv: Qkv<'a, B>,
    /// Those of an earlier stream [rows, 3·D], for each block, whose keys and values are added to.
    pub(crate) earlier: Option<Vec<M<'a, B>>>,
}

/// Gradients of queries, keys and values.
pub(crate) enum Qkv<'a, B: Backend> {
    One(M<'a, B>),
    Each(Vec<M<'a, B>>),
}

impl<B: Backend> Given<'_, '_, B> {
    /// Nothing.
    pub(crate) fn nothing() -> Self {
        Self { attended: None, earlier: None, kept: None, cached: None }
    }
}

impl<B: Backend> Stack<'_, B> {
    /// From what was written to `acts` to `acts.output()`.
    pub(crate) fn forward(
        &self,
        b: &B,
        plan: &StreamPlan,
        acts: &mut StackActs<'_, B>,
        mut given: Given<'_, '_, B>,
    ) -> Result<()> {
        if given.attended.is_none() {
            self.embed(b, plan, acts)?;
        }
        let StackActs { query_ids, groups, cross, x, blocks, .. } = acts;
        let groups = placed(plan, groups);
        let stream = self.stream(plan, &groups, cross.as_ref());
        for (index, block) in self.blocks.iter().enumerate() {
            let inputs = self.inputs(index, given.earlier.as_deref());
            let (x, y) = around(x, index);
            blocks.with(index, |acts| {
                let attended = acts.attended.reborrow();
                match (given.attended, &mut given.cached) {
                    (Some(table), _) if index == 0 => b.embedding_forward(EmbeddingForward {
                        ids: query_ids.view(),
                        table: table.into(),
                        positions: None,
                        y: attended,
                    })?,
                    (_, Some(step)) => {
                        let acts = &mut acts.attention;
                        block.attention.cached_forward(b, x, &stream, &inputs, step, acts, attended)?;
                    }
                    _ => {
                        let kept = given.kept.as_mut().map(|kept| kept[index].reborrow());
                        let acts = &mut acts.attention;
                        block.attention.forward(b, x, &stream, &inputs, kept, acts, attended)?;
                    }
                }
                block.forward(b, &stream, &inputs, acts, y)
            })?;
        }
        Ok(())
    }

    /// What the first block's self-attention makes of the stream, into `y` [rows, D].
    pub(crate) fn first_attention(
        &self,
        b: &B,
        plan: &StreamPlan,
        acts: &mut StackActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        self.embed(b, plan, acts)?;
        let StackActs { groups, x, blocks, .. } = acts;
        let groups = placed(plan, groups);
        let (stream, inputs) = (self.stream(plan, &groups, None), self.inputs(0, None));
        let attention = &self.blocks[0].attention;
        blocks
            .with(0, |acts| attention.forward(b, x[0].view(), &stream, &inputs, None, &mut acts.attention, y))
    }

    /// The embeddings of queries and text, normed, into the first block's input.
    fn embed(&self, b: &B, plan: &StreamPlan, acts: &mut StackActs<'_, B>) -> Result<()> {
        let StackActs { query_ids, tokens, positions, norm, normed, x, .. } = acts;
        // Where the first block's output will be.
        let [input, embedded, ..] = &mut x[..] else { unreachable!("a stack has a block") };
        let (of_queries, of_text) = embedded.reborrow().split_rows(plan.query_rows());
        if plan.sets > 0 {
            let (ids, table) = (query_ids.view(), self.parameters.query_tokens);
            b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: of_queries })?;
        }
        if plan.text_rows > 0 {
            let words = self.parameters.text_embeddings.as_ref().expect("a model that reads text");
            let positions = Some((positions.view(), words.positions.matrix()));
            let (ids, table) = (tokens.view(), words.words);
            b.embedding_forward(EmbeddingForward { ids, table, positions, y: of_text })?;
        }
        let dropout = self.dropout.and_then(|dropout| dropout.at(0, Place::Embedding));
        let (embedded, layer) = (embedded.view(), &self.parameters.embedding_norm);
        let Some(dropout) = dropout else {
            return layer.training_forward(b, embedded, None, None, norm.as_mut(), input.reborrow());
        };
        let normed = normed.as_mut().expect("kept for the backward pass");
        layer.training_forward(b, embedded, None, None, norm.as_mut(), normed.reborrow())?;
        b.dropout_forward(DropoutForward { dropout, x: normed.view(), y: input.reborrow() })
    }

    /// From the gradient of the output in `d[0]` [rows, D], with `d[1]` [rows, D] to work in, to those of
    /// the parameters.
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(crate) fn backward(
        &self,
        b: &B,
        plan: &StreamPlan,
        acts: &mut StackActs<'_, B>,
        earlier: Option<&[V<'_, B>]>,
        gradients: &mut Parameters<SM<'_, B>>,
        mut to: StackGradients<'_, B>,
        [mut dy, mut dx]: [M<'_, B>; 2],
        scratch: &mut BlockScratch<'_, B>,
    ) -> Result<()> {
        let StackActs { groups, cross, x, blocks, .. } = acts;
        let groups = placed(plan, groups);
        let stream = self.stream(plan, &groups, cross.as_ref());
        let last = self.blocks.len() - 1;
        for (index, block) in self.blocks.iter().enumerate().rev() {
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
            let again = matches!(blocks.kept, Kept::Inputs(_)) && index < last;
            let (x, y) = around(x, index);
            blocks.with(index, |acts| {
                if again {
                    let attended = acts.attended.reborrow();
                    let layer_acts = &mut acts.attention;
                    block.attention.forward(b, x, &stream, &inputs, None, layer_acts, attended)?;
                    block.forward(b, &stream, &inputs, acts, y)?;
                }
                let (dy, gradients) = (dy.view(), &mut gradients.blocks[index]);
                block.backward(b, x, &stream, &inputs, acts, dy, gradients, block_to, scratch, dx.reborrow())
            })?;
            std::mem::swap(&mut dy, &mut dx);
        }
        self.embed_backward(b, plan, acts, gradients, [dy, dx], scratch)
    }

    /// From the gradient of the first block's input in `d[0]` [rows, D], with `d[1]` [rows, D] to work in.
    fn embed_backward(
        &self,
        b: &B,
        plan: &StreamPlan,
        acts: &StackActs<'_, B>,
        gradients: &mut Parameters<SM<'_, B>>,
        [mut dy, mut dx]: [M<'_, B>; 2],
        scratch: &mut BlockScratch<'_, B>,
    ) -> Result<()> {
        if let Some(dropout) = self.dropout.and_then(|dropout| dropout.at(0, Place::Embedding)) {
            b.dropout_backward(DropoutBackward { dropout, dy: dy.view(), dx: dx.reborrow() })?;
            std::mem::swap(&mut dy, &mut dx);
        }
        let norm_acts = acts.norm.as_ref().expect("kept for the backward pass");
        let (norm, partials) = (&mut gradients.embedding_norm, &mut scratch.layers.partials);
        let to = (dx.reborrow(), None);
        self.parameters.embedding_norm.backward(b, norm_acts, None, dy.view(), norm, partials, to)?;
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
        plan: &StreamPlan,
        groups: &'s [AttentionGroup<'s, B>],
        cross: Option<&'s ViewMut<'_, B, u32>>,
    ) -> Stream<'s, B> {
        let (hidden, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        let image = self.image.as_ref().map(|image| match *image {
            Image::Features(features, images) => ImageTokens::Features { features, images },
            Image::KeysValues(keys_values) => {
                let (sizes, table) = plan.cross.zip(cross).expect("a stream with query rows");
                ImageTokens::KeysValues { keys_values, sequences: sizes.placed_at(table.view()) }
            }
        });
        Stream {
            query_rows: plan.query_rows(),
            groups,
            heads,
            scale: 1.0 / ((hidden / heads) as f64).sqrt(),
            image,
            dropout: self.dropout,
        }
    }

    fn inputs<'s>(&'s self, block: usize, earlier: Option<&[V<'s, B>]>) -> Inputs<'s, B> {
        Inputs {
            block,
            cross: block / self.config.cross_attention_frequency,
            image_kv: self.image_kv,
            earlier: earlier.map(|each| each[block]),
        }
    }
}

/// The input of a block, and where its output goes.
fn around<'x, B: Backend>(x: &'x mut [M<'_, B>], block: usize) -> (V<'x, B>, M<'x, B>) {
    let count = x.len();
    let [input, output] = x
        .get_disjoint_mut([block % count, (block + 1) % count])
        .expect("two, or one more than there are blocks");
    (input.view(), output.reborrow())
}

/// The plan's self-attention with its tables.
fn placed<'s, B: Backend>(
    plan: &StreamPlan,
    tables: &'s [ViewMut<'_, B, u32>],
) -> Vec<AttentionGroup<'s, B>> {
    let placed = |(&(sizes, mask, first_keys), table): (&(SequenceSizes, _, _), &'s ViewMut<'_, B, u32>)| {
        AttentionGroup { sequences: sizes.placed_at(table.view()), mask, first_keys }
    };
    plan.groups.iter().zip(tables).map(placed).collect()
}
