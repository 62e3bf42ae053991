//! Which rows attend to one another.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::{View, ViewMut};

/// Words of a sequence in the table.
pub const SEQUENCE_WORDS: usize = 8;

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

    pub(super) fn end(self) -> usize {
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
    pub(super) fn query_count(&self) -> usize {
        self.queries[0].len + self.queries[1].len
    }

    pub(super) fn key_count(&self) -> usize {
        self.keys[0].len + self.keys[1].len
    }

    /// Start and length of each span.
    pub(in crate::ops) fn words(&self) -> [u32; SEQUENCE_WORDS] {
        let [a, b, c, d] = [self.queries[0], self.queries[1], self.keys[0], self.keys[1]]
            .map(|span| [word(span.start), word(span.len)]);
        [a[0], a[1], b[0], b[1], c[0], c[1], d[0], d[1]]
    }

    fn of_words(&[a, b, c, d, e, f, g, h]: &[u32; SEQUENCE_WORDS]) -> Self {
        let span = |start: u32, len: u32| Span::new(start as usize, len as usize);
        Self { queries: [span(a, b), span(c, d)], keys: [span(e, f), span(g, h)] }
    }
}

fn word(n: usize) -> u32 {
    u32::try_from(n).expect("a stream has fewer than 2³² rows")
}

/// The sequences of a batch. Those that read the same keys stand next to one another, so that one
/// task can keep the keys at hand and own their gradients.
#[derive(Clone, Debug)]
pub struct Sequences {
    pub(super) sequences: Vec<Sequence>,
    /// Bounds of the groups of sequences with equal keys: group g is `groups[g]..groups[g + 1]`.
    pub(super) groups: Vec<usize>,
    /// Whether some first and second span of keys name the same row, which only a prefix explains.
    spans_share_keys: bool,
    /// Whether no two groups share a key, so that each can own its keys' gradients.
    groups_own_keys: bool,
    sizes: SequenceSizes,
}

/// What the size of the table and the launches of kernels follow from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SequenceSizes {
    /// Groups.
    pub(crate) groups: usize,
    /// Sequences.
    pub(crate) sequences: usize,
    /// Keys of the sequence with most of them.
    pub(crate) keys: usize,
    /// Queries of the group with most of them.
    pub(crate) queries: usize,
}

impl SequenceSizes {
    /// Words of the table.
    pub(crate) fn words(self) -> usize {
        self.groups + 1 + self.sequences * SEQUENCE_WORDS
    }

    /// The sequences of a table [1, words] of these sizes.
    pub(crate) fn placed_at<D>(self, table: View<'_, D, u32>) -> PlacedSequences<'_, D> {
        assert_eq!(table.cols(), self.words(), "the table of other sequences");
        PlacedSequences { sizes: self, table }
    }
}

impl Sequences {
    /// A table of sequences; panics if two groups share a key or two sequences a query.
    pub fn new(sequences: Vec<Sequence>) -> Self {
        let sequences = Self::reading(sequences);
        assert!(sequences.groups_own_keys, "sequences that read the same keys stand apart");
        sequences
    }

    /// The same for the forward pass alone: groups may share keys, as texts that continue one image share
    /// its queries' but not one another's. Panics if two sequences share a query.
    pub fn reading(sequences: Vec<Sequence>) -> Self {
        let mut groups: Vec<usize> =
            (0..sequences.len()).filter(|&i| i == 0 || sequences[i].keys != sequences[i - 1].keys).collect();
        assert!(disjoint(sequences.iter().flat_map(|s| s.queries)), "two sequences share a query row");
        let groups_own_keys = (0..2).all(|span| disjoint(groups.iter().map(|&g| sequences[g].keys[span])));
        let spans_share_keys = !disjoint(groups.iter().flat_map(|&g| sequences[g].keys));
        assert!(
            sequences.iter().all(|s| s.key_count() > 0 || s.query_count() == 0),
            "a query has no key to attend to"
        );
        groups.push(sequences.len());
        let queries = |g: &[usize]| sequences[g[0]..g[1]].iter().map(Sequence::query_count).sum();
        let sizes = SequenceSizes {
            groups: groups.len() - 1,
            sequences: sequences.len(),
            keys: sequences.iter().map(Sequence::key_count).max().unwrap_or(0),
            queries: groups.windows(2).map(queries).max().unwrap_or(0),
        };
        Self { sequences, groups, spans_share_keys, groups_own_keys, sizes }
    }

    pub(crate) fn sizes(&self) -> SequenceSizes {
        self.sizes
    }

    /// The same with sizes that are as large or larger: groups without sequences are added, and room in the
    /// table. Launches over other sequences of these sizes are then the same.
    pub(crate) fn within(mut self, sizes: SequenceSizes) -> Self {
        let own = self.sizes;
        assert!(sizes.groups >= own.groups && sizes.sequences >= own.sequences, "{own:?} within {sizes:?}");
        assert!(sizes.keys >= own.keys && sizes.queries >= own.queries, "{own:?} within {sizes:?}");
        self.groups.resize(sizes.groups + 1, self.sequences.len());
        Self { sizes, ..self }
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

    /// Words of the table.
    pub fn words(&self) -> usize {
        self.sizes.words()
    }

    /// Writes the table [1, words] to where attention reads it.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn place<'a, D: Device>(
        &self,
        device: &D,
        mut table: ViewMut<'a, D, u32>,
    ) -> Result<PlacedSequences<'a, D>> {
        device.write_indices(&self.table(), table.reborrow())?;
        Ok(self.sizes.placed_at(table.into_view()))
    }

    /// Bounds of the groups, then start and length of each sequence's spans: two of queries, two of
    /// keys, then zeros where there is room for more. So a block of threads finds its rows in two reads.
    fn table(&self) -> Vec<u32> {
        let groups = self.groups.iter().map(|&group| word(group));
        let mut table: Vec<u32> = groups.chain(self.sequences.iter().flat_map(Sequence::words)).collect();
        table.resize(self.words(), 0);
        table
    }

    /// What a table is of.
    pub(super) fn of_table(table: &[u32], sizes: SequenceSizes) -> Self {
        let (groups, rest) = table.split_at(sizes.groups + 1);
        let groups: Vec<usize> = groups.iter().map(|&group| group as usize).collect();
        let words = rest.as_chunks::<SEQUENCE_WORDS>().0;
        let sequences = words[..groups[sizes.groups]].iter().map(Sequence::of_words).collect();
        Self { groups, sizes, ..Self::reading(sequences) }
    }

    /// Asserts that gradients of keys can be formed.
    pub(super) fn check_gradients(&self) {
        assert!(self.groups_own_keys, "sequences that share keys have no backward pass");
    }

    pub(super) fn check(&self, queries: usize, keys: usize, prefix: Option<usize>) {
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

/// Sequences as they stand in a device's memory, where the device itself may have written them.
pub struct PlacedSequences<'a, D> {
    pub(super) sizes: SequenceSizes,
    /// [1, words]
    pub(super) table: View<'a, D, u32>,
}

impl<D> Clone for PlacedSequences<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D> Copy for PlacedSequences<'_, D> {}
