//! Products of a few rows with a weight of 16-bit numbers by rows, which pass from memory to registers once: decoding
//! takes as long as reading its weights does.
//!
//! Threads share the outputs in stripes, each a long stretch of memory. Of a stripe, blocks of a few outputs are
//! multiplied by all rows while the sums stay in registers. A sum is one register's along all numbers, added up at the
//! end, so it depends neither on the number of threads nor on how many rows there are.
//!
//! One or two rows stay in the nearest cache as a whole. Then a block's outputs are taken from four places of the
//! stripe, so that the processor sees four long streams, and reads ahead. More rows do not, so numbers are summed slice
//! by slice: a slice of all rows stays in the nearest cache while a tile of outputs passes by, and what comes next is
//! asked for.

mod kernel;
#[cfg(test)]
mod tests;
mod vectors;

use super::factors::with_right;
use super::operand::{Operand, Summed};
use super::real::vectorised;
use super::rows::Rows;
use super::{Cpu, Real};
use crate::device::Write;
use crate::error::Result;
use crate::tensor::{Element, NumberType, View};
use half::{bf16, f16};
use kernel::{Blocks, OUTPUTS, Pass, TILE, Totals};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use vectors::{LANES, Portable, Stored, Vectors};

/// Most rows that are multiplied so: with more, products take longer than the weights.
const MOST_ROWS: usize = 16;

/// Most rows that stay in the nearest cache as a whole.
const WHOLE_ROWS: usize = 2;

/// Numbers between what is read of a long stream and what is asked for.
const STREAM_AHEAD: usize = 1024;

/// Outputs of a block of many rows.
const FEWER_OUTPUTS: usize = 2;

/// Numbers of a slice, and how many there are at most of all rows.
const SLICE: usize = 640;
const SLICE_OF_ALL: usize = 6400;

/// Slices begin at cache lines.
const SLICE_MULTIPLE: usize = 32;

/// Bytes of a tile between what is read and what is asked for.
const TILE_AHEAD: usize = 15 << 10;

/// Stripes of a thread, and the fewest bytes of one.
const STRIPES: usize = 2;
const STRIPE_BYTES: usize = 1 << 18;

/// Whether a product of `a` with `b` is one of these.
pub(super) fn takes<E: Real>(a: Operand<'_, E>, b: Operand<'_, E>) -> bool {
    let by_columns = a.summed == Summed::Columns && b.summed == Summed::Columns;
    by_columns && E::TYPE == NumberType::F32 && !b.is_own() && a.count() <= MOST_ROWS
}

/// to (+)= a·b, as [`Cpu::product`](super::Cpu::product), if [`takes`] says so.
///
/// # Errors
/// Fails if there is not enough memory.
///
/// # Safety
/// The elements of `to` must belong to the caller alone.
pub(super) unsafe fn product<E: Real>(
    a: Operand<'_, E>,
    b: Operand<'_, E>,
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    assert_eq!(a.depth(), b.depth(), "numbers to be summed of both factors");
    // SAFETY: as the caller promises.
    unsafe {
        match b.values.dtype() {
            NumberType::F16 => by_processor::<E, f16>(a, b, write, to, finish),
            _ => by_processor::<E, bf16>(a, b, write, to, finish),
        }
    }
}

/// The same with a weight of `N`, on whatever the processor has.
///
/// # Safety
/// As [`product`].
unsafe fn by_processor<E: Real, N: Stored>(
    a: Operand<'_, E>,
    b: Operand<'_, E>,
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    // SAFETY: the processor has what is asked for; the rest is as the caller promises.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        {
            use vectors::x86::{Avx2, Avx512};
            if Avx512::is_there() {
                return multiply::<Avx512, E, N>(a, b, write, to, finish);
            }
            if Avx2::is_there() {
                return multiply::<Avx2, E, N>(a, b, write, to, finish);
            }
        }
        multiply::<Portable, E, N>(a, b, write, to, finish)
    }
}

/// The same in the registers of a kind of processor.
///
/// # Safety
/// As [`product`], on such a processor.
unsafe fn multiply<V: Vectors, E: Real, N: Stored>(
    a: Operand<'_, E>,
    b: Operand<'_, E>,
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    let (rows, depth, outputs) = (a.count(), a.depth(), b.count());
    let most = STRIPES * rayon::current_num_threads();
    let stripes = (outputs * depth * size_of::<N>() / STRIPE_BYTES).clamp(1, most);
    with_right(rows * depth.next_multiple_of(V::LANES), |x| {
        interleave::<E>(a, V::LANES, x);
        let x = &*x;
        (0..stripes).into_par_iter().with_max_len(1).for_each(|index| {
            let of_stripe = index * outputs / stripes..(index + 1) * outputs / stripes;
            let stripe = Stripe { weight: b.values.matrix::<N>(), outputs: of_stripe.clone(), x, rows };
            let put = |row, first, sums: &[f32]| {
                // SAFETY: the elements are this task's alone.
                let to = unsafe { std::slice::from_raw_parts_mut(to.at(row, first), sums.len()) };
                for (to, &sum) in to.iter_mut().zip(sums) {
                    *to = if write == Write::Add { *to + E::of_f32(sum) } else { E::of_f32(sum) };
                }
            };
            // SAFETY: the processor is of this kind, as the caller promises.
            unsafe {
                if rows <= WHOLE_ROWS { stripe.in_streams::<V>(put) } else { stripe.in_tiles::<V>(put) }
            }
            vectorised(
                #[inline(always)]
                || {
                    for row in 0..rows {
                        // SAFETY: as above.
                        let to = unsafe {
                            std::slice::from_raw_parts_mut(to.at(row, of_stripe.start), of_stripe.len())
                        };
                        finish(row, of_stripe.start, to);
                    }
                },
            );
        });
        Ok(())
    })
}

/// Writes a register's numbers of each row, then the next; the last ones filled up with zeros.
fn interleave<E: Real>(a: Operand<'_, E>, lanes: usize, x: &mut [f32]) {
    let a_rows = a.values.matrix::<E>();
    let rows = a_rows.rows();
    vectorised(
        #[inline(always)]
        || {
            for row in 0..rows {
                let from = a_rows.row(row).chunks(lanes);
                let to = x.chunks_exact_mut(lanes).skip(row).step_by(rows);
                for (from, to) in from.zip(to) {
                    let (to, rest) = to.split_at_mut(from.len());
                    to.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32());
                    rest.fill(0.0);
                }
            }
        },
    );
}

/// Some of the outputs of a product.
struct Stripe<'a, E: Real, N: Element> {
    /// [outputs of all, numbers]
    weight: View<'a, Cpu<E>, N>,
    outputs: Range<usize>,
    /// [registers of a row, rows], each of a register's numbers
    x: &'a [f32],
    rows: usize,
}

/// Sums of a tile, a register each.
#[repr(align(64))]
struct Sums(MaybeUninit<[f32; TILE * MOST_ROWS * LANES]>);

impl Sums {
    fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    /// Of a tile of so many rows, in blocks of so many outputs.
    fn at(&mut self, rows: usize, outputs: usize, lanes: usize) -> *mut f32 {
        assert!(TILE.next_multiple_of(outputs) * rows * lanes <= TILE * MOST_ROWS * LANES);
        self.0.as_mut_ptr().cast()
    }
}

impl<E: Real, N: Stored> Stripe<'_, E, N> {
    /// Where the numbers from `first` on of an output are; those of the stripe's last one for what is behind it.
    #[inline]
    fn address(&self, output: usize, first: usize) -> *const N {
        self.weight.pointer().wrapping_add(output.min(self.outputs.end - 1) * self.weight.pitch() + first)
    }

    /// Calls `put(row, first output, sums)` until all are there, of a few rows.
    ///
    /// # Safety
    /// The processor must be of this kind.
    unsafe fn in_streams<V: Vectors>(&self, put: impl Fn(usize, usize, &[f32])) {
        let Self { ref outputs, x, rows, .. } = *self;
        let stream = outputs.len().div_ceil(OUTPUTS);
        let mut sums = Sums::new();
        let sums = sums.at(rows, OUTPUTS, V::LANES);
        let mut totals = [[0.0; TILE]; MOST_ROWS];
        for first in (outputs.start..outputs.start + stream).step_by(TILE / OUTPUTS) {
            let of_first: [usize; OUTPUTS] = std::array::from_fn(|index| first + index * stream);
            let weights = of_first.map(|output| self.address(output, 0));
            let blocks = (outputs.start + stream - first).min(TILE / OUTPUTS);
            let pass = Pass {
                weights,
                step: self.weight.pitch(),
                last: self.address(outputs.end - 1, 0),
                blocks,
                numbers: self.weight.cols(),
                ahead: 0,
                next: weights[0],
                further: STREAM_AHEAD,
                x: x.as_ptr(),
                rows,
                sums,
                write: Write::Replace,
            };
            // SAFETY: the processor is of this kind; the weight's rows and `x` hold so many numbers.
            unsafe {
                multiply_blocks::<V, N>([rows, OUTPUTS], pass);
                V::enter(Totals { sums, blocks, outputs: OUTPUTS, totals: &mut totals[..rows] });
            }
            for (row, totals) in totals[..rows].iter().enumerate() {
                for (block, totals) in totals.as_chunks::<OUTPUTS>().0[..blocks].iter().enumerate() {
                    for (output, &total) in of_first.into_iter().zip(totals) {
                        // Those beyond the stripe are its last one's again.
                        if outputs.contains(&(output + block)) {
                            put(row, output + block, &[total]);
                        }
                    }
                }
            }
        }
    }

    /// The same, of more rows.
    ///
    /// # Safety
    /// As [`Self::in_streams`].
    unsafe fn in_tiles<V: Vectors>(&self, put: impl Fn(usize, usize, &[f32])) {
        let Self { ref outputs, x, rows, .. } = *self;
        let depth = self.weight.cols();
        let each = if rows <= V::SUMS / OUTPUTS { OUTPUTS } else { FEWER_OUTPUTS };
        let groups = rows.div_ceil(V::SUMS / each);
        let slices = depth.div_ceil(SLICE.min(SLICE_OF_ALL / rows)).max(1);
        let slice = depth.div_ceil(slices).next_multiple_of(SLICE_MULTIPLE).max(SLICE_MULTIPLE);
        let ahead = (TILE_AHEAD / (each * slice * size_of::<N>())).max(1);
        let step = each * self.weight.pitch();
        let mut sums = Sums::new();
        let sums = sums.at(rows, each, V::LANES);
        let mut totals = [[0.0; TILE]; MOST_ROWS];
        for tile in outputs.clone().step_by(TILE) {
            let tile = tile..outputs.end.min(tile + TILE);
            let blocks = tile.len().div_ceil(each);
            for number in (0..slices).map(|index| index * slice) {
                let weights = std::array::from_fn(|index| self.address(tile.start + index, number));
                let next = if number + slice < depth {
                    self.address(tile.start, number + slice)
                } else {
                    self.address(tile.end, 0)
                };
                for group in 0..groups {
                    let of_group = group * rows / groups..(group + 1) * rows / groups;
                    let pass = Pass {
                        weights,
                        step,
                        last: self.address(tile.end - 1, number),
                        blocks,
                        numbers: slice.min(depth - number),
                        // What one group has read the others find in the cache.
                        ahead: if group == 0 { ahead.min(blocks) } else { 0 },
                        next,
                        further: 0,
                        x: x[number * rows + of_group.start * V::LANES..].as_ptr(),
                        rows,
                        sums: sums.wrapping_add(of_group.start * each * V::LANES),
                        write: if number == 0 { Write::Replace } else { Write::Add },
                    };
                    // SAFETY: the processor is of this kind; the weight's rows and `x` hold so many numbers.
                    unsafe { multiply_blocks::<V, N>([of_group.len(), each], pass) };
                }
            }
            // SAFETY: as above; so many sums are there.
            unsafe { V::enter(Totals { sums, blocks, outputs: each, totals: &mut totals[..rows] }) };
            for (row, totals) in totals[..rows].iter().enumerate() {
                put(row, tile.start, &totals[..tile.len()]);
            }
        }
    }
}

/// Does a pass for a group of so many rows and blocks of so many outputs.
///
/// # Safety
/// The processor must be of this kind, and the pass's numbers and sums be there.
unsafe fn multiply_blocks<V: Vectors, N: Stored>(rows_and_outputs: [usize; 2], pass: Pass<N>) {
    macro_rules! one_of {
        ($($outputs:literal: $($rows:literal)*;)*) => {
            match rows_and_outputs {
                // SAFETY: as the caller promises.
                $($([$rows, $outputs] => unsafe { V::enter(Blocks::<N, $rows, $outputs>(pass)) },)*)*
                other => unreachable!("blocks of {other:?}"),
            }
        };
    }
    one_of! {
        4: 1 2 3 4 5 6;
        2: 3 4 5 6 7 8 9 10 11 12;
    }
}
