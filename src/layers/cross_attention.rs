//! Cross-attention of the queries to the image, with its output layer:
//! y = LN(x + Wₒ·attention(x, image) + bₒ)
//!
//! Keys and values depend on the image and the layer alone. They are projected for all layers in one
//! product and shared by all passes ([`ImageTokens::KeysValues`]), or, where one pass reads an image
//! once, never formed at all ([`ImageTokens::Features`]).

use super::dropout::Place;
use super::layer_norm::LayerNormActs;
use super::stream::{ImageTokens, Inputs, Stream};
use super::{Keep, LayerNorm, Linear, Scratch, first_rows};
use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::absorbed_attention::AbsorbedAttentionForward;
use crate::ops::attention::{AttentionBackward, AttentionForward};
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

/// What the layer works in.
pub struct CrossAttentionActs<'a, B: Backend> {
    /// [query rows, D]
    pub q: M<'a, B>,
    /// [query rows, D]
    pub context: M<'a, B>,
    /// [H, query rows]
    pub lse: Option<SM<'a, B>>,
    /// [query rows, D]
    pub projected: M<'a, B>,
    /// Of the norm.
    pub norm: Option<LayerNormActs<'a, B>>,
}

impl<'a, B: Backend> CrossAttentionActs<'a, B> {
    /// For `rows` query rows.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, [hidden, heads]: [usize; 2], keep: Keep) -> Self {
        Self {
            q: cursor.take(rows, hidden),
            context: cursor.take(rows, hidden),
            lse: (keep == Keep::ForBackward).then(|| cursor.take(heads, rows)),
            projected: cursor.take(rows, hidden),
            norm: LayerNormActs::carve(cursor, rows, hidden, keep),
        }
    }
}

impl<B: Backend> CrossAttention<W<'_, B>> {
    /// y [query rows, D] from x [query rows, D]
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        image: &ImageTokens<'_, B>,
        stream: &Stream<'_, B>,
        inputs: &Inputs<'_, B>,
        acts: &mut CrossAttentionActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let (keys, values) = inputs.key_value_columns(x.cols());
        self.query.forward(b, x, acts.q.reborrow())?;
        let (q, out) = (acts.q.view(), acts.context.reborrow());
        match *image {
            ImageTokens::Features { features, images } => b.absorbed_attention(AbsorbedAttentionForward {
                heads: stream.heads,
                scale: stream.scale,
                q,
                image: features,
                key_weight: inputs.image_kv.weight.row_range(keys.clone()).matrix(),
                value_weight: inputs.image_kv.weight.row_range(values.clone()).matrix(),
                value_bias: inputs.image_kv.own_bias().matrix().columns(values),
                images,
                out,
            })?,
            ImageTokens::KeysValues { keys_values, sequences } => b.attention_forward(
                stream.cross_attention(sequences, inputs),
                AttentionForward {
                    q,
                    k: keys_values.columns(keys),
                    v: keys_values.columns(values),
                    prefix: None,
                    key_rows: None,
                    out,
                    lse: acts.lse.as_mut().map(SM::<B>::reborrow),
                },
            )?,
        }
        self.output.forward(b, acts.context.view(), acts.projected.reborrow())?;
        let dropout = stream.dropout_at(inputs, Place::CrossAttentionOutput);
        self.norm.training_forward(b, acts.projected.view(), Some(x), dropout, acts.norm.as_mut(), y)
    }

    /// dx [query rows, D] from dy [query rows, D]; the gradient of this layer's keys and values goes to
    /// its columns of `dkeys_values` [images·N, layers·2·D].
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn backward(
        &self,
        b: &B,
        x: V<'_, B>,
        image: &ImageTokens<'_, B>,
        stream: &Stream<'_, B>,
        inputs: &Inputs<'_, B>,
        acts: &CrossAttentionActs<'_, B>,
        dy: V<'_, B>,
        gradients: &mut CrossAttention<SM<'_, B>>,
        (write, dkeys_values): (Write, M<'_, B>),
        scratch: &mut Scratch<'_, B>,
        mut dx: M<'_, B>,
    ) -> Result<()> {
        let &ImageTokens::KeysValues { keys_values, sequences } = image else {
            panic!("absorbed cross-attention is for inference");
        };
        let rows = x.rows();
        let (keys, values) = inputs.key_value_columns(x.cols());
        let dropout = stream.dropout_at(inputs, Place::CrossAttentionOutput);
        let norm = acts.norm.as_ref().expect("kept for the backward pass");
        let lse = acts.lse.as_ref().expect("kept for the backward pass");
        let Scratch { projected, context, partials, .. } = scratch;
        let mut dprojected = first_rows::<B>(projected, rows);
        let mut dcontext = first_rows::<B>(context, rows);
        let dropped = dropout.map(|_| dprojected.reborrow());
        let to = (dx.reborrow(), dropped);
        self.norm.backward(b, norm, dropout, dy, &mut gradients.norm, partials, to)?;
        let dout = if dropout.is_some() { dprojected.view() } else { dx.view() };
        let to = Some((Write::Replace, dcontext.reborrow()));
        self.output.backward(b, acts.context.view(), dout, &mut gradients.output, to)?;
        // The gradient of the output layer's output is used up: its place takes that of the queries.
        let mut dq = dprojected;
        let dk = dkeys_values.split_columns(keys.start).1;
        let (dk, dv) = dk.split_columns(keys.len());
        let dv = dv.split_columns(values.len()).0;
        b.attention_backward(
            stream.cross_attention(sequences, inputs),
            AttentionBackward {
                q: acts.q.view(),
                k: keys_values.columns(keys),
                v: keys_values.columns(values),
                prefix: None,
                out: acts.context.view(),
                lse: lse.view(),
                dout: dcontext.view(),
                dq: dq.reborrow(),
                write,
                dk,
                dv,
                dprefix: None,
            },
        )?;
        self.query.backward(b, x, dq.view(), &mut gradients.query, Some((Write::Add, dx)))
    }
}
