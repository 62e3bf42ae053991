//! Scalars of the optimiser's step.

use crate::device::{Device, SM};
use crate::memory::Cursor;
use crate::ops::norm::PARTIAL_SUMS;

/// Scalars of the optimiser's step.
pub(in crate::train) struct Scalars<'a, D: Device> {
    /// [1, 3]: learning rate, 1 − β1ᵗ, 1 − β2ᵗ
    pub(super) schedule: SM<'a, D>,
    /// [1, 1]
    pub(super) norm: SM<'a, D>,
    /// [1, PARTIAL_SUMS]
    pub(super) partial_sums: SM<'a, D>,
}

impl<'a, D: Device> Scalars<'a, D> {
    pub(in crate::train) fn carve(cursor: &mut Cursor<'a, D>) -> Self {
        Self {
            schedule: cursor.take(1, 3),
            norm: cursor.take(1, 1),
            partial_sums: cursor.take(1, PARTIAL_SUMS),
        }
    }
}
