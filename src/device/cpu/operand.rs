//! Factors of a product, as they lie in memory.

use super::{Cpu, Real};
use crate::device::W;
use crate::tensor::NumberType;
use std::ops::Range;

/// Whether a product sums over a matrix's columns or its rows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Summed {
    Columns,
    Rows,
}

/// A factor of a product, as it lies in memory.
pub(crate) struct Operand<'a, E: Real> {
    /// By rows; of 16 bits where it is a weight that is stored so.
    pub(super) values: W<'a, Cpu<E>>,
    pub(super) summed: Summed,
}

impl<E: Real> Clone for Operand<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: Real> Copy for Operand<'_, E> {}

impl<'a, E: Real> Operand<'a, E> {
    /// A product sums over its columns: rows of a, or channels of a weight.
    pub(crate) fn summed_by_columns(values: impl Into<W<'a, Cpu<E>>>) -> Self {
        Self { values: values.into(), summed: Summed::Columns }
    }

    /// A product sums over its rows.
    pub(crate) fn summed_by_rows(values: impl Into<W<'a, Cpu<E>>>) -> Self {
        Self { values: values.into(), summed: Summed::Rows }
    }

    /// Whether its numbers are those that the CPU computes in, or have to be widened.
    pub(super) fn is_own(self) -> bool {
        !matches!(self.values.dtype(), NumberType::F16 | NumberType::Bf16)
    }

    /// Rows of a, or columns of b.
    pub(super) fn count(self) -> usize {
        if self.summed == Summed::Columns { self.values.rows() } else { self.values.cols() }
    }

    /// Some of the rows of a, or columns of b.
    pub(super) fn part(self, lines: Range<usize>) -> Self {
        let values = match self.summed {
            Summed::Columns => self.values.row_range(lines),
            Summed::Rows => self.values.columns(lines),
        };
        Self { values, ..self }
    }

    /// How many numbers are summed.
    pub(super) fn depth(self) -> usize {
        if self.summed == Summed::Columns { self.values.cols() } else { self.values.rows() }
    }
}

/// The right factor of a product.
pub(crate) enum Columns<'a, E: Real> {
    /// The output channels of a weight in panels, plain or split.
    Panels(W<'a, Cpu<E>>),
    /// To be brought to the layout that the device multiplies by first.
    Whole(Operand<'a, E>),
}
