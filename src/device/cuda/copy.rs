//! Copies between the host's memory and the GPU's.

use super::{Cuda, failure};
use crate::error::Result;
use crate::tensor::Shape;
use cudarc::driver::{result, sys};
use std::ops::Range;

impl Cuda {
    /// Copies to the GPU; the values may change as soon as this returns.
    pub(super) fn copy_in<T>(&self, from: &[T], to: *mut T) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `to` lies in a view of so many elements; memory that is not page-locked is read
        // before the call returns.
        unsafe { result::memcpy_htod_async(to as sys::CUdeviceptr, from, self.0.stream()) }
            .map_err(|error| failure(error, "copy to the GPU"))
    }

    /// Copies from the GPU; the values are there after the stream was waited for.
    pub(super) fn copy_out<T>(&self, from: *const T, to: &mut [T]) -> Result<()> {
        if to.is_empty() {
            return Ok(());
        }
        self.bind()?;
        // SAFETY: `from` lies in a view of so many elements; both callers wait before `to` is read.
        unsafe { result::memcpy_dtoh_async(to, from as sys::CUdeviceptr, self.0.stream()) }
            .map_err(|error| failure(error, "copy from the GPU"))
    }
}

/// Elements that stand together on both sides of a copy.
pub(super) struct Piece {
    /// Where they are among the values.
    pub(super) values: Range<usize>,
    /// Elements from the matrix's first to theirs.
    pub(super) offset: usize,
}

/// The pieces of `count` elements from the `first` on: one, or one a row if there are gaps between rows.
pub(super) struct Pieces {
    cols: usize,
    pitch: usize,
    first: usize,
    next: usize,
    end: usize,
}

impl Pieces {
    pub(super) fn new(shape: Shape, pitch: usize, first: usize, count: usize) -> Self {
        let cols = if pitch == shape.cols { shape.len().max(1) } else { shape.cols };
        Self { cols, pitch, first, next: first, end: first + count }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.next == self.end {
            return None;
        }
        let (row, col) = (self.next / self.cols, self.next % self.cols);
        let len = (self.cols - col).min(self.end - self.next);
        let start = self.next - self.first;
        self.next += len;
        Some(Piece { values: start..start + len, offset: row * self.pitch + col })
    }
}
