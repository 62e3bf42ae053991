//! Batches, and how they are made.

use serde::{Deserialize, Serialize};

use super::{Augmentation, Examples, Position};

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Examples in every batch.
    pub batch_size: usize,
    /// Order of an epoch's examples.
    pub order: Order,
    /// Of the order and the augmentation.
    pub seed: u64,
    /// Most tokens of a text, `[CLS]` and `[SEP]` among them; 3 or more.
    pub text_length: usize,
    /// Samples that may be unreadable, each counted once, before it is an error.
    pub max_bad_samples: usize,
    /// What becomes of pictures; features are taken as they are.
    pub augmentation: Augmentation,
}

/// Order of an epoch's examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// Another in every epoch.
    Shuffled,
    /// The data set's.
    Given,
}

/// A batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// As many as were asked for.
    pub examples: Examples,
    /// Where the next batch starts: a loader started there goes on as this one does.
    pub next: Position,
    /// Samples left out because they cannot be read, each named with its fault; those that were known
    /// before are not told again.
    pub unreadable: Vec<String>,
}
