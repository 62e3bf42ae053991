//! BERT's self-attention with its output layer: y = LN(x + Wₒ·attention(x) + bₒ)

use super::dropout::Place;
use super::kv_cache::CacheStep;
use super::layer_norm::LayerNormActs;
use super::stream::{FirstKeys, Inputs, Stream, parts, parts_mut};
use super::{Keep, LayerNorm, Linear, Scratch, first_rows};
use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::attention::{AttentionBackward, AttentionForward};
use crate::params::{Spec, Tree};

/// Self-attention over learned queries and text together: one set of weights for both.
#[derive(Clone, Debug)]
pub struct SelfAttention<T> {
    /// Queries, keys and values side by side: weight [3·D, D]
    pub qkv: Linear<T>,
    /// Wₒ [D, D]
    pub output: Linear<T>,
    /// [1, D]
    pub norm: LayerNorm<T>,
}

impl SelfAttention<Spec> {
    /// `name`.attention.{query,key,value}, `name`.output.{dense,LayerNorm}
    pub fn spec(name: &str, hidden: usize, epsilon: f64) -> Self {
        let qkv = ["query", "key", "value"].map(|part| format!("{name}.attention.{part}"));
        Self {
            qkv: Linear::fused(&qkv, hidden, hidden),
            output: Linear::spec(&format!("{name}.output.dense"), hidden, hidden),
            norm: LayerNorm::spec(&format!("{name}.output.LayerNorm"), hidden, epsilon),
        }
    }
}

impl<T> Tree<T> for SelfAttention<T> {
    type With<U> = SelfAttention<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> SelfAttention<U> {
        SelfAttention { qkv: self.qkv.map(leaf), output: self.output.map(leaf), norm: self.norm.map(leaf) }
    }
}

/// What the layer works in.
pub struct SelfAttentionActs<'a, B: Backend> {
    /// [rows, 3·D]
    pub qkv: M<'a, B>,
    /// [rows, D]
    pub context: M<'a, B>,
    /// [H, rows]
    pub lse: Option<SM<'a, B>>,
    /// [rows, D]
    pub projected: M<'a, B>,
    /// Of the norm.
    pub norm: Option<LayerNormActs<'a, B>>,
}

impl<'a, B: Backend> SelfAttentionActs<'a, B> {
    /// For streams of `rows` tokens.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, [hidden, heads]: [usize; 2], keep: Keep) -> Self {
        Self {
            qkv: cursor.take(rows, 3 * hidden),
            context: cursor.take(rows, hidden),
            lse: (keep == Keep::ForBackward).then(|| cursor.take(heads, rows)),
            projected: cursor.take(rows, hidden),
            norm: LayerNormActs::carve(cursor, rows, hidden, keep),
        }
    }
}

impl<B: Backend> SelfAttention<W<'_, B>> {
    /// y [rows, D] from x [rows, D]; `kept` [rows, 3·D] takes queries, keys and values in place of `acts.qkv`.
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        stream: &Stream<'_, B>,
        inputs: &Inputs<'_, B>,
        kept: Option<M<'_, B>>,
        acts: &mut SelfAttentionActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let mut qkv = kept.unwrap_or(acts.qkv.reborrow());
        self.qkv.forward(b, x, qkv.reborrow())?;
        for group in stream.groups {
            let [q, k, v] = parts(qkv.view());
            b.attention_forward(
                stream.self_attention(group, inputs),
                AttentionForward {
                    q,
                    k,
                    v,
                    prefix: group.earlier_keys(inputs),
                    key_rows: None,
                    out: acts.context.reborrow(),
                    lse: acts.lse.as_mut().map(SM::<B>::reborrow),
                },
            )?;
        }
        self.output.forward(b, acts.context.view(), acts.projected.reborrow())?;
        let dropout = stream.dropout_at(inputs, Place::AttentionOutput);
        self.norm.training_forward(b, acts.projected.view(), Some(x), dropout, acts.norm.as_mut(), y)
    }

    /// The same in inference for one more token of each sequence, x [rows, D], whose earlier ones are in a cache.
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub(crate) fn cached_forward(
        &self,
        b: &B,
        x: V<'_, B>,
        stream: &Stream<'_, B>,
        inputs: &Inputs<'_, B>,
        step: &mut CacheStep<'_, '_, B>,
        acts: &mut SelfAttentionActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let hidden = x.cols();
        self.qkv.forward(b, x, acts.qkv.reborrow())?;
        let keys_values = acts.qkv.view().columns(hidden..3 * hidden);
        let [k, v] = step.cache.extend(b, inputs.block, step.slots, keys_values)?;
        let [q, ..] = parts(acts.qkv.view());
        for group in stream.groups {
            let (prefix, out) = (group.earlier_keys(inputs), acts.context.reborrow());
            let args = AttentionForward { q, k, v, prefix, key_rows: Some(step.rows), out, lse: None };
            b.attention_forward(stream.self_attention(group, inputs), args)?;
        }
        self.output.forward(b, acts.context.view(), acts.projected.reborrow())?;
        self.norm.forward(b, acts.projected.view(), Some(x), y)
    }

    /// dx [rows, D] from dy [rows, D]. `dqkv` [rows, 3·D] holds what other streams' rows have already
    /// added to the gradients of keys and values, if `write` says so; `dearlier` [rows, 3·D] takes what
    /// this stream adds to those of the earlier one.
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn backward(
        &self,
        b: &B,
        x: V<'_, B>,
        stream: &Stream<'_, B>,
        inputs: &Inputs<'_, B>,
        acts: &SelfAttentionActs<'_, B>,
        dy: V<'_, B>,
        gradients: &mut SelfAttention<SM<'_, B>>,
        (write, mut dqkv): (Write, M<'_, B>),
        mut dearlier: Option<M<'_, B>>,
        scratch: &mut Scratch<'_, B>,
        mut dx: M<'_, B>,
    ) -> Result<()> {
        let rows = x.rows();
        let dropout = stream.dropout_at(inputs, Place::AttentionOutput);
        let norm = acts.norm.as_ref().expect("kept for the backward pass");
        let lse = acts.lse.as_ref().expect("kept for the backward pass");
        let Scratch { projected, context, partials, .. } = scratch;
        let mut dprojected = first_rows::<B>(projected, rows);
        let mut dcontext = first_rows::<B>(context, rows);
        let dropped = dropout.map(|_| dprojected.reborrow());
        self.norm.backward(b, norm, dropout, dy, &mut gradients.norm, partials, (dx.reborrow(), dropped))?;
        let dprojected = if dropout.is_some() { dprojected.view() } else { dx.view() };
        let to = Some((Write::Replace, dcontext.reborrow()));
        self.output.backward(b, acts.context.view(), dprojected, &mut gradients.output, to)?;
        for group in stream.groups {
            let [q, k, v] = parts(acts.qkv.view());
            let [dq, dk, dv] = parts_mut(dqkv.reborrow());
            let dprefix = match group.first_keys {
                FirstKeys::Own => None,
                FirstKeys::Earlier => dearlier.as_mut().map(|d| {
                    let [_, dk, dv] = parts_mut(d.reborrow());
                    [dk, dv]
                }),
            };
            b.attention_backward(
                stream.self_attention(group, inputs),
                AttentionBackward {
                    q,
                    k,
                    v,
                    prefix: group.earlier_keys(inputs),
                    out: acts.context.view(),
                    lse: lse.view(),
                    dout: dcontext.view(),
                    dq,
                    write,
                    dk,
                    dv,
                    dprefix,
                },
            )?;
        }
        self.qkv.backward(b, x, dqkv.view(), &mut gradients.qkv, Some((Write::Add, dx)))
    }
}
