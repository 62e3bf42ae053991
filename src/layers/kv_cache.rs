//! The key/value cache: keys and values of texts that grow by a token at a time.
//!
//! A token's keys and values are written once, to a row of their own. A sequence is a list of rows, which attention
//! follows, so sequences that go on from one another share what they have in common, and nothing is copied.

use crate::device::{M, V};
use crate::error::Result;
use crate::memory::{Address, Cursor};
use crate::ops::Backend;
use crate::ops::embedding::Ids;
use crate::ops::scatter::Scatter;
use std::ops::Range;

/// The cache of all blocks of a model.
pub struct KvCache<'a, B: Backend> {
    /// Keys and values of each block [rows, 2·D], one block after the other in memory.
    blocks: Vec<M<'a, B>>,
}

impl<'a, B: Backend> KvCache<'a, B> {
    /// For so many tokens of all sequences together.
    pub fn carve(cursor: &mut Cursor<'a, B>, [blocks, tokens, hidden]: [usize; 3]) -> Self {
        Self { blocks: (0..blocks).map(|_| cursor.take(tokens, 2 * hidden)).collect() }
    }

    /// Where it stands.
    pub(crate) fn address(&self) -> Address {
        Address::of(self.blocks[0].view())
    }

    /// Keys and values [rows, D] of a block, after those of new tokens, `keys_values` [count, 2·D], were written to
    /// the rows `slots` [1, count].
    pub(crate) fn extend(
        &mut self,
        b: &B,
        block: usize,
        slots: Ids<'_, B>,
        keys_values: V<'_, B>,
    ) -> Result<[V<'_, B>; 2]> {
        let cached = &mut self.blocks[block];
        b.scatter(Scatter { ids: slots, x: keys_values, y: cached.reborrow() })?;
        let (hidden, cached) = (keys_values.cols() / 2, cached.view());
        Ok([cached.columns(0..hidden), cached.columns(hidden..2 * hidden)])
    }
}

/// A step of sequences in a cache, as its operations read it.
pub(crate) struct CacheStep<'g, 'm, B: Backend> {
    pub(crate) cache: &'g mut KvCache<'m, B>,
    /// [1, new tokens]: the row of each
    pub(crate) slots: Ids<'g, B>,
    /// [1, sequences·longest]: the rows of each sequence's tokens, the new ones among them
    pub(crate) rows: Ids<'g, B>,
}

/// Which rows of a cache each sequence's tokens stand in, as the host knows it.
#[derive(Clone, Debug)]
pub struct CacheRows {
    /// Most tokens of a sequence.
    longest: usize,
    /// Rows that the last step wrote; those before are written too.
    new: Range<u32>,
    /// Of each sequence the rows of its tokens, in order.
    sequences: Vec<Vec<u32>>,
}

impl CacheRows {
    /// Of `sequences` sequences without tokens, none of which grows longer than `longest`.
    pub fn new(sequences: usize, longest: usize) -> Self {
        Self { longest, new: 0..0, sequences: vec![Vec::new(); sequences] }
    }

    /// Most tokens of a sequence.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// How many sequences there are.
    pub fn count(&self) -> usize {
        self.sequences.len()
    }

    /// Tokens of a sequence.
    pub fn length(&self, sequence: usize) -> usize {
        self.sequences[sequence].len()
    }

    /// The sequences that continue `parents`, each by so many tokens. Steps of at most as many sequences as the cache has
    /// room for need no more than its rows.
    pub fn continued(&self, parents: &[usize], tokens: &[usize]) -> Self {
        let first = self.new.end;
        let mut end = first;
        let grown = parents.iter().zip(tokens).map(|(&parent, &tokens)| {
            let tokens = u32::try_from(tokens).expect("a sequence has fewer than 2³² tokens");
            let start = end;
            end = start.checked_add(tokens).expect("a cache has fewer than 2³² rows");
            self.sequences[parent].iter().copied().chain(start..end).collect()
        });
        let sequences = grown.collect();
        Self { longest: self.longest, new: first..end, sequences }
    }

    /// The rows that take the last step's tokens, sequence by sequence.
    pub fn slots(&self) -> Vec<u32> {
        self.new.clone().collect()
    }

    /// [sequences·longest]: the rows of each sequence's tokens, then zeros.
    pub fn table(&self) -> Vec<u32> {
        let filled = |rows: &Vec<u32>| {
            let mut rows = rows.clone();
            rows.resize(self.longest, 0);
            rows
        };
        self.sequences.iter().flat_map(filled).collect()
    }
}
