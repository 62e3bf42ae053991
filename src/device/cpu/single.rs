//! Products on the calling thread alone, through the `gemm` crate.

use super::{Cpu, Real};
use crate::device::Write;
use crate::tensor::View;

/// A factor of [`product`]: its first element, and the steps to the next row and column.
#[derive(Clone, Copy)]
pub(crate) struct Factor<E> {
    pub pointer: *const E,
    pub row_step: usize,
    pub col_step: usize,
}

impl<E: Real> Factor<E> {
    /// The rows of `view` from `row` on and its columns from `col` on.
    pub(crate) fn of(view: View<'_, Cpu<E>, E>, row: usize, col: usize) -> Self {
        let pitch = view.pitch();
        assert!(row <= view.rows() && col <= view.cols());
        // Wrapping: an empty part of the view may start past the last element.
        let pointer = view.pointer().wrapping_add(row * pitch + col);
        Self { pointer, row_step: pitch, col_step: 1 }
    }

    /// A matrix in a slice, row after row.
    pub(crate) fn rows(values: &[E], cols: usize) -> Self {
        Self { pointer: values.as_ptr(), row_step: cols, col_step: 1 }
    }

    /// The transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        Self { row_step: self.col_step, col_step: self.row_step, ..self }
    }
}

/// Asks for memory that is about to be read from end to end. The product's own loop, with its few
/// loads in flight, would draw it in at two thirds of the speed.
pub(crate) fn prefetch<E>(memory: &[E]) {
    #[cfg(target_arch = "x86_64")]
    for line in memory.chunks(64 / size_of::<E>()) {
        // SAFETY: a prefetch reads nothing and is allowed on any address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}

/// c (m×n) = a (m×k) · b (k×n), or c += a · b, on the calling thread alone.
///
/// # Safety
/// The three matrices must lie in memory that may be read (a, b) and written (c) meanwhile.
pub(crate) unsafe fn product<E: Real>(
    [m, n, k]: [usize; 3],
    a: Factor<E>,
    b: Factor<E>,
    write: Write,
    (c, c_row_step, c_col_step): (*mut E, usize, usize),
) {
    let step = |s: usize| isize::try_from(s).expect("a matrix is smaller than the address space");
    // SAFETY: as this function's caller promises.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            step(c_col_step),
            step(c_row_step),
            write == Write::Add,
            a.pointer,
            step(a.col_step),
            step(a.row_step),
            b.pointer,
            step(b.col_step),
            step(b.row_step),
            E::ONE,
            E::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
