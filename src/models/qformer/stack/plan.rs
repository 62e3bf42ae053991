//! The sizes of a stream.

use crate::layers::stream::FirstKeys;
use crate::ops::attention::{Mask, SequenceSizes};

/// Sizes of a stream: query rows, a set for each image or pair, then text rows; and of the tables that say which rows
/// attend to one another. All operations of a pass over the stream follow from them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StreamPlan {
    /// Query sets.
    pub(crate) sets: usize,
    /// Q
    pub(crate) queries: usize,
    pub(crate) text_rows: usize,
    /// Self-attention.
    pub(crate) groups: Vec<(SequenceSizes, Mask, FirstKeys)>,
    /// Query sets over the rows of their images; absent without query rows.
    pub(crate) cross: Option<SequenceSizes>,
}

impl StreamPlan {
    /// A stream of text alone.
    pub(crate) fn of_text(rows: usize, group: (SequenceSizes, Mask, FirstKeys)) -> Self {
        Self { sets: 0, queries: 0, text_rows: rows, groups: vec![group], cross: None }
    }

    pub(crate) fn query_rows(&self) -> usize {
        self.sets * self.queries
    }

    pub(crate) fn rows(&self) -> usize {
        self.query_rows() + self.text_rows
    }
}
