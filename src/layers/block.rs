//! A block of the Q-Former: self-attention over all rows, cross-attention of the query rows, and a
//! feed-forward layer for the query rows and another for the text rows.

use super::cross_attention::{CrossAttentionActs, ImageTokens};
use super::feed_forward::FeedForwardActs;
use super::self_attention::SelfAttentionActs;
use super::{CrossAttention, FeedForward, Linear, SelfAttention};
use crate::arena::Cursor;
use crate::config::QFormerConfig;
use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::attention::{Mask, PlacedSequences};
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

/// What a stream of tokens holds: query rows first, then text rows.
pub struct Stream<'a, B: Backend> {
    /// How many rows are query rows.
    pub query_rows: usize,
    /// Which rows attend to one another.
    pub sequences: PlacedSequences<'a, B>,
    /// And how.
    pub mask: Mask,
    /// H
    pub heads: usize,
    /// What the query rows attend to; absent without query rows.
    pub image: Option<ImageTokens<'a, B>>,
}

/// What a block works in; every block of a pass can use the same.
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
    /// For streams of so many rows.
    pub fn carve(
        cursor: &mut Cursor<'a, B>,
        query_rows: usize,
        text_rows: usize,
        config: &QFormerConfig,
    ) -> Self {
        let (rows, hidden) = (query_rows + text_rows, config.hidden_size);
        let sizes = [hidden, config.intermediate_size];
        Self {
            attention: SelfAttentionActs::carve(cursor, rows, hidden),
            attended: cursor.take(rows, hidden),
            cross_attention: CrossAttentionActs::carve(cursor, query_rows, hidden),
            crossed: cursor.take(query_rows, hidden),
            query_feed_forward: FeedForwardActs::carve(cursor, query_rows, sizes),
            text_feed_forward: FeedForwardActs::carve(cursor, text_rows, sizes),
        }
    }
}

impl<B: Backend> Block<V<'_, B>> {
    /// y [rows, D] from x [rows, D]; `image_kv` and `index` as in [`CrossAttention::forward`].
    pub fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        stream: &Stream<'_, B>,
        (image_kv, index): (&Linear<V<'_, B>>, usize),
        acts: &mut BlockActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let attention = (stream.sequences, stream.heads, stream.mask);
        self.attention.forward(b, x, attention, &mut acts.attention, acts.attended.reborrow())?;
        self.forward_from_attended(b, stream, (image_kv, index), acts, y)
    }

    /// The rest of the block, from `acts.attended` on.
    pub fn forward_from_attended(
        &self,
        b: &B,
        stream: &Stream<'_, B>,
        (image_kv, index): (&Linear<V<'_, B>>, usize),
        acts: &mut BlockActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let rows = acts.attended.rows();
        let attended = acts.attended.view();
        let mut queries = attended.row_range(0..stream.query_rows);
        let text = attended.row_range(stream.query_rows..rows);
        let (y_queries, y_text) = y.split_rows(stream.query_rows);
        if let Some(image) = &stream.image {
            if let Some(cross) = &self.cross_attention {
                let image = (image, image_kv, index);
                cross.forward(
                    b,
                    queries,
                    image,
                    stream.heads,
                    &mut acts.cross_attention,
                    acts.crossed.reborrow(),
                )?;
                queries = acts.crossed.view();
            }
            self.query_feed_forward.forward(b, queries, &mut acts.query_feed_forward, y_queries)?;
        }
        if text.rows() > 0 {
            let feed_forward = self.text_feed_forward.as_ref().expect("a model that reads text");
            feed_forward.forward(b, text, &mut acts.text_feed_forward, y_text)?;
        }
        Ok(())
    }
}
