//! Factors of a product, split on the way from memory to tiles.

use super::{BLOCK, DEPTH, PAIRS, STEPS_PER_TASK, Step, TILE, split, steps};
use crate::device::amx::Amx;
use crate::device::{Cpu, Real, V, vectorised};
use rayon::prelude::*;

/// Which factor of a product a matrix is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// a of a·b
    Left,
    /// b of a·b
    Right,
}

/// What of a matrix a product sums over.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Summed {
    Columns,
    Rows,
}

/// A matrix to be split.
pub(crate) struct Operand<'a, E: Real> {
    values: V<'a, Cpu<E>>,
    summed: Summed,
}

impl<E: Real> Clone for Operand<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: Real> Copy for Operand<'_, E> {}

/// Where the steps are written, each by one task.
struct Steps(*mut Step);

// SAFETY: a step is reached through `at` alone, whose caller promises to be alone on it.
unsafe impl Sync for Steps {}

impl Steps {
    /// # Safety
    /// The step must be one of those that are written, and no other reference to it alive.
    #[expect(clippy::mut_from_ref, reason = "steps are disjoint; the caller keeps each to one task")]
    unsafe fn at(&self, index: usize) -> &mut Step {
        // SAFETY: as the caller promises.
        unsafe { &mut *self.0.add(index) }
    }
}

/// Words of hi and of lo of two numbers.
#[inline(always)]
fn words<E: Real>(first: E, second: E) -> [u32; 2] {
    let (first, second) = (split(first.to_f32()), split(second.to_f32()));
    [first[0] >> 16 | second[0], first[1] >> 16 | second[1]]
}

impl<'a, E: Real> Operand<'a, E> {
    /// A product sums over its columns: rows of a, or channels of a weight.
    pub(crate) fn summed_by_columns(values: V<'a, Cpu<E>>) -> Self {
        Self { values, summed: Summed::Columns }
    }

    /// A product sums over its rows.
    pub(crate) fn summed_by_rows(values: V<'a, Cpu<E>>) -> Self {
        Self { values, summed: Summed::Rows }
    }

    /// Rows of a, or columns of b.
    pub(super) fn count(self) -> usize {
        if self.summed == Summed::Columns { self.values.rows() } else { self.values.cols() }
    }

    /// How many numbers are summed.
    pub(super) fn depth(self) -> usize {
        if self.summed == Summed::Columns { self.values.cols() } else { self.values.rows() }
    }

    /// Steps that it takes.
    pub(super) fn steps(self) -> usize {
        self.count().div_ceil(BLOCK) * steps(self.depth())
    }

    /// 32 numbers of a row of the matrix, in place or, where some do not exist and are zeros, in `padded`.
    #[inline(always)]
    fn load<'p>(self, row: usize, first: usize, padded: &'p mut [E; BLOCK]) -> &'p [E; BLOCK]
    where
        'a: 'p,
    {
        let row = if row < self.values.rows() { self.values.row(row) } else { &[] };
        let row = &row[first.min(row.len())..row.len().min(first + BLOCK)];
        <&[E; BLOCK]>::try_from(row).unwrap_or_else(|_| {
            padded.fill(E::ZERO);
            padded[..row.len()].copy_from_slice(row);
            padded
        })
    }

    /// Splits 32 numbers of a row: a word has neighbours in it.
    #[inline(always)]
    fn split_row(self, row: usize, first: usize, tile_row: usize, to: &mut Step) {
        let mut padded = [E::ZERO; BLOCK];
        let x = self.load(row, first, &mut padded);
        let (tile, r) = (tile_row / TILE, tile_row % TILE);
        for i in 0..PAIRS {
            let [hi, lo] = words(x[2 * i], x[2 * i + 1]);
            to.0[tile][r][i] = hi;
            to.0[2 + tile][r][i] = lo;
        }
    }

    /// Splits 32 numbers each of two rows: a word has two of a column.
    #[inline(always)]
    fn split_rows(self, row: usize, first: usize, tile_row: usize, to: &mut Step) {
        let mut padded = [[E::ZERO; BLOCK]; 2];
        let [padding, other] = &mut padded;
        let (x, y) = (self.load(row, first, padding), self.load(row + 1, first, other));
        for tile in 0..2 {
            for c in 0..TILE {
                let [hi, lo] = words(x[tile * TILE + c], y[tile * TILE + c]);
                to.0[tile][tile_row][c] = hi;
                to.0[2 + tile][tile_row][c] = lo;
            }
        }
    }

    /// Splits it, into `to`: the steps of the first [`BLOCK`] rows or columns, of the next, and so on.
    pub(super) fn write(self, amx: Amx, side: Side, to: &mut [Step]) {
        assert_eq!(to.len(), self.steps());
        let (blocks, per_block) = (self.count().div_ceil(BLOCK), steps(self.depth()));
        // A task goes along the rows of the matrix, as they lie in memory: through steps of one block, or
        // through one step of neighbouring blocks.
        let [lines, along] = match self.summed {
            Summed::Columns => [blocks, per_block],
            Summed::Rows => [per_block, blocks],
        };
        // A word has neighbours of a row of the left factor, and of a column of the right one.
        let transposed = (self.summed == Summed::Columns) == (side == Side::Right);
        let tasks = along.div_ceil(STEPS_PER_TASK);
        let to = Steps(to.as_mut_ptr());
        (0..lines * tasks).into_par_iter().for_each(|task| {
            let (line, first) = (task / tasks, task % tasks * STEPS_PER_TASK);
            let run = first..along.min(first + STEPS_PER_TASK);
            let index = |at| match self.summed {
                Summed::Columns => line * per_block + at,
                Summed::Rows => at * per_block + line,
            };
            vectorised(
                #[inline(always)]
                || match self.summed {
                    Summed::Columns => {
                        for r in 0..BLOCK {
                            for at in run.clone() {
                                // SAFETY: a step of this block is this task's alone.
                                let to = unsafe { to.at(index(at)) };
                                self.split_row(line * BLOCK + r, at * DEPTH, r, to);
                            }
                        }
                    }
                    Summed::Rows => {
                        for i in 0..PAIRS {
                            for at in run.clone() {
                                // SAFETY: this step of a block is this task's alone.
                                let to = unsafe { to.at(index(at)) };
                                self.split_rows(line * DEPTH + 2 * i, at * BLOCK, i, to);
                            }
                        }
                    }
                },
            );
            if transposed {
                for at in run {
                    // SAFETY: as above.
                    let to = unsafe { to.at(index(at)) };
                    to.0.iter_mut().for_each(|tile| amx.transpose(tile));
                }
            }
        });
    }
}
