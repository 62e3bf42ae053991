//! BERT's self-attention with its output layer: y = LN(x + Wₒ·attention(x) + bₒ)

use super::{LayerNorm, Linear};
use crate::arena::Cursor;
use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::attention::{Attention, AttentionForward, Mask, PlacedSequences};
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
    /// [rows, D]
    pub projected: M<'a, B>,
}

impl<'a, B: Backend> SelfAttentionActs<'a, B> {
    /// For streams of `rows` tokens.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, hidden: usize) -> Self {
        Self {
            qkv: cursor.take(rows, 3 * hidden),
            context: cursor.take(rows, hidden),
            projected: cursor.take(rows, hidden),
        }
    }
}

impl<B: Backend> SelfAttention<V<'_, B>> {
    /// y [rows, D] from x [rows, D]
    pub fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        (sequences, heads, mask): (PlacedSequences<'_, B>, usize, Mask),
        acts: &mut SelfAttentionActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let hidden = x.cols();
        self.qkv.forward(b, x, acts.qkv.reborrow())?;
        let part = |i: usize| acts.qkv.view().columns(i * hidden..(i + 1) * hidden);
        b.attention_forward(
            Attention { sequences, heads, mask, scale: scale(hidden, heads), dropout: None },
            AttentionForward {
                q: part(0),
                k: part(1),
                v: part(2),
                prefix: None,
                out: acts.context.reborrow(),
                lse: None,
            },
        )?;
        self.output.forward(b, acts.context.view(), acts.projected.reborrow())?;
        self.norm.forward(b, acts.projected.view(), Some(x), y)
    }
}

/// 1/√(head width)
pub(super) fn scale(hidden: usize, heads: usize) -> f64 {
    1.0 / ((hidden / heads) as f64).sqrt()
}
