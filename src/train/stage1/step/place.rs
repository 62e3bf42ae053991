//! Which part of a step a pass is.

use super::acts::FirstPhaseActs;
use super::plan::{FirstPhaseInputs, ImageRows};
use crate::config::Config;
use crate::device::Write;
use crate::error::Result;
use crate::memory::{Cursor, TensorInput};
use crate::models::qformer::stack::StreamPlan;
use crate::ops::Backend;
use crate::train::stage1::{Recompute, StepPart};

/// A micro-batch in its first phase.
pub(in crate::train::stage1) struct FirstPhase<'a, B: Backend> {
    /// Which one.
    pub(in crate::train::stage1) index: usize,
    /// [B, N, W]
    pub(in crate::train::stage1) vision_output: TensorInput<'a, B>,
    pub(in crate::train::stage1) rows: ImageRows,
    pub(in crate::train::stage1) alone: &'a FirstPhaseInputs,
}

impl<B: Backend> Clone for FirstPhase<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for FirstPhase<'_, B> {}

impl<B: Backend> FirstPhase<'_, B> {
    pub(in crate::train::stage1) fn plan(&self) -> &StreamPlan {
        &self.alone.plan
    }

    /// What it works in.
    pub(in crate::train::stage1) fn carve<'a>(
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
pub(in crate::train::stage1) struct PairPassIndex {
    /// Which micro-batch's.
    pub(in crate::train::stage1) batch: usize,
    /// Among those of all micro-batches.
    pub(in crate::train::stage1) pass: usize,
    /// Whether it is the micro-batch's first.
    pub(in crate::train::stage1) write: Write,
    /// Of the micro-batch.
    pub(in crate::train::stage1) passes: usize,
    /// The part of its pairs in those of all passes.
    pub(in crate::train::stage1) share_of_pairs: f64,
}

impl PairPassIndex {
    /// Of the one pass of a step that has no other.
    pub(in crate::train::stage1) const ONLY: Self =
        Self { batch: 0, pass: 0, write: Write::Replace, passes: 1, share_of_pairs: 1.0 };
}

/// Called whenever the device has been asked for a part.
pub(in crate::train::stage1) type Done<'d> = &'d mut dyn FnMut(StepPart) -> Result<()>;
