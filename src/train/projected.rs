//! Outputs as features to be compared: projected, then brought to length 1.

use crate::arena::Cursor;
use crate::device::{M, SM, V, Write};
use crate::error::Result;
use crate::layers::linear::Linear;
use crate::ops::Backend;
use crate::ops::normalize::{NormalizeBackward, NormalizeForward};

/// What features are made in.
pub(super) struct ProjectedActs<'a, B: Backend> {
    /// [rows, E]
    projected: M<'a, B>,
    /// [rows, E]: its gradient
    dprojected: M<'a, B>,
}

impl<'a, B: Backend> ProjectedActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, rows: usize, width: usize) -> Self {
        Self { projected: cursor.take(rows, width), dprojected: cursor.take(rows, width) }
    }

    /// From x [rows, D] to `unit` [rows, E].
    pub(super) fn forward(
        &mut self,
        b: &B,
        projection: &Linear<V<'_, B>>,
        x: V<'_, B>,
        unit: M<'_, B>,
    ) -> Result<()> {
        projection.forward(b, x, self.projected.reborrow())?;
        b.normalize_forward(NormalizeForward { x: self.projected.view(), y: unit })
    }

    /// From `dunit` [rows, E] to dx [rows, D].
    pub(super) fn backward(
        &mut self,
        b: &B,
        projection: &Linear<V<'_, B>>,
        x: V<'_, B>,
        dunit: V<'_, B>,
        gradients: &mut Linear<SM<'_, B>>,
        dx: M<'_, B>,
    ) -> Result<()> {
        let (x_projected, dprojected) = (self.projected.view(), self.dprojected.reborrow());
        b.normalize_backward(NormalizeBackward { x: x_projected, dy: dunit, dx: dprojected })?;
        projection.backward(b, x, self.dprojected.view(), gradients, Some((Write::Replace, dx)))
    }
}
