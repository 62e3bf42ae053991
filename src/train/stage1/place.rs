//! Which part of a step a pass is.

use super::acts::FirstPhaseActs;
use super::plan::{FirstPhaseInputs, ImageRows};
use super::{Recompute, StepPart};
use crate::config::Config;
use crate::device::Write;
use crate::error::Result;
use crate::memory::{Cursor, TensorInput};
use crate::models::qformer::stack::StreamPlan;
use crate::ops::Backend;

/// A micro-batch in its first phase.
pub(super) struct FirstPhase<'a, B: Backend> {
    /// Which one.
    pub(super) index: usize,
    /// [B, N, W]
    pub(super) vision_output: TensorInput<'a, B>,
    pub(super) rows: ImageRows,
    pub(super) alone: &'a FirstPhaseInputs,
}

impl<B: Backend> Clone for FirstPhase<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for FirstPhase<'_, B> {}

impl<B: Backend> FirstPhase<'_, B> {
    pub(super) fn plan(&self) -> &StreamPlan {
        &self.alone.plan
    }

    /// What it works in.
    pub(super) fn carve<'a>(
        &self,
        cursor: &mut Cursor<'a, B>,
        b: &B,
        config: &Config,
        recompute: Recompute,
    ) -> FirstPhaseActs<'a, B> {
        FirstPhaseActs::carve(cursor, b, self.plan(), self.rows, config, recompute)
    }
}

/// Which pass of the second phase it is.
#[derive(Clone, Copy)]
pub(super) struct PairPassIndex {
    /// Which micro-batch's.
    pub(super) batch: usize,
    /// Among those of all micro-batches.
    pub(super) pass: usize,
    /// Whether it is the micro-batch's first.
    pub(super) write: Write,
    /// Of the micro-batch.
    pub(super) passes: usize,
    /// The part of its pairs in those of all passes.
    pub(super) share_of_pairs: f64,
}

impl PairPassIndex {
    /// Of the one pass of a step that has no other.
    pub(super) const ONLY: Self =
        Self { batch: 0, pass: 0, write: Write::Replace, passes: 1, share_of_pairs: 1.0 };
}

/// Called whenever the device has been asked for a part.
pub(super) type Done<'d> = &'d mut dyn FnMut(StepPart) -> Result<()>;
