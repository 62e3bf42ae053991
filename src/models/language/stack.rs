//! The blocks of a language model, one after the other, in inference.

use super::parameters::{Architecture, Block, NormPlace, Stack};
use crate::device::{M, S, V, W};
use crate::error::Result;
use crate::layers::Norm;
use crate::layers::kv_cache::CacheStep;
use crate::layers::linear::Fused;
use crate::layers::mlp::MlpActs;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::attention::{Attention, AttentionForward, DistanceBias, Mask, PlacedSequences};

/// What the blocks work in.
pub(super) struct StackActs<'a, B: Backend> {
    /// [rows, D]: what enters a layer
    x: M<'a, B>,
    /// [rows, D]: what leaves it
    y: M<'a, B>,
    /// [rows, D]
    normed: M<'a, B>,
    /// Queries, keys and values [rows, 3·I]
    qkv: M<'a, B>,
    /// Queries of cross-attention [rows, I]
    query: M<'a, B>,
    /// [rows, I]
    context: M<'a, B>,
    mlp: MlpActs<'a, B>,
}

/// What self-attention of a stack reads besides its rows.
pub(super) struct SelfInputs<'a, 'm, B: Backend> {
    pub(super) sequences: PlacedSequences<'a, B>,
    pub(super) mask: Mask,
    /// [H, 2·reach + 1]
    pub(super) bias: Option<S<'a, B>>,
    /// Keys and values of the rows before, in which those of these rows are written; none where the rows are whole
    /// sequences.
    pub(super) cache: Option<CacheStep<'a, 'm, B>>,
}

/// What cross-attention of a stack reads.
pub(super) struct CrossInputs<'a, B: Backend> {
    /// Keys and values for all blocks [encoder rows, blocks·2·I]
    pub(super) keys_values: V<'a, B>,
    /// Rows of the stack against rows of the encoder.
    pub(super) sequences: PlacedSequences<'a, B>,
}

impl<'a, B: Backend> StackActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, rows: usize, architecture: &Architecture) -> Self {
        let Architecture { hidden, inner, intermediate, gating, start, .. } = *architecture;
        Self {
            x: cursor.take(rows, hidden),
            y: cursor.take(rows, hidden),
            normed: cursor.take(rows, hidden),
            qkv: cursor.take(rows, 3 * inner),
            query: cursor.take(rows, if start.is_some() { inner } else { 0 }),
            context: cursor.take(rows, inner),
            mlp: MlpActs::carve(cursor, rows, intermediate, gating),
        }
    }

    /// What enters the first block [rows, D].
    pub(super) fn input(&mut self) -> M<'_, B> {
        self.x.reborrow()
    }
}

/// A matrix of which one layer reads what the one before has written, in turns.
struct Turns<'a, B: Backend> {
    x: M<'a, B>,
    y: M<'a, B>,
    norms: NormPlace,
}

impl<B: Backend> Turns<'_, B> {
    /// y = layer(norm(x)) + x, or norm(layer(x) + x), which is the next x; `layer` is given its input, x and y.
    fn apply(
        &mut self,
        b: &B,
        norm: &Norm<W<'_, B>>,
        normed: &mut M<'_, B>,
        layer: impl FnOnce(V<'_, B>, V<'_, B>, M<'_, B>) -> Result<()>,
    ) -> Result<()> {
        match self.norms {
            NormPlace::Before => {
                norm.forward(b, self.x.view(), normed.reborrow())?;
                layer(normed.view(), self.x.view(), self.y.reborrow())?;
                std::mem::swap(&mut self.x, &mut self.y);
                Ok(())
            }
            NormPlace::After => {
                layer(self.x.view(), self.x.view(), self.y.reborrow())?;
                norm.forward(b, self.y.view(), self.x.reborrow())
            }
        }
    }
}

impl<B: Backend> Stack<W<'_, B>> {
    /// The last block's output [rows, D], without the last norm, from what is in [`StackActs::input`].
    pub(super) fn forward<'s>(
        &self,
        b: &B,
        architecture: &Architecture,
        own: &mut SelfInputs<'_, '_, B>,
        cross: Option<&CrossInputs<'_, B>>,
        acts: &'s mut StackActs<'_, B>,
    ) -> Result<V<'s, B>> {
        let StackActs { x, y, normed, qkv, query, context, mlp } = acts;
        let mut turns = Turns { x: x.reborrow(), y: y.reborrow(), norms: architecture.norms };
        for (index, block) in self.blocks.iter().enumerate() {
            turns.apply(b, &block.attention.norm, normed, |n, x, y| {
                block.attention_forward(b, architecture, index, own, [n, x], [qkv, context], y)
            })?;
            if let (Some(layer), Some(inputs)) = (&block.cross, cross) {
                turns.apply(b, &layer.norm, normed, |n, x, y| {
                    block.cross_attention_forward(b, architecture, index, inputs, [n, x], [query, context], y)
                })?;
            }
            turns.apply(b, &block.mlp_norm, normed, |n, x, y| block.mlp.forward(b, n, x, mlp, y))?;
        }
        Ok(turns.x.into_view())
    }
}

impl<B: Backend> Block<W<'_, B>> {
    /// y [rows, D] = Wₒ·attention(n) + bₒ + x
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one layer here")]
    fn attention_forward(
        &self,
        b: &B,
        architecture: &Architecture,
        index: usize,
        inputs: &mut SelfInputs<'_, '_, B>,
        [n, x]: [V<'_, B>; 2],
        [qkv, context]: [&mut M<'_, B>; 2],
        y: M<'_, B>,
    ) -> Result<()> {
        let inner = architecture.inner;
        let &mut SelfInputs { sequences, mask, bias, ref mut cache } = inputs;
        self.attention.qkv.forward(b, n, qkv.reborrow())?;
        let part = |part: usize| qkv.view().columns(part * inner..(part + 1) * inner);
        let (q, out) = (part(0), context.reborrow());
        let what = Attention {
            sequences,
            heads: architecture.heads,
            mask,
            scale: architecture.scale,
            bias: bias.map(|table| DistanceBias { table }),
            dropout: None,
        };
        match cache {
            None => {
                let (k, v) = (part(1), part(2));
                let args = AttentionForward { q, k, v, prefix: None, key_rows: None, out, lse: None };
                b.attention_forward(what, args)?;
            }
            Some(step) => {
                let keys_values = qkv.view().columns(inner..3 * inner);
                let [k, v] = step.cache.extend(b, index, step.slots, keys_values)?;
                let key_rows = Some(step.rows);
                b.attention_forward(
                    what,
                    AttentionForward { q, k, v, prefix: None, key_rows, out, lse: None },
                )?;
            }
        }
        let fused = Fused { activation: None, residual: Some(x), pre_activation: None };
        self.attention.output.fused_forward(b, context.view(), fused, y)
    }

    /// y [rows, D] = Wₒ·attention(n, encoder's output) + x
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one layer here")]
    fn cross_attention_forward(
        &self,
        b: &B,
        architecture: &Architecture,
        index: usize,
        inputs: &CrossInputs<'_, B>,
        [n, x]: [V<'_, B>; 2],
        [query, context]: [&mut M<'_, B>; 2],
        y: M<'_, B>,
    ) -> Result<()> {
        let (inner, layer) = (architecture.inner, self.cross.as_ref().expect("a block with cross-attention"));
        layer.query.forward(b, n, query.reborrow())?;
        let first = 2 * index * inner;
        let (k, v) = (first..first + inner, first + inner..first + 2 * inner);
        b.attention_forward(
            Attention {
                sequences: inputs.sequences,
                heads: architecture.heads,
                mask: Mask::None,
                scale: architecture.scale,
                bias: None,
                dropout: None,
            },
            AttentionForward {
                q: query.view(),
                k: inputs.keys_values.columns(k),
                v: inputs.keys_values.columns(v),
                prefix: None,
                key_rows: None,
                out: context.reborrow(),
                lse: None,
            },
        )?;
        let fused = Fused { activation: None, residual: Some(x), pre_activation: None };
        layer.output.fused_forward(b, context.view(), fused, y)
    }
}
