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
use kernel::{Block, OUTPUTS, Segment, Totals};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::ops::Range;
use vectors::{LANES, Portable, Stored, Vectors};

/// Most rows that are multiplied so: with more, products take longer than the weights.
const MOST_ROWS: usize = 16;

/// Most rows that stay in the nearest cache as a whole.
const WHOLE_ROWS: usize = 2;

/// Bytes between what is read of a long stream and what is asked for.
const STREAM_AHEAD: isize = 2048;

/// Outputs of a block of many rows.
const FEWER_OUTPUTS: usize = 2;

/// Outputs that pass by a slice of the rows.
const TILE: usize = 32;

/// Numbers of a slice, and how many there are at most of all rows.
const SLICE: usize = 640;
const SLICE_OF_ALL: usize = 6400;

/// Slices begin at cache lines.
const SLICE_MULTIPLE: usize = 32;

/// Bytes of a tile between what is read and what is asked for.
const TILE_AHEAD: usize = 12 << 10;

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
            let put = |row, output, sum| {
                // SAFETY: the element is this task's alone.
                let to = unsafe { &mut *to.at(row, output) };
                *to = if write == Write::Add { *to + E::of_f32(sum) } else { E::of_f32(sum) };
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

    /// Of block `block`, which has so many outputs, from row `row` of `rows` on.
    fn at(&mut self, [block, outputs, rows, row]: [usize; 4], lanes: usize) -> *mut f32 {
        let offset = (block * rows + row) * outputs * lanes;
        assert!(offset + (rows - row) * outputs * lanes <= TILE * MOST_ROWS * LANES);
        // SAFETY: as just asserted.
        unsafe { self.0.as_mut_ptr().cast::<f32>().add(offset) }
    }
}

impl<E: Real, N: Stored> Stripe<'_, E, N> {
    /// Where the numbers from `first` on of an output are; those of the stripe's last one for what is behind it.
    fn address(&self, output: usize, first: usize) -> *const N {
        let row = self.weight.row(output.min(self.outputs.end - 1));
        row[first..].as_ptr()
    }

    /// Calls `put(row, output, sum)` for all, of a few rows.
    ///
    /// # Safety
    /// The processor must be of this kind.
    unsafe fn in_streams<V: Vectors>(&self, put: impl Fn(usize, usize, f32)) {
        let Self { ref outputs, x, rows, .. } = *self;
        let stream = outputs.len().div_ceil(OUTPUTS);
        let mut sums = Sums::new();
        let mut totals = [0.0; WHOLE_ROWS * OUTPUTS];
        for first in outputs.start..outputs.start + stream {
            let of_block: [usize; OUTPUTS] = std::array::from_fn(|index| first + index * stream);
            let sums = sums.at([0, OUTPUTS, rows, 0], V::LANES);
            let segment = Segment {
                weights: of_block.map(|output| self.address(output, 0)),
                numbers: self.weight.cols(),
                ahead: STREAM_AHEAD,
                x: x.as_ptr(),
                rows,
                sums,
                write: Write::Replace,
            };
            let totals = &mut totals[..rows * OUTPUTS];
            // SAFETY: the processor is of this kind; the weight's rows and `x` hold so many numbers.
            unsafe {
                add_segment::<V, N>([rows, OUTPUTS], segment);
                V::enter(Totals { sums, totals });
            }
            for (row, totals) in totals.chunks(OUTPUTS).enumerate() {
                let there = of_block.into_iter().zip(totals).filter(|(output, _)| outputs.contains(output));
                there.for_each(|(output, &total)| put(row, output, total));
            }
        }
    }

    /// The same, of more rows.
    ///
    /// # Safety
    /// As [`Self::in_streams`].
    unsafe fn in_tiles<V: Vectors>(&self, put: impl Fn(usize, usize, f32)) {
        let Self { ref outputs, x, rows, .. } = *self;
        let (depth, pitch) = (self.weight.cols(), self.weight.pitch());
        // Outputs of a block, and rows of a group.
        let each = if rows <= V::SUMS / OUTPUTS { OUTPUTS } else { FEWER_OUTPUTS };
        let groups = rows.div_ceil(V::SUMS / each);
        let slices = depth.div_ceil(SLICE.min(SLICE_OF_ALL / rows)).max(1);
        let slice = depth.div_ceil(slices).next_multiple_of(SLICE_MULTIPLE);
        let slices = depth.div_ceil(slice).max(1);
        let ahead = (TILE_AHEAD / (each * slice * size_of::<N>()).max(1)).max(1);
        let mut sums = Sums::new();
        let mut totals = [0.0; TILE * MOST_ROWS];
        for tile in outputs.clone().step_by(TILE) {
            let tile = tile..outputs.end.min(tile + TILE);
            let blocks = tile.len().div_ceil(each);
            // First output and first number of what is read after so many blocks of the tile.
            let place = |index: usize| {
                let (later, index) = (index / (slices * blocks), index % (slices * blocks));
                [tile.start + later * TILE + index % blocks * each, index / blocks * slice]
            };
            for index in 0..slices * blocks {
                let ([first, number], [next, next_number]) = (place(index), place(index + ahead));
                let numbers = |[output, number]: [usize; 2]| (output * pitch + number) as isize;
                let ahead = match next < outputs.end {
                    true => {
                        (numbers([next, next_number]) - numbers([first, number])) * size_of::<N>() as isize
                    }
                    false => 0,
                };
                for group in 0..groups {
                    let group_rows = group * rows / groups..(group + 1) * rows / groups;
                    let segment = Segment {
                        weights: std::array::from_fn(|index| self.address(first + index, number)),
                        numbers: slice.min(depth - number),
                        // What one group has read the others find in the cache.
                        ahead: if group == 0 { ahead } else { 0 },
                        x: x[number * rows + group_rows.start * V::LANES..].as_ptr(),
                        rows,
                        sums: sums.at([index % blocks, each, rows, group_rows.start], V::LANES),
                        write: if number == 0 { Write::Replace } else { Write::Add },
                    };
                    // SAFETY: the processor is of this kind; the weight's rows and `x` hold so many numbers.
                    unsafe { add_segment::<V, N>([group_rows.len(), each], segment) };
                }
            }
            let totals = &mut totals[..blocks * each * rows];
            // SAFETY: as above; so many sums are there.
            unsafe { V::enter(Totals { sums: sums.at([0, each, rows, 0], V::LANES), totals }) };
            for (index, &total) in totals.iter().enumerate() {
                let (output, row) = (index / (each * rows) * each + index % each, index / each % rows);
                if output < tile.len() {
                    put(row, tile.start + output, total);
                }
            }
        }
    }
}

/// Does a segment for a group of so many rows and a block of so many outputs.
///
/// # Safety
/// The processor must be of this kind, and the segment's numbers and sums be there.
unsafe fn add_segment<V: Vectors, N: Stored>(rows_and_outputs: [usize; 2], segment: Segment<N>) {
    macro_rules! one_of {
        ($($outputs:literal: $($rows:literal)*;)*) => {
            match rows_and_outputs {
                // SAFETY: as the caller promises.
                $($([$rows, $outputs] => unsafe { V::enter(Block::<N, $rows, $outputs>(segment)) },)*)*
                other => unreachable!("a block of {other:?}"),
            }
        };
    }
    one_of! {
        4: 1 2 3 4 5 6;
        2: 3 4 5 6 7 8 9 10 11 12;
    }
}
