//! ITM: the mean of a pair's query outputs, classified.

use super::plan::{Pair, Plan};
use crate::arena::Cursor;
use crate::device::{M, SM, V, Write};
use crate::error::Result;
use crate::layers::linear::Linear;
use crate::ops::Backend;
use crate::ops::matching::{MatchingBackward, MatchingForm, MatchingForward, MatchingGradient};
use crate::ops::pool::{PoolBackward, PoolForward};
use crate::tensor::ViewMut;

/// What ITM works in.
pub(super) struct MatchingActs<'a, B: Backend> {
    /// [P, D]
    pooled: M<'a, B>,
    /// [P, 2]
    logits: M<'a, B>,
    /// [1, P]
    labels: ViewMut<'a, B, u32>,
    /// [1, 1]
    loss: SM<'a, B>,
    /// [1, 2]: told right, and counted
    correct: ViewMut<'a, B, u32>,
    /// [P, 2]
    dlogits: M<'a, B>,
    /// [P, D]
    dpooled: M<'a, B>,
}

impl<'a, B: Backend> MatchingActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, plan: &Plan, hidden: usize) -> Self {
        let pairs = plan.images.len();
        Self {
            pooled: cursor.take(pairs, hidden),
            logits: cursor.take(pairs, 2),
            labels: cursor.take(1, pairs),
            loss: cursor.take(1, 1),
            correct: cursor.take(1, 2),
            dlogits: cursor.take(pairs, 2),
            dpooled: cursor.take(pairs, hidden),
        }
    }
}

/// From the second phase's output [rows, D] to the loss.
pub(super) fn forward<B: Backend>(
    b: &B,
    head: &Linear<V<'_, B>>,
    plan: &Plan,
    pairs: &[Pair],
    output: V<'_, B>,
    acts: &mut MatchingActs<'_, B>,
) -> Result<()> {
    let labels: Vec<u32> = pairs.iter().map(|pair| pair.label).collect();
    b.write_indices(&labels, acts.labels.reborrow())?;
    b.pool_forward(PoolForward { x: output.row_range(0..plan.query_rows()), y: acts.pooled.reborrow() })?;
    head.forward(b, acts.pooled.view(), acts.logits.reborrow())?;
    b.matching_forward(MatchingForward {
        form: MatchingForm::Classifier { logits: acts.logits.view() },
        labels: acts.labels.view(),
        loss: acts.loss.reborrow(),
        correct: acts.correct.reborrow(),
    })
}

impl<B: Backend> MatchingActs<'_, B> {
    /// The loss and the share of pairs told right.
    pub(super) fn read(&self, b: &B) -> Result<(f64, f64)> {
        let correct = b.read_indices(self.correct.view())?;
        let accuracy = f64::from(correct[0]) / f64::from(correct[1].max(1));
        Ok((b.read(self.loss.view())?[0].into(), accuracy))
    }
}

/// The gradient of the second phase's query rows, into `dqueries` [query rows, D].
pub(super) fn backward<B: Backend>(
    b: &B,
    head: &Linear<V<'_, B>>,
    weight: f64,
    acts: &mut MatchingActs<'_, B>,
    gradients: &mut Linear<SM<'_, B>>,
    dqueries: M<'_, B>,
) -> Result<()> {
    b.matching_backward(MatchingBackward {
        form: MatchingForm::Classifier { logits: acts.logits.view() },
        labels: acts.labels.view(),
        correct: acts.correct.view(),
        weight,
        gradient: MatchingGradient::Classifier { dlogits: acts.dlogits.reborrow() },
    })?;
    let to = Some((Write::Replace, acts.dpooled.reborrow()));
    head.backward(b, acts.pooled.view(), acts.dlogits.view(), gradients, to)?;
    b.pool_backward(PoolBackward { dy: acts.dpooled.view(), dx: dqueries })
}
