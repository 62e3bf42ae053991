//! Outputs as features to be compared: projected, then brought to length 1.

use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::layers::{Keep, Linear};
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::normalize::{NormalizeBackward, NormalizeForward};

/// What features are made in.
pub(crate) struct ProjectionActs<'a, B: Backend> {
    /// [rows, E]
    projected: M<'a, B>,
    /// [rows, E]: its gradient
    dprojected: Option<M<'a, B>>,
}

impl<'a, B: Backend> ProjectionActs<'a, B> {
    pub(crate) fn carve(cursor: &mut Cursor<'a, B>, rows: usize, width: usize, keep: Keep) -> Self {
        Self {
            projected: cursor.take(rows, width),
            dprojected: (keep == Keep::ForBackward).then(|| cursor.take(rows, width)),
        }
    }

    /// From x [rows, D] to `unit` [rows, E].
    pub(crate) fn forward(
        &mut self,
        b: &B,
        projection: &Linear<W<'_, B>>,
        x: V<'_, B>,
        unit: M<'_, B>,
    ) -> Result<()> {
        projection.forward(b, x, self.projected.reborrow())?;
        b.normalize_forward(NormalizeForward { x: self.projected.view(), y: unit })
    }

    /// From `dunit` [rows, E] to dx [rows, D].
    pub(crate) fn backward(
        &mut self,
        b: &B,
        projection: &Linear<W<'_, B>>,
        x: V<'_, B>,
        dunit: V<'_, B>,
        gradients: &mut Linear<SM<'_, B>>,
        dx: M<'_, B>,
    ) -> Result<()> {
        let dprojected = self.dprojected.as_mut().expect("kept for the backward pass");
        let to = dprojected.reborrow();
        b.normalize_backward(NormalizeBackward { x: self.projected.view(), dy: dunit, dx: to })?;
        projection.backward(b, x, dprojected.view(), gradients, Some((Write::Replace, dx)))
    }
}
