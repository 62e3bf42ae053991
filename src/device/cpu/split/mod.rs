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

mod operand;
mod product;

pub(super) use product::product;

use super::real::vectorised;
use super::tile::{DEPTH, Step, TILE, steps};
use crate::tensor::{SPLIT_PANEL, Shape};
use rayon::prelude::*;

/// Steps of a task when numbers are split: some microseconds' work.
const STEPS_PER_TASK: usize = 8;

/// The nearest bf16, of two the even one, as the high half of a word whose low half is zero.
#[inline(always)]
fn bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding could carry a NaN's bits into the sign.
    let bits = if x.is_nan() { bits | 1 << 22 } else { rounded };
    bits & 0xffff_0000
}

/// hi and lo, as [`bf16`] gives them.
#[inline(always)]
fn split(x: f32) -> [u32; 2] {
    let hi = bf16(x);
    [hi, bf16(x - f32::from_bits(hi))]
}

impl Step {
    /// Writes number `input` of a column of the right factor.
    #[inline(always)]
    fn write_number(&mut self, column: usize, input: usize, x: f32) {
        let shift = 16 * (1 - input % 2);
        for (half, bits) in split(x).into_iter().enumerate() {
            let word = &mut self.0[2 * half + column / TILE][input / 2][column % TILE];
            *word = *word & !(0xffff_0000 >> shift) | bits >> shift;
        }
    }
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
                    for index in from..to {
                        step.write_number(row % SPLIT_PANEL, index - start, values[index - first]);
                    }
                    if to == start + depth && from < to {
                        (depth..DEPTH).for_each(|input| step.write_number(row % SPLIT_PANEL, input, 0.0));
                    }
                }
            },
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(x: f32) -> f64 {
        let [hi, lo] = split(x).map(|bits| f64::from(f32::from_bits(bits)));
        hi + lo
    }

    #[test]
    fn two_halves_are_the_number_but_for_its_last_bits() {
        for scale in [1e-20_f32, 1e-3, 1.0, 1e30] {
            for i in 0..DEPTH {
                let x = scale * (1.0 + i as f32 * 0.031_239_7);
                for x in [x, -x] {
                    let (got, x) = (whole(x), f64::from(x));
                    assert!((got - x).abs() <= x.abs() / f64::from(1 << 17), "{got} is not {x}");
                }
            }
        }
    }

    #[test]
    fn numbers_of_sixteen_bits_are_split_exactly() {
        for x in [0.0, -0.0, 1.0, 65_535.0, -65_281.0, 257.0 / 1024.0] {
            assert_eq!(whole(x), f64::from(x));
        }
    }

    #[test]
    fn what_is_not_a_number_stays_so() {
        let nan = [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::from_bits(u32::MAX), f32::INFINITY];
        assert!(nan.into_iter().all(|x| whole(x).is_nan()));
    }
}
