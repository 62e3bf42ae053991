//! Layers: each a file with its parameters, what it works in, and its passes, backward under forward.
//!
//! A backward pass writes the gradients of activations and adds to those of parameters.

pub mod cross_attention;
pub mod dropout;
pub mod feed_forward;
pub mod kv_cache;
pub mod layer_norm;
pub mod linear;
pub mod mlp;
pub mod norm;
pub mod rms_norm;
pub mod self_attention;
pub mod stream;

pub use cross_attention::CrossAttention;
pub use feed_forward::FeedForward;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use mlp::Mlp;
pub use norm::Norm;
pub use rms_norm::RmsNorm;
pub use self_attention::SelfAttention;

use crate::device::{M, SM};
use crate::memory::Cursor;
use crate::ops::Backend;

/// What a forward pass keeps of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Nothing: inference.
    Nothing,
    /// All that the backward pass needs.
    ForBackward,
}

/// What backward passes of all layers work in, one after the other.
pub struct Scratch<'a, B: Backend> {
    /// [rows, D]
    projected: M<'a, B>,
    /// [rows, D]
    context: M<'a, B>,
    /// [rows, F]
    intermediate: M<'a, B>,
    /// [blocks, 2·D]: partial sums of the norms' gradients
    pub(crate) partials: SM<'a, B>,
}

impl<'a, B: Backend> Scratch<'a, B> {
    /// For streams of up to `rows` tokens, in layers of widths D and F.
    pub fn carve(cursor: &mut Cursor<'a, B>, b: &B, rows: usize, [hidden, intermediate]: [usize; 2]) -> Self {
        Self {
            projected: cursor.take(rows, hidden),
            context: cursor.take(rows, hidden),
            intermediate: cursor.take(rows, intermediate),
            partials: cursor.take(b.layer_norm_partials(rows), 2 * hidden),
        }
    }
}

/// The first `rows` rows.
pub(crate) fn first_rows<'a, B: Backend>(matrix: &'a mut M<'_, B>, rows: usize) -> M<'a, B> {
    matrix.reborrow().split_rows(rows).0
}
