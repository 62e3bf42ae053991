//! Cross-attention of the queries to the image, with its output layer:
//! y = LN(x + Wₒ·attention(x, image) + bₒ)
//!
//! Keys and values depend on the image and the layer alone. They are projected for all layers in one
//! product and shared by all passes ([`ImageTokens::KeysValues`]), or, where one pass reads an image
//! once, never formed at all ([`ImageTokens::Features`]).

use super::self_attention::scale;
use super::{LayerNorm, Linear};
use crate::arena::Cursor;
use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::absorbed_attention::AbsorbedAttentionForward;
use crate::ops::attention::{Attention, AttentionForward, Mask, PlacedSequences};
use crate::params::{Spec, Tree};

/// Cross-attention but for the projections of the image, which all layers keep together.
#[derive(Clone, Debug)]
pub struct CrossAttention<T> {
    /// [D, D]
    pub query: Linear<T>,
    /// Wₒ [D, D]
    pub output: Linear<T>,
    /// [1, D]
    pub norm: LayerNorm<T>,
}

impl CrossAttention<Spec> {
    /// `name`.attention.query, `name`.output.{dense,LayerNorm}
    pub fn spec(name: &str, hidden: usize, epsilon: f64) -> Self {
        Self {
            query: Linear::spec(&format!("{name}.attention.query"), hidden, hidden),
            output: Linear::spec(&format!("{name}.output.dense"), hidden, hidden),
            norm: LayerNorm::spec(&format!("{name}.output.LayerNorm"), hidden, epsilon),
        }
    }
}

impl<T> Tree<T> for CrossAttention<T> {
    type With<U> = CrossAttention<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> CrossAttention<U> {
        CrossAttention {
            query: self.query.map(leaf),
            output: self.output.map(leaf),
            norm: self.norm.map(leaf),
        }
    }
}

/// What the queries attend to.
pub enum ImageTokens<'a, B: Backend> {
    /// Normalised features [images·N, W], one query set for each image.
    Features {
        /// [images·N, W]
        features: V<'a, B>,
        /// How many images.
        images: usize,
    },
    /// Keys and values of all cross-attention layers, with the rows that belong together.
    KeysValues {
        /// [images·N, layers·2·D]
        keys_values: V<'a, B>,
        /// Query sets against image rows.
        sequences: PlacedSequences<'a, B>,
    },
}

/// What the layer works in.
pub struct CrossAttentionActs<'a, B: Backend> {
    /// [query rows, D]
    pub q: M<'a, B>,
    /// [query rows, D]
    pub context: M<'a, B>,
    /// [query rows, D]
    pub projected: M<'a, B>,
}

impl<'a, B: Backend> CrossAttentionActs<'a, B> {
    /// For `rows` query rows.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, hidden: usize) -> Self {
        Self {
            q: cursor.take(rows, hidden),
            context: cursor.take(rows, hidden),
            projected: cursor.take(rows, hidden),
        }
    }
}

impl<B: Backend> CrossAttention<V<'_, B>> {
    /// y [rows, D] from x [rows, D]; `image_kv` has weights [layers·2·D, W], and this is the
    /// cross-attention number `index` among them.
    pub fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        (image, image_kv, index): (&ImageTokens<'_, B>, &Linear<V<'_, B>>, usize),
        heads: usize,
        acts: &mut CrossAttentionActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let hidden = x.cols();
        let (keys, values) = (2 * index * hidden, (2 * index + 1) * hidden);
        let (q, out) = (acts.q.reborrow(), acts.context.reborrow());
        self.query.forward(b, x, q)?;
        match *image {
            ImageTokens::Features { features, images } => b.absorbed_attention(AbsorbedAttentionForward {
                heads,
                scale: scale(hidden, heads),
                q: acts.q.view(),
                image: features,
                key_weight: image_kv.weight.row_range(keys..keys + hidden),
                value_weight: image_kv.weight.row_range(values..values + hidden),
                value_bias: image_kv.bias.columns(values..values + hidden),
                images,
                out,
            })?,
            ImageTokens::KeysValues { keys_values, sequences } => b.attention_forward(
                Attention { sequences, heads, mask: Mask::None, scale: scale(hidden, heads), dropout: None },
                AttentionForward {
                    q: acts.q.view(),
                    k: keys_values.columns(keys..keys + hidden),
                    v: keys_values.columns(values..values + hidden),
                    prefix: None,
                    out,
                    lse: None,
                },
            )?,
        }
        self.output.forward(b, acts.context.view(), acts.projected.reborrow())?;
        self.norm.forward(b, acts.projected.view(), Some(x), y)
    }
}
