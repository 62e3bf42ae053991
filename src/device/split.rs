//! Numbers split in two bf16, and matrices of them as tiles: what [`super::amx`] multiplies.
//!
//! x = hi + lo, where hi is x rounded to bf16 and lo the rest, rounded again: together they are x but
//! for 2⁻¹⁷ of it. A product is hi·hi + hi·lo + lo·hi, summed in `f32`; with lo·lo left out, it is off
//! by 2⁻¹⁵ at most, and a sum of them, of either sign, by 4e-6. The tiles multiply bf16 so much faster
//! than vector registers do `f32` that three products are cheaper than one, and a split number takes
//! the memory of an `f32`.
//!
//! NaN stays NaN. An infinite factor, or one that bf16 rounds to infinity (above 3.39e38), gives NaN,
//! for its lo is none. The tiles take numbers below 1.2e-38 for zero.

use super::{Cpu, Real, V, vectorised};
use crate::tensor::{SPLIT_PANEL, Shape};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Rows of a tile; a tile of B has as many columns.
pub(super) const TILE: usize = 16;

/// Inputs that one step of a product sums over: the columns of a tile of A.
const DEPTH: usize = 32;

/// Rows, and columns, of a block of products: two tiles each way, which with their factors take
/// all eight tile registers.
pub(crate) const BLOCK: usize = 2 * TILE;

const _: () = assert!(SPLIT_PANEL == BLOCK);

/// Steps that are worth a task of their own when numbers are split: some microseconds' work.
const STEPS_PER_TASK: usize = 8;

/// [`DEPTH`] inputs of 32 rows of x or of 32 output channels of a weight, as tiles: hi of the first
/// 16, hi of the others, lo of the first, lo of the others. A row of x's tile is a row of x; one of a
/// weight's has two inputs of every output channel, pair by pair.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Step([[[u16; DEPTH]; TILE]; 4]);

/// A block of products.
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [[f32; BLOCK]; BLOCK]);

/// Steps that so many inputs take.
pub(crate) const fn steps(inputs: usize) -> usize {
    inputs.div_ceil(DEPTH)
}

/// The nearest bf16, of two the even one.
#[inline(always)]
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding could carry a NaN's bits into the sign.
    let bits = if x.is_nan() { bits | 1 << 22 } else { rounded };
    (bits >> 16) as u16
}

/// hi and lo of up to [`DEPTH`] numbers, and zeros.
#[inline(always)]
fn split<E: Real>(x: &[E]) -> [[u16; DEPTH]; 2] {
    let mut rest = [0.0; DEPTH];
    if let Ok(x) = <&[E; DEPTH]>::try_from(x) {
        // The common case, of a length that the compiler knows.
        rest.iter_mut().zip(x).for_each(|(to, x)| *to = x.to_f32());
    } else {
        rest.iter_mut().zip(x).for_each(|(to, x)| *to = x.to_f32());
    }
    let [mut hi, mut lo] = [[0; DEPTH]; 2];
    for i in 0..DEPTH {
        hi[i] = bf16(rest[i]);
        rest[i] -= f32::from_bits(u32::from(hi[i]) << 16);
    }
    for i in 0..DEPTH {
        lo[i] = bf16(rest[i]);
    }
    [hi, lo]
}

impl Step {
    const ZERO: Self = Self([[[0; DEPTH]; TILE]; 4]);

    /// Takes the inputs `first..` of [`BLOCK`] rows. Zeros stand for rows and inputs that are not.
    #[inline(always)]
    fn take_rows<'a, E: Real>(&mut self, row: impl Fn(usize) -> &'a [E], first: usize) {
        for r in 0..BLOCK {
            let row = row(r);
            let [hi, lo] = split(&row[first.min(row.len())..row.len().min(first + DEPTH)]);
            self.0[r / TILE][r % TILE] = hi;
            self.0[2 + r / TILE][r % TILE] = lo;
        }
    }

    /// Writes the inputs `range` of an output channel.
    #[inline(always)]
    fn write_channel(&mut self, channel: usize, range: Range<usize>, [hi, lo]: [[u16; DEPTH]; 2]) {
        let (half, column) = (channel / TILE, 2 * (channel % TILE));
        for (input, (hi, lo)) in range.zip(hi.into_iter().zip(lo)) {
            self.0[half][input / 2][column + input % 2] = hi;
            self.0[2 + half][input / 2][column + input % 2] = lo;
        }
    }
}

/// Where the last product's x was split, kept because fresh memory is slow at first touch.
static KEPT: Mutex<Vec<Step>> = Mutex::new(Vec::new());

/// Calls `multiply` with x, split: the steps of its first [`BLOCK`] rows, of the next, and so on.
pub(crate) fn with_split_rows<E: Real>(x: V<'_, Cpu<E>>, multiply: impl FnOnce(&[Step])) {
    let per_block = steps(x.cols());
    let count = x.rows().div_ceil(BLOCK) * per_block;
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut split = std::mem::take(&mut *kept());
    if split.len() < count {
        split.resize(count, Step::ZERO);
    }
    let used = &mut split[..count];
    used.par_iter_mut().enumerate().with_min_len(STEPS_PER_TASK).for_each(|(index, step)| {
        let (first_row, first_col) = (index / per_block * BLOCK, index % per_block * DEPTH);
        let row = |r: usize| if first_row + r < x.rows() { x.row(first_row + r) } else { &[] };
        vectorised(
            #[inline(always)]
            || step.take_rows(row, first_col),
        );
    });
    multiply(used);
    *kept() = split;
}

/// Writes `values` as the elements of a weight of `shape` from the `first` on, counted row by row.
/// The inputs that fill its last step up are zeros.
pub(super) fn write(values: &[f32], first: usize, shape: Shape, weight: &mut [Step]) {
    let (end, cols, per_panel) = (first + values.len(), shape.cols, steps(shape.cols));
    if values.is_empty() {
        return;
    }
    let rows = first / cols..end.div_ceil(cols);
    let panels = rows.start / SPLIT_PANEL..rows.end.div_ceil(SPLIT_PANEL);
    let steps = &mut weight[panels.start * per_panel..panels.end * per_panel];
    steps.par_iter_mut().enumerate().with_min_len(STEPS_PER_TASK).for_each(|(index, step)| {
        let (panel, begin) = (panels.start + index / per_panel, index % per_panel * DEPTH);
        let depth = DEPTH.min(cols - begin);
        vectorised(
            #[inline(always)]
            || {
                for row in rows.start.max(panel * SPLIT_PANEL)..rows.end.min((panel + 1) * SPLIT_PANEL) {
                    // This row's inputs of this step, as far as they are among `values`.
                    let start = row * cols + begin;
                    let (from, to) = (first.max(start), end.min(start + depth));
                    if from < to {
                        let last = if to - start == cols - begin { DEPTH } else { to - start };
                        let split = split(&values[from - first..to - first]);
                        step.write_channel(row % SPLIT_PANEL, from - start..last, split);
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole([hi, lo]: [[u16; DEPTH]; 2], i: usize) -> f64 {
        let wide = |half: u16| f64::from(f32::from_bits(u32::from(half) << 16));
        wide(hi[i]) + wide(lo[i])
    }

    #[test]
    fn two_halves_are_the_number_but_for_its_last_bits() {
        for scale in [1e-20_f32, 1e-3, 1.0, 1e30] {
            let x: Vec<f32> = (0..DEPTH).map(|i| scale * (1.0 + i as f32 * 0.031_239_7)).collect();
            for sign in [1.0, -1.0] {
                let x: Vec<f32> = x.iter().map(|x| sign * x).collect();
                let halves = split(&x);
                for (i, &x) in x.iter().enumerate() {
                    let (got, x) = (whole(halves, i), f64::from(x));
                    assert!((got - x).abs() <= x.abs() / f64::from(1 << 17), "{got} is not {x}");
                }
            }
        }
    }

    #[test]
    fn numbers_of_sixteen_bits_are_split_exactly_and_the_rest_is_zero() {
        let x = [0.0, -0.0, 1.0, 65_535.0, -65_281.0, 257.0 / 1024.0];
        let halves = split(&x);
        assert!((0..DEPTH).all(|i| whole(halves, i) == x.get(i).copied().unwrap_or(0.0)));
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let nan = [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(u32::MAX), f32::INFINITY];
        let halves = split(&nan);
        assert!((0..nan.len()).all(|i| whole(halves, i).is_nan()));
    }
}
