//! A stream of tokens, as attention sees it: which rows attend to one another, and to what else.

use super::Linear;
use super::dropout::{PassDropout, Place};
use crate::device::{M, V, W};
use crate::ops::Backend;
use crate::ops::attention::{Attention, Mask, PlacedSequences};
use crate::ops::dropout::Dropout;
use std::ops::Range;

/// What a stream of tokens holds: query rows first, then text rows.
pub struct Stream<'a, B: Backend> {
    /// How many rows are query rows.
    pub query_rows: usize,
    /// Which rows attend to one another; every row that is read is in one of them.
    pub groups: &'a [AttentionGroup<'a, B>],
    /// H
    pub heads: usize,
    /// Factor of the scores, 1/√(head width).
    pub scale: f64,
    /// What the query rows attend to; absent without query rows.
    pub image: Option<ImageTokens<'a, B>>,
    /// Absent in inference.
    pub dropout: Option<PassDropout<'a, B>>,
}

/// What a block takes besides its stream.
#[derive(Clone, Copy)]
pub struct Inputs<'a, B: Backend> {
    /// Which block, counted from 0.
    pub block: usize,
    /// Which cross-attention, counted from 0, if it has one.
    pub cross: usize,
    /// Projections of the image for all blocks: weight [layers·2·D, W].
    pub image_kv: &'a Linear<W<'a, B>>,
    /// Queries, keys and values [rows, 3·D] of an earlier stream in this block, whose rows this stream
    /// sees.
    pub earlier: Option<V<'a, B>>,
}

impl<B: Backend> Inputs<'_, B> {
    /// Columns of this block's keys and values among those of all blocks.
    pub(super) fn key_value_columns(&self, hidden: usize) -> (Range<usize>, Range<usize>) {
        let keys = 2 * self.cross * hidden;
        (keys..keys + hidden, keys + hidden..keys + 2 * hidden)
    }
}

impl<'a, B: Backend> Stream<'a, B> {
    /// Dropout at a place of a block.
    pub(crate) fn dropout_at(&self, inputs: &Inputs<'_, B>, place: Place) -> Option<Dropout<'a, B>> {
        self.dropout.and_then(|dropout| dropout.at(inputs.block, place))
    }
}

/// Rows of a stream that attend to one another, and how.
pub struct AttentionGroup<'a, B: Backend> {
    /// Which rows belong together.
    pub sequences: PlacedSequences<'a, B>,
    /// Which of their keys a row sees.
    pub mask: Mask,
    /// Where the keys of the first span come from.
    pub first_keys: FirstKeys,
}

/// Where the keys of a sequence's first span come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FirstKeys {
    /// The stream itself.
    Own,
    /// An earlier stream's rows in the same block ([`Inputs::earlier`]).
    Earlier,
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

impl<B: Backend> AttentionGroup<'_, B> {
    /// Keys and values of the earlier stream [rows, D], where the first spans are of it.
    pub(super) fn earlier_keys<'i>(&self, inputs: &Inputs<'i, B>) -> Option<[V<'i, B>; 2]> {
        match self.first_keys {
            FirstKeys::Own => None,
            FirstKeys::Earlier => {
                let [_, k, v] =
                    parts(inputs.earlier.expect("a stream that reads an earlier one is given it"));
                Some([k, v])
            }
        }
    }
}

impl<B: Backend> Stream<'_, B> {
    pub(super) fn self_attention<'a>(
        &'a self,
        group: &AttentionGroup<'a, B>,
        inputs: &Inputs<'_, B>,
    ) -> Attention<'a, B> {
        Attention {
            sequences: group.sequences,
            heads: self.heads,
            mask: group.mask,
            scale: self.scale,
            bias: None,
            dropout: self.dropout_at(inputs, Place::Attention),
        }
    }

    pub(super) fn cross_attention<'a>(
        &'a self,
        sequences: PlacedSequences<'a, B>,
        inputs: &Inputs<'_, B>,
    ) -> Attention<'a, B> {
        let dropout = self.dropout_at(inputs, Place::CrossAttention);
        Attention { sequences, heads: self.heads, mask: Mask::None, scale: self.scale, bias: None, dropout }
    }
}

/// Queries, keys and values [rows, D] of [rows, 3·D].
pub fn parts<B: Backend>(qkv: V<'_, B>) -> [V<'_, B>; 3] {
    let hidden = qkv.cols() / 3;
    [0, 1, 2].map(|i| qkv.columns(i * hidden..(i + 1) * hidden))
}

/// The same, for writing.
pub(super) fn parts_mut<B: Backend>(qkv: M<'_, B>) -> [M<'_, B>; 3] {
    let hidden = qkv.cols() / 3;
    let (q, rest) = qkv.split_columns(hidden);
    let (k, v) = rest.split_columns(hidden);
    [q, k, v]
}
