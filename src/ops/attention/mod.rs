//! Attention: out = softmax(scale·q·kᵀ + bias + mask)·v, head by head, over sequences of any length.
//!
//! Tokens stand in streams without padding; [`Sequences`] says which rows belong together. A
//! sequence has two spans: learned queries first, then text. Either may be empty. That one shape
//! serves all passes: queries alone, text alone, both together, text over cached queries (the
//! first span of keys then comes from [`AttentionForward::prefix`]), and queries over image tokens.
//!
//! With dropout, out = (softmax(…)∘m/(1 − p))·v; the log-sum-exps are those of the scores as they are.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod key_rows;
mod sequences;

#[cfg(feature = "cuda")]
pub(crate) use cuda::padded_width;
pub(crate) use sequences::SequenceSizes;
pub use sequences::{PlacedSequences, SEQUENCE_WORDS, Sequence, Sequences, Span};

use crate::device::{Device, M, S, SM, V, Write};
use crate::error::{Error, Result};
use crate::ops::dropout::Dropout;
use crate::ops::embedding::Ids;

/// Which keys a row attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mask {
    /// All keys of its sequence: uni-modal if the sequence has one span, bi-directional if two.
    None,
    /// BLIP-2's multi-modal causal mask: a row of the first span sees the first span; a row of the
    /// second sees the whole first span, and the second up to itself. With an empty first span it
    /// is the plain causal mask.
    Causal,
}

/// What is added to the scores by how far a key stands from its query: key j of a sequence stands at place j of its keys,
/// those of both spans counted through, and query i of n at place keys − n + i. It is frozen: no gradient of it is formed.
pub struct DistanceBias<'a, D: Device> {
    /// [heads, 2·reach + 1]: of the key's place − the query's from −reach to reach; what is farther is as far as that
    pub table: S<'a, D>,
}

impl<D: Device> Clone for DistanceBias<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for DistanceBias<'_, D> {}

/// What both directions share.
pub struct Attention<'a, D: Device> {
    /// Which rows belong together.
    pub sequences: PlacedSequences<'a, D>,
    /// Heads, side by side in the columns of q, k and v.
    pub heads: usize,
    /// Which keys a row attends to.
    pub mask: Mask,
    /// Factor of q·kᵀ, commonly 1/√(head width).
    pub scale: f64,
    /// Absent for none.
    pub bias: Option<DistanceBias<'a, D>>,
    /// Dropout of the probabilities: that of key j, counted within its sequence's keys, in row r of the
    /// stream of queries and in head h has word `j % 4` of counter [j / 4, r, site, h].
    pub dropout: Option<Dropout<'a, D>>,
}

/// Operands of [`AttentionOp::attention_forward`].
pub struct AttentionForward<'a, D: Device> {
    /// [query rows, heads·head width]
    pub q: V<'a, D>,
    /// [key rows, heads·head width]
    pub k: V<'a, D>,
    /// [key rows, heads·head width]
    pub v: V<'a, D>,
    /// k and v [prefix rows, heads·head width] of the first key spans, where those are kept apart.
    pub prefix: Option<[V<'a, D>; 2]>,
    /// [1, count]: where the second key spans are spans of this list, which names their rows of k and v. So sequences
    /// of a cache share rows that stand anywhere in it.
    pub key_rows: Option<Ids<'a, D>>,
    /// [query rows, heads·head width]
    pub out: M<'a, D>,
    /// [heads, query rows]: log-sum-exp of the scores, which the backward pass needs.
    pub lse: Option<SM<'a, D>>,
}

/// Operands of [`AttentionOp::attention_backward`].
pub struct AttentionBackward<'a, D: Device> {
    /// [query rows, heads·head width]
    pub q: V<'a, D>,
    /// [key rows, heads·head width]
    pub k: V<'a, D>,
    /// [key rows, heads·head width]
    pub v: V<'a, D>,
    /// As in the forward pass.
    pub prefix: Option<[V<'a, D>; 2]>,
    /// [query rows, heads·head width]
    pub out: V<'a, D>,
    /// [heads, query rows]
    pub lse: S<'a, D>,
    /// [query rows, heads·head width]
    pub dout: V<'a, D>,
    /// [query rows, heads·head width], written
    pub dq: M<'a, D>,
    /// Whether `dk` and `dv` are written or added to; sequences that share keys are summed and written once.
    ///
    /// Passes over the same keys are added up here, each rounded as it is stored. A step of training cannot do with
    /// one write: the image pass's `dout` waits for the gradients of the keys that its queries leave to captions, so
    /// it comes after all passes over pairs and captions, which take turns in the same memory.
    pub write: Write,
    /// [key rows, heads·head width]
    pub dk: M<'a, D>,
    /// [key rows, heads·head width]
    pub dv: M<'a, D>,
    /// Gradients of the prefix's k and v, added to.
    pub dprefix: Option<[M<'a, D>; 2]>,
}

/// Attention. Rows that no sequence names are neither read nor written.
pub trait AttentionOp: Device {
    /// Columns that a head has at most.
    const WIDEST_HEAD: usize = usize::MAX;

    /// out = softmax(scale·q·kᵀ + bias + mask)·v
    fn attention_forward(&self, what: Attention<'_, Self>, args: AttentionForward<'_, Self>) -> Result<()>;
    /// dq, dk and dv from dout
    fn attention_backward(&self, what: Attention<'_, Self>, args: AttentionBackward<'_, Self>) -> Result<()>;
}

/// Refuses `what`, such as "the Q-Former", if its heads of `width` columns are too wide for the device.
pub(crate) fn check_heads<D: AttentionOp>(what: &str, width: usize) -> Result<()> {
    if width <= D::WIDEST_HEAD {
        return Ok(());
    }
    Err(Error::device(format!(
        "the heads of {what} have {width} columns (hidden_size / num_attention_heads), and the GPU's kernels take {} at most; compute on the CPU (`device` cpu)",
        D::WIDEST_HEAD
    ))
    .naming(&["device"]))
}

impl<D: Device> Clone for Attention<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for Attention<'_, D> {}

impl<D: Device> Attention<'_, D> {
    /// Head width; checks the shapes on the way.
    fn check(&self, q: V<'_, D>, k: V<'_, D>, v: V<'_, D>, prefix: Option<[V<'_, D>; 2]>) -> usize {
        assert_eq!(k.shape(), v.shape(), "k as v");
        assert_eq!(q.cols(), k.cols(), "q [rows, heads·head width] against k");
        assert!(q.cols().is_multiple_of(self.heads), "{} columns for {} heads", q.cols(), self.heads);
        assert!(
            prefix.is_none_or(|[k, v]| k.shape() == v.shape() && k.cols() == q.cols()),
            "prefix as k and v"
        );
        if let Some(DistanceBias { table }) = self.bias {
            assert!(table.rows() == self.heads && table.cols() % 2 == 1, "a bias of [heads, 2·reach + 1]");
        }
        q.cols() / self.heads
    }

    /// How many of a sequence's keys its row `row` sees; they are always the first ones.
    fn visible(&self, sequence: &Sequence, row: usize) -> usize {
        match self.mask {
            Mask::None => sequence.key_count(),
            Mask::Causal => {
                let ([first, text], [prefix, keys]) = (sequence.queries, sequence.keys);
                if row < first.len {
                    prefix.len
                } else {
                    // The last row of text sees the last key, also when earlier keys are cached.
                    prefix.len + (row - first.len) + 1 + keys.len - text.len
                }
            }
        }
    }
}
