//! Factors of a product, split on the way from memory to tiles.

use crate::device::cpu::Real;
use crate::device::cpu::amx::Amx;
use crate::device::cpu::operand::{Operand, Summed};
use crate::device::cpu::single::prefetch;
use crate::device::cpu::tile::{BLOCK, DEPTH, Step, TILE, steps};
use rayon::prelude::*;
use std::ops::Range;

/// Which factor of a product a matrix is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// a of a·b
    Left,
    /// b of a·b
    Right,
}

/// Blocks of numbers, side by side, that are split at a time: few enough to be transposed while they are in the
/// nearest cache, and some microseconds' work.
const RUN: usize = 8;

/// Where the steps of a part of a matrix are written: those of a block of rows or columns one after the other.
pub(super) struct Steps {
    pointer: *mut Step,
    /// First block and first step of the part.
    origin: [usize; 2],
    /// Steps of a block in it.
    per_block: usize,
}

// SAFETY: a step is reached through `at` alone, whose caller promises to be alone on it.
unsafe impl Sync for Steps {}

impl Steps {
    /// For these blocks and steps.
    pub(super) fn of(to: &mut [Step], blocks: Range<usize>, steps: Range<usize>) -> Self {
        assert_eq!(to.len(), blocks.len() * steps.len());
        Self { pointer: to.as_mut_ptr(), origin: [blocks.start, steps.start], per_block: steps.len() }
    }

    /// # Safety
    /// The step must be one of those that are written, and no other reference to it alive.
    #[expect(clippy::mut_from_ref, reason = "steps are disjoint; the caller keeps each to one task")]
    #[inline(always)]
    unsafe fn at(&self, block: usize, step: usize) -> &mut Step {
        let index = (block - self.origin[0]) * self.per_block + step - self.origin[1];
        // SAFETY: as the caller promises.
        unsafe { &mut *self.pointer.add(index) }
    }
}

impl<'a, E: Real> Operand<'a, E> {
    /// Steps that it takes.
    pub(super) fn steps(self) -> usize {
        self.count().div_ceil(BLOCK) * steps(self.depth())
    }

    /// 32 numbers of a row of the matrix, in place or, where some do not exist and are zeros, in `padded`.
    #[inline(always)]
    fn load<'p>(self, row: usize, first: usize, padded: &'p mut [E; BLOCK]) -> &'p [f32; BLOCK]
    where
        'a: 'p,
    {
        let end = if row < self.values.rows() { self.values.cols().min(first + BLOCK) } else { first };
        if end == first + BLOCK && self.is_own() {
            let row = &self.values.matrix::<E>().row(row)[first..end];
            // The tiles are there for `f32` alone.
            return bytemuck::cast_ref(row.first_chunk::<BLOCK>().expect("so many numbers"));
        }
        let there = end.saturating_sub(first);
        padded[there..].fill(E::ZERO);
        if there > 0 {
            self.values.read_row(row, first, &mut padded[..there]);
        }
        bytemuck::cast_ref(padded)
    }

    /// Splits 32 numbers of a row: a word has neighbours in it.
    #[inline(always)]
    fn split_row(self, amx: Amx, row: usize, first: usize, tile_row: usize, to: &mut Step) {
        let (tile, r) = (tile_row / TILE, tile_row % TILE);
        let mut padding = [E::ZERO; BLOCK];
        let [hi, lo] = amx.split_neighbours(self.load(row, first, &mut padding));
        to.0[tile][r] = hi;
        to.0[2 + tile][r] = lo;
    }

    /// Splits 32 numbers each of two rows: a word has two of a column.
    #[inline(always)]
    fn split_rows(self, amx: Amx, row: usize, first: usize, tile_row: usize, to: &mut Step) {
        let mut padding = [[E::ZERO; BLOCK]; 2];
        let [padded, other] = &mut padding;
        let (x, y) = (self.load(row, first, padded), self.load(row + 1, first, other));
        for tile in 0..2 {
            let [x, y] = [x, y].map(|numbers| &numbers.as_chunks::<TILE>().0[tile]);
            let [hi, lo] = amx.split_pairs(x, y);
            to.0[tile][tile_row] = hi;
            to.0[2 + tile][tile_row] = lo;
        }
    }

    /// Splits all of it, into `to`: the steps of the first [`BLOCK`] rows or columns, of the next, and so on.
    pub(super) fn write(self, amx: Amx, side: Side, to: &mut [Step]) {
        let (blocks, steps) = (self.count().div_ceil(BLOCK), steps(self.depth()));
        let to = Steps::of(to, 0..blocks, 0..steps);
        let [lines, along] = self.lines([0..blocks, 0..steps]);
        let runs = along.len().div_ceil(RUN);
        (0..lines.len() * runs).into_par_iter().for_each(|task| {
            let (line, first) = (task / runs, task % runs * RUN);
            let part = self.lines([line..line + 1, first..along.end.min(first + RUN)]);
            // SAFETY: each step is one task's.
            unsafe { self.write_part(amx, side, part, &to) };
        });
    }

    /// Of blocks and steps, first those that lie one under the other in the matrix, then those that lie side
    /// by side; or the other way round.
    fn lines(self, [blocks, steps]: [Range<usize>; 2]) -> [Range<usize>; 2] {
        match self.summed {
            Summed::Columns => [blocks, steps],
            Summed::Rows => [steps, blocks],
        }
    }

    /// Splits these blocks' steps, along the rows of the matrix, as they lie in memory.
    ///
    /// # Safety
    /// They must be among those of `to`, and this task's alone.
    pub(super) unsafe fn write_part(self, amx: Amx, side: Side, part: [Range<usize>; 2], to: &Steps) {
        // A word has neighbours of a row of the left factor, and of a column of the right one.
        let transposed = (self.summed == Summed::Columns) == (side == Side::Right);
        let [lines, along] = self.lines(part);
        for line in lines {
            for first in along.clone().step_by(RUN) {
                let run = first..along.end.min(first + RUN);
                let (below, next) = if run.end < along.end { (0, run.end) } else { (1, along.start) };
                let at = |at| {
                    let [block, step] = self.lines([line..line, at..at]).map(|range| range.start);
                    // SAFETY: as the caller promises.
                    unsafe { to.at(block, step) }
                };
                amx.vectorised(
                    #[inline(always)]
                    || {
                        for r in 0..BLOCK {
                            self.ask((line + below) * BLOCK + r, next * BLOCK);
                            match self.summed {
                                Summed::Columns => {
                                    for i in run.clone() {
                                        self.split_row(amx, line * BLOCK + r, i * DEPTH, r, at(i));
                                    }
                                }
                                Summed::Rows if r % 2 == 0 => {
                                    for i in run.clone() {
                                        self.split_rows(amx, line * DEPTH + r, i * BLOCK, r / 2, at(i));
                                    }
                                }
                                Summed::Rows => {}
                            }
                        }
                    },
                );
                if transposed {
                    run.for_each(|i| at(i).0.iter_mut().for_each(|tile| amx.transpose(tile)));
                }
            }
        }
    }

    /// Asks for what a run reads of a row, if there is such a row.
    #[inline(always)]
    fn ask(self, row: usize, first: usize) {
        if row < self.values.rows() && first < self.values.cols() {
            let run = self.values.columns(first..self.values.cols().min(first + RUN * BLOCK));
            prefetch(run.row_bytes(row));
        }
    }
}
