//! Views of the CPU's memory, row by row.

use super::{Cpu, Real};
use crate::tensor::{Element, NumberType, View, ViewMut, Weight};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::marker::PhantomData;
use std::ops::Range;

impl<'a, C, E: Element> View<'a, Cpu<C>, E> {
    /// One row of a matrix that is stored by rows.
    #[inline(always)]
    pub fn row(self, index: usize) -> &'a [E] {
        assert!(index < self.rows());
        // SAFETY: the row lies within memory that the view borrows for 'a.
        unsafe { std::slice::from_raw_parts(self.pointer().add(index * self.pitch()), self.cols()) }
    }
}

/// Numbers of a row that are widened on the way to `f64`.
const WIDENED: usize = 64;

impl<'a, E: Real> Weight<'a, Cpu<E>> {
    /// A row of a weight that is stored by rows, as it lies in memory.
    #[inline(always)]
    pub(super) fn row_bytes(self, index: usize) -> &'a [u8] {
        match self.dtype() {
            NumberType::F16 => bytemuck::cast_slice(self.matrix::<f16>().row(index)),
            NumberType::Bf16 => bytemuck::cast_slice(self.matrix::<bf16>().row(index)),
            NumberType::F32 | NumberType::F64 => bytemuck::cast_slice(self.matrix::<E>().row(index)),
        }
    }

    /// Writes the numbers of a row of a weight that is stored by rows, those from `first` on, as the CPU computes
    /// with them.
    #[inline(always)]
    pub(crate) fn read_row(self, index: usize, first: usize, to: &mut [E]) {
        let range = first..first + to.len();
        match self.dtype() {
            NumberType::F16 => widen(&self.matrix::<f16>().row(index)[range], to),
            NumberType::Bf16 => widen(&self.matrix::<bf16>().row(index)[range], to),
            NumberType::F32 | NumberType::F64 => to.copy_from_slice(&self.matrix::<E>().row(index)[range]),
        }
    }
}

/// Writes numbers of 16 bits as the CPU computes with them.
#[inline(always)]
fn widen<N: Copy, E: Real>(from: &[N], to: &mut [E])
where
    [N]: HalfFloatSliceExt,
{
    if E::TYPE == NumberType::F32 {
        return from.convert_to_f32_slice(bytemuck::cast_slice_mut(to));
    }
    let mut widened = [0.0; WIDENED];
    for (from, to) in from.chunks(WIDENED).zip(to.chunks_mut(WIDENED)) {
        from.convert_to_f32_slice(&mut widened[..from.len()]);
        to.iter_mut().zip(widened).for_each(|(to, x)| *to = E::of_f32(x));
    }
}

/// The rows of an exclusive view, to be handed out to many threads.
pub(crate) struct Rows<'a, E> {
    pointer: *mut E,
    pitch: usize,
    rows: usize,
    cols: usize,
    borrow: PhantomData<&'a mut [E]>,
}

// SAFETY: a row is reached only through `row`, whose caller promises to be alone on it.
unsafe impl<E: Send> Sync for Rows<'_, E> {}

impl<'a, C, E: Element> ViewMut<'a, Cpu<C>, E> {
    /// One row of a matrix that is stored by rows.
    pub fn row_mut(&mut self, index: usize) -> &mut [E] {
        assert!(index < self.rows());
        let (offset, cols) = (index * self.pitch(), self.cols());
        // SAFETY: the row lies within memory that is this view's alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().add(offset), cols) }
    }

    /// Hands the rows out one by one.
    pub(crate) fn into_rows(mut self) -> Rows<'a, E> {
        let (pitch, shape) = (self.pitch(), self.shape());
        Rows { pointer: self.pointer(), pitch, rows: shape.rows, cols: shape.cols, borrow: PhantomData }
    }
}

impl<E> Rows<'_, E> {
    /// # Safety
    /// No other slice of the same row may be alive.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "rows are disjoint; the caller keeps each to one task")]
    pub(crate) unsafe fn row(&self, index: usize) -> &mut [E] {
        assert!(index < self.rows);
        // SAFETY: within the view; alone on it as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(index * self.pitch), self.cols) }
    }

    /// Address of an element, for matrix products on a block of rows and columns.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, col: usize) -> *mut E {
        assert!(row < self.rows && col < self.cols);
        // SAFETY: within the view.
        unsafe { self.pointer.add(row * self.pitch + col) }
    }

    pub(crate) fn pitch(&self) -> usize {
        self.pitch
    }

    /// Columns `range` of every row.
    pub(crate) fn columns(&self, range: Range<usize>) -> Rows<'_, E> {
        assert!(range.start <= range.end && range.end <= self.cols);
        let pointer = self.pointer.wrapping_add(range.start);
        Rows { pointer, pitch: self.pitch, rows: self.rows, cols: range.len(), borrow: PhantomData }
    }
}
