//! Attention: out = softmax(scale·q·kᵀ + mask)·v, head by head, over sequences of any length.
//!
//! Tokens stand in streams without padding; [`Sequences`] says which rows belong together. A
//! sequence has two spans: learned queries first, then text. Either may be empty. That one shape
//! serves all passes: queries alone, text alone, both together, text over cached queries (the
//! first span of keys then comes from [`AttentionForward::prefix`]), and queries over image tokens.

mod cpu;

use crate::device::{Device, M, S, SM, V, Write};
use crate::error::Result;

/// Which keys a row attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mask {
    /// All keys of its sequence: uni-modal if the sequence has one span, bi-directional if two.
    None,
    /// BLIP-2's multi-modal causal mask: a row of the first span sees the first span; a row of the
    /// second sees the whole first span, and the second up to itself. With an empty first span it
    /// is the plain causal mask.
    Causal,
}

/// Consecutive rows of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

impl Span {
    /// `len` rows from `start` on.
    pub const fn new(start: usize, len: usize) -> Self {
        Self { start, len }
    }

    /// No row.
    pub const EMPTY: Self = Self::new(0, 0);

    fn end(self) -> usize {
        self.start + self.len
    }
}

/// The rows that attend to one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// Rows of q (and of out).
    pub queries: [Span; 2],
    /// Rows of k and v; with a prefix, the first span is of the prefix.
    pub keys: [Span; 2],
}

impl Sequence {
    fn query_count(&self) -> usize {
        self.queries[0].len + self.queries[1].len
    }

    fn key_count(&self) -> usize {
        self.keys[0].len + self.keys[1].len
    }
}

/// The sequences of a batch. Those that read the same keys stand next to one another, so that one
/// task can keep the keys at hand and own their gradients.
#[derive(Clone, Debug)]
pub struct Sequences {
    sequences: Vec<Sequence>,
    /// Bounds of the groups of sequences with equal keys: group g is `groups[g]..groups[g + 1]`.
    groups: Vec<usize>,
    /// Whether some first and second span of keys name the same row, which only a prefix explains.
    spans_share_keys: bool,
}

impl Sequences {
    /// A table of sequences; panics if two groups share a key or two sequences a query.
    pub fn new(sequences: Vec<Sequence>) -> Self {
        let mut groups: Vec<usize> =
            (0..sequences.len()).filter(|&i| i == 0 || sequences[i].keys != sequences[i - 1].keys).collect();
        assert!(disjoint(sequences.iter().flat_map(|s| s.queries)), "two sequences share a query row");
        for span in 0..2 {
            let keys = groups.iter().map(|&g| sequences[g].keys[span]);
            assert!(disjoint(keys), "sequences that read the same keys stand apart");
        }
        let spans_share_keys = !disjoint(groups.iter().flat_map(|&g| sequences[g].keys));
        assert!(
            sequences.iter().all(|s| s.key_count() > 0 || s.query_count() == 0),
            "a query has no key to attend to"
        );
        groups.push(sequences.len());
        Self { sequences, groups, spans_share_keys }
    }

    /// Self-attention of `count` sets of `len` rows that follow one another.
    pub fn uniform(count: usize, len: usize) -> Self {
        let span = |i| [Span::new(i * len, len), Span::EMPTY];
        Self::new((0..count).map(|i| Sequence { queries: span(i), keys: span(i) }).collect())
    }

    /// The sequences in order.
    pub fn as_slice(&self) -> &[Sequence] {
        &self.sequences
    }

    fn check(&self, queries: usize, keys: usize, prefix: Option<usize>) {
        assert!(prefix.is_some() || !self.spans_share_keys, "two spans share a key row");
        for s in &self.sequences {
            assert!(s.queries.iter().all(|q| q.end() <= queries), "{s:?} has {queries} query rows");
            assert!(s.keys[0].end() <= prefix.unwrap_or(keys), "{s:?} has {prefix:?} or {keys} key rows");
            assert!(s.keys[1].end() <= keys, "{s:?} has {keys} key rows");
        }
    }
}

fn disjoint(spans: impl Iterator<Item = Span>) -> bool {
    let mut spans: Vec<Span> = spans.filter(|s| s.len > 0).collect();
    spans.sort_unstable_by_key(|s| s.start);
    spans.windows(2).all(|w| w[0].end() <= w[1].start)
}

/// What both directions share.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    /// Which rows belong together.
    pub sequences: &'a Sequences,
    /// Heads, side by side in the columns of q, k and v.
    pub heads: usize,
    /// Which keys a row attends to.
    pub mask: Mask,
    /// Factor of q·kᵀ, commonly 1/√(head width).
    pub scale: f64,
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
    /// Whether `dk` and `dv` are written or added to; sequences that share keys are summed.
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
    /// out = softmax(scale·q·kᵀ + mask)·v
    fn attention_forward(&self, what: Attention<'_>, args: AttentionForward<'_, Self>) -> Result<()>;
    /// dq, dk and dv from dout
    fn attention_backward(&self, what: Attention<'_>, args: AttentionBackward<'_, Self>) -> Result<()>;
}

impl Attention<'_> {
    /// Head width; checks the shapes on the way.
    fn check<D: Device>(
        &self,
        q: V<'_, D>,
        k: V<'_, D>,
        v: V<'_, D>,
        prefix: Option<[V<'_, D>; 2]>,
    ) -> usize {
        assert_eq!(k.shape(), v.shape(), "k as v");
        assert_eq!(q.cols(), k.cols(), "q [rows, heads·head width] against k");
        assert!(q.cols().is_multiple_of(self.heads), "{} columns for {} heads", q.cols(), self.heads);
        assert!(
            prefix.is_none_or(|[k, v]| k.shape() == v.shape() && k.cols() == q.cols()),
            "prefix as k and v"
        );
        self.sequences.check(q.rows(), k.rows(), prefix.map(|[k, _]| k.rows()));
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
