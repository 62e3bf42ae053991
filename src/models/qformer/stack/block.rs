//! A block of the Q-Former: self-attention over all rows, cross-attention of the query rows, and a
//! feed-forward layer for the query rows and another for the text rows.

use crate::config::QFormerConfig;
use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::layers::cross_attention::CrossAttentionActs;
use crate::layers::dropout::Place;
use crate::layers::feed_forward::FeedForwardActs;
use crate::layers::self_attention::SelfAttentionActs;
use crate::layers::stream::{Inputs, Stream};
use crate::layers::{CrossAttention, FeedForward, Keep, Scratch, SelfAttention, first_rows};
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::params::{Spec, Tree};

/// One of the Q-Former's layers.
#[derive(Clone, Debug)]
pub struct Block<T> {
    /// Over query and text rows together.
    pub attention: SelfAttention<T>,
    /// Of the query rows to the image, in every n-th block.
    pub cross_attention: Option<CrossAttention<T>>,
    /// Of the query rows.
    pub query_feed_forward: FeedForward<T>,
    /// Of the text rows, in models that read text.
    pub text_feed_forward: Option<FeedForward<T>>,
}

impl Block<Spec> {
    /// qformer.encoder.layer.`index`
    pub fn spec(config: &QFormerConfig, index: usize) -> Self {
        let name = format!("qformer.encoder.layer.{index}");
        let (hidden, epsilon) = (config.hidden_size, config.layer_norm_eps);
        let feed_forward = |suffix| {
            FeedForward::spec(&name, suffix, [hidden, config.intermediate_size], config.hidden_act, epsilon)
        };
        Self {
            attention: SelfAttention::spec(&format!("{name}.attention"), hidden, epsilon),
            cross_attention: config
                .has_cross_attention(index)
                .then(|| CrossAttention::spec(&format!("{name}.crossattention"), hidden, epsilon)),
            query_feed_forward: feed_forward("_query"),
            text_feed_forward: config.use_qformer_text_input.then(|| feed_forward("")),
        }
    }
}

impl<T> Tree<T> for Block<T> {
    type With<U> = Block<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Block<U> {
        Block {
            attention: self.attention.map(leaf),
            cross_attention: self.cross_attention.as_ref().map(|c| c.map(leaf)),
            query_feed_forward: self.query_feed_forward.map(leaf),
            text_feed_forward: self.text_feed_forward.as_ref().map(|f| f.map(leaf)),
        }
    }
}

/// What a block works in. In inference every block of a pass can use the same.
pub struct BlockActs<'a, B: Backend> {
    /// In self-attention.
    pub attention: SelfAttentionActs<'a, B>,
    /// [rows, D]: after self-attention
    pub attended: M<'a, B>,
    /// In cross-attention.
    pub cross_attention: CrossAttentionActs<'a, B>,
    /// [query rows, D]: after cross-attention
    pub crossed: M<'a, B>,
    /// In the query rows' feed-forward layer.
    pub query_feed_forward: FeedForwardActs<'a, B>,
    /// In the text rows' feed-forward layer.
    pub text_feed_forward: FeedForwardActs<'a, B>,
}

impl<'a, B: Backend> BlockActs<'a, B> {
    /// For streams of so many query and text rows, in a block with cross-attention or without.
    pub fn carve(
        cursor: &mut Cursor<'a, B>,
        [query_rows, text_rows]: [usize; 2],
        config: &QFormerConfig,
        keep: Keep,
    ) -> Self {
        let (rows, hidden) = (query_rows + text_rows, config.hidden_size);
        let (sizes, heads) = ([hidden, config.intermediate_size], [hidden, config.num_attention_heads]);
        Self {
            attention: SelfAttentionActs::carve(cursor, rows, heads, keep),
            attended: cursor.take(rows, hidden),
            cross_attention: CrossAttentionActs::carve(cursor, query_rows, heads, keep),
            crossed: cursor.take(query_rows, hidden),
            query_feed_forward: FeedForwardActs::carve(cursor, query_rows, sizes, keep),
            text_feed_forward: FeedForwardActs::carve(cursor, text_rows, sizes, keep),
        }
    }
}

impl<B: Backend> Block<W<'_, B>> {
    /// y [rows, D] from what self-attention wrote to `acts.attended`.
    pub fn forward(
        &self,
        b: &B,
        stream: &Stream<'_, B>,
        inputs: &Inputs<'_, B>,
        acts: &mut BlockActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let attended = acts.attended.view();
        let mut queries = attended.row_range(0..stream.query_rows);
        let text = attended.row_range(stream.query_rows..attended.rows());
        let (y_queries, y_text) = y.split_rows(stream.query_rows);
        if let Some(image) = &stream.image {
            if let Some(cross) = &self.cross_attention {
                let y = acts.crossed.reborrow();
                cross.forward(b, queries, image, stream, inputs, &mut acts.cross_attention, y)?;
                queries = acts.crossed.view();
            }
            let dropout = stream.dropout_at(inputs, Place::QueryFeedForward);
            self.query_feed_forward.forward(b, queries, dropout, &mut acts.query_feed_forward, y_queries)?;
        }
        if text.rows() > 0 {
            let feed_forward = self.text_feed_forward.as_ref().expect("a model that reads text");
            let dropout = stream.dropout_at(inputs, Place::TextFeedForward);
            feed_forward.forward(b, text, dropout, &mut acts.text_feed_forward, y_text)?;
        }
        Ok(())
    }

    /// dx [rows, D] from dy [rows, D]
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn backward(
        &self,
        b: &B,
        x: V<'_, B>,
        stream: &Stream<'_, B>,
        inputs: &Inputs<'_, B>,
        acts: &BlockActs<'_, B>,
        dy: V<'_, B>,
        gradients: &mut Block<SM<'_, B>>,
        to: BlockGradients<'_, B>,
        scratch: &mut BlockScratch<'_, B>,
        dx: M<'_, B>,
    ) -> Result<()> {
        let BlockScratch { attended, crossed, layers } = scratch;
        let (query_rows, rows) = (stream.query_rows, x.rows());
        let attended = &mut first_rows::<B>(attended, rows);
        let mut crossed = first_rows::<B>(crossed, query_rows);
        let (mut dqueries, dtext) = attended.reborrow().split_rows(query_rows);
        let queries = acts.attended.view().row_range(0..query_rows);
        if let Some(image) = &stream.image {
            let dy = dy.row_range(0..query_rows);
            let dropout = stream.dropout_at(inputs, Place::QueryFeedForward);
            let (layer, layer_acts) = (&self.query_feed_forward, &acts.query_feed_forward);
            let layer_gradients = &mut gradients.query_feed_forward;
            if let (Some(cross), Some(gradients)) = (&self.cross_attention, &mut gradients.cross_attention) {
                let x = acts.crossed.view();
                layer.backward(b, x, dropout, layer_acts, dy, layer_gradients, layers, crossed.reborrow())?;
                let (dy, cross_acts) = (crossed.view(), &acts.cross_attention);
                let dkeys_values = to.keys_values;
                cross.backward(
                    b,
                    queries,
                    image,
                    stream,
                    inputs,
                    cross_acts,
                    dy,
                    gradients,
                    dkeys_values,
                    layers,
                    dqueries,
                )?;
            } else {
                let to = dqueries.reborrow();
                layer.backward(b, queries, dropout, layer_acts, dy, layer_gradients, layers, to)?;
            }
        }
        if rows > query_rows {
            let (x, dy) = (acts.attended.view().row_range(query_rows..rows), dy.row_range(query_rows..rows));
            let layer = self.text_feed_forward.as_ref().expect("a model that reads text");
            let gradients = gradients.text_feed_forward.as_mut().expect("as the parameters");
            let dropout = stream.dropout_at(inputs, Place::TextFeedForward);
            layer.backward(b, x, dropout, &acts.text_feed_forward, dy, gradients, layers, dtext)?;
        }
        let (layer_acts, dy) = (&acts.attention, attended.view());
        let gradients = &mut gradients.attention;
        self.attention
            .backward(b, x, stream, inputs, layer_acts, dy, gradients, to.qkv, to.earlier, layers, dx)
    }
}

/// Where a block's backward pass writes the gradients of keys and values.
pub struct BlockGradients<'a, B: Backend> {
    /// Those of the image, for all blocks [images·N, layers·2·D]: replaced, or added to.
    pub keys_values: (Write, M<'a, B>),
    /// Those of queries, keys and values [rows, 3·D]; replaced, or keys and values added to.
    pub qkv: (Write, M<'a, B>),
    /// Those of an earlier stream's [rows, 3·D], whose keys and values are added to.
    pub earlier: Option<M<'a, B>>,
}

/// What backward passes of blocks work in, one after the other.
pub struct BlockScratch<'a, B: Backend> {
    /// [rows, D]: the gradient after self-attention
    attended: M<'a, B>,
    /// [query rows, D]: the gradient after cross-attention
    crossed: M<'a, B>,
    /// In the layers.
    pub(crate) layers: Scratch<'a, B>,
}

impl<'a, B: Backend> BlockScratch<'a, B> {
    /// For streams of up to so many query rows, and rows.
    pub fn carve(
        cursor: &mut Cursor<'a, B>,
        b: &B,
        [query_rows, rows]: [usize; 2],
        config: &QFormerConfig,
    ) -> Self {
        Self {
            attended: cursor.take(rows, config.hidden_size),
            crossed: cursor.take(query_rows, config.hidden_size),
            layers: Scratch::carve(cursor, b, rows, [config.hidden_size, config.intermediate_size]),
        }
    }
}
