//! What is done in registers: a block of outputs by a group of rows, along a segment of the numbers that are summed.

use super::vectors::{LANES, Stored, Task, Vectors};
use crate::device::Write;
use std::ptr;

/// Most outputs of a block.
pub(super) const OUTPUTS: usize = 4;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A part of a product.
#[derive(Clone, Copy)]
pub(super) struct Segment<N> {
    /// Where the segment begins in the weight's row of each output; as many as the block has are read.
    pub(super) weights: [*const N; OUTPUTS],
    /// How many numbers are summed.
    pub(super) numbers: usize,
    /// How many bytes after what is read lies that which is asked for meanwhile.
    pub(super) ahead: isize,
    /// The rows, a register of each after the other, then the next; the last ones filled up with zeros.
    pub(super) x: *const f32,
    /// Rows of `x`; of this group there may be fewer.
    pub(super) rows: usize,
    /// What is summed for each row and output, a register.
    pub(super) sums: *mut f32,
    /// Whether this is the first segment.
    pub(super) write: Write,
}

/// A segment for a group of `R` rows and a block of `O` outputs.
pub(super) struct Block<N, const R: usize, const O: usize>(pub(super) Segment<N>);

impl<N: Stored, const R: usize, const O: usize> Task for Block<N, R, O> {
    #[inline(always)]
    unsafe fn run<V: Vectors>(self) {
        let Segment { weights, numbers, ahead, mut x, rows, sums: kept, write } = self.0;
        // SAFETY: the rows of the weight and `x` hold so many numbers, and `kept` as many registers as there are sums;
        // a prefetch reads nothing.
        unsafe {
            let mut weights: [*const N; O] = std::array::from_fn(|output| weights[output]);
            let mut sums = [[V::zeros(); O]; R];
            if write == Write::Add {
                for (r, sums) in sums.iter_mut().enumerate() {
                    for (o, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(kept.add((r * O + o) * V::LANES));
                    }
                }
            }
            let steps = LINE / (V::LANES * size_of::<N>());
            for _ in 0..numbers / (steps * V::LANES) {
                for weights in weights {
                    ask(weights.wrapping_byte_offset(ahead));
                }
                for _ in 0..steps {
                    add::<V, N, R, O>(weights, x, &mut sums);
                    weights = weights.map(|weights| weights.add(V::LANES));
                    x = x.add(rows * V::LANES);
                }
            }
            for _ in 0..numbers % (steps * V::LANES) / V::LANES {
                add::<V, N, R, O>(weights, x, &mut sums);
                weights = weights.map(|weights| weights.add(V::LANES));
                x = x.add(rows * V::LANES);
            }
            let rest = numbers % V::LANES;
            if rest > 0 {
                let mut padded = [[N::default(); LANES]; O];
                for (padded, weights) in padded.iter_mut().zip(weights) {
                    ptr::copy_nonoverlapping(weights, padded.as_mut_ptr(), rest);
                }
                add::<V, N, R, O>(padded.each_ref().map(|padded| padded.as_ptr()), x, &mut sums);
            }
            for (r, sums) in sums.iter().enumerate() {
                for (o, &sum) in sums.iter().enumerate() {
                    V::store(sum, kept.add((r * O + o) * V::LANES));
                }
            }
        }
    }
}

/// Adds the products of a register of each row's numbers with one of each output's.
///
/// # Safety
/// As [`Vectors::load`].
#[inline(always)]
unsafe fn add<V: Vectors, N: Stored, const R: usize, const O: usize>(
    weights: [*const N; O],
    x: *const f32,
    sums: &mut [[V::Register; O]; R],
) {
    // SAFETY: as the caller promises.
    unsafe {
        let weights = weights.map(|weights| N::load::<V>(weights));
        for (r, sums) in sums.iter_mut().enumerate() {
            let x = V::load(x.add(r * V::LANES));
            for (sum, &weight) in sums.iter_mut().zip(&weights) {
                *sum = V::mul_add(x, weight, *sum);
            }
        }
    }
}

/// Asks for a line of memory.
#[inline(always)]
fn ask<N>(address: *const N) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and is allowed on any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// The sum of every register.
pub(super) struct Totals<'a> {
    /// Registers.
    pub(super) sums: *const f32,
    /// One of each.
    pub(super) totals: &'a mut [f32],
}

impl Task for Totals<'_> {
    #[inline(always)]
    unsafe fn run<V: Vectors>(self) {
        for (index, total) in self.totals.iter_mut().enumerate() {
            // SAFETY: there is a register of each.
            *total = unsafe { V::sum(V::load(self.sums.add(index * V::LANES))) };
        }
    }
}
