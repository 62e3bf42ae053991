//! Products in vector registers. Both factors are brought to the order in which they are read: the right one in
//! panels of [`PANEL`] columns, as a frozen weight is stored, the left one in blocks of a few rows. A block of
//! sums, one row by one panel's columns a register or a few, stays in registers while a slice of both passes by.

mod order;

use super::Real;
use super::factors::{chunk_rows, for_each_part, with_right};
use super::operand::{Columns, Operand};
use super::rows::Rows;
use super::single::prefetch;
use crate::device::Write;
use crate::error::Result;
use crate::tensor::{PANEL, Packing};
use order::{order, order_panels};
use pulp::{Simd, WithSimd};
use std::marker::PhantomData;
use std::ops::Range;

/// Numbers that are summed in registers before the sum is added to what there is of it: enough to make little of
/// that, and so few that a slice of a panel stays in the nearest cache while rows pass by.
const SLICE: usize = 384;

/// Bytes of the left factor that a slice of a chunk of rows may take, so that it stays in a core's second-level
/// cache while panels pass by.
const CHUNK_BYTES: usize = 1 << 18;

/// Registers that hold sums: of the 16 that a processor has at least, all but those that hold factors.
const SUMS: usize = 12;

/// Numbers that are summed without asking whether there are more.
const UNROLLED: usize = 4;

/// to (+)= a·b, as [`Cpu::product`](super::Cpu::product).
///
/// # Errors
/// Fails if there is not enough memory.
///
/// # Safety
/// The elements of `to` must belong to the caller alone.
pub(super) unsafe fn product<E: Real>(
    a: Operand<'_, E>,
    b: Columns<'_, E>,
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    match b {
        Columns::Whole(b) => {
            assert_eq!(a.depth(), b.depth(), "numbers to be summed of both factors");
            with_right(b.count().next_multiple_of(PANEL) * b.depth(), |right| {
                order_panels(b, right);
                in_blocks(a, (right, b.count()), write, to, finish)
            })
        }
        Columns::Panels(weight) => {
            assert!(
                weight.packing() == Packing::Panels && weight.dtype() == E::TYPE,
                "a weight is split for a device that has AMX"
            );
            assert_eq!(weight.cols(), a.depth(), "numbers to be summed of both factors");
            let count = weight.packing().len(weight.shape());
            // SAFETY: the weight is stored in so many numbers of `E`.
            let right = unsafe { std::slice::from_raw_parts(weight.pointer().cast(), count) };
            in_blocks(a, (right, weight.rows()), write, to, finish)
        }
    }
}

/// Rows of a block of sums.
struct BlockRows<E>(PhantomData<E>);

impl<E: Real> WithSimd for BlockRows<E> {
    type Output = usize;

    fn with_simd<S: Simd>(self, _: S) -> usize {
        SUMS * E::count::<S>() / PANEL
    }
}

/// The product with a right factor of so many columns in panels.
fn in_blocks<E: Real>(
    a: Operand<'_, E>,
    right: (&[E], usize),
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    match pulp::Arch::new().dispatch(BlockRows::<E>(PhantomData)) {
        12.. => multiply::<E, 12>(a, right, write, to, finish),
        6.. => multiply::<E, 6>(a, right, write, to, finish),
        3.. => multiply::<E, 3>(a, right, write, to, finish),
        _ => multiply::<E, 1>(a, right, write, to, finish),
    }
}

/// The same by blocks of `R` rows. A task takes a chunk of rows and a group of panels, slice by slice.
fn multiply<E: Real, const R: usize>(
    a: Operand<'_, E>,
    (right, columns): (&[E], usize),
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    let (rows, depth) = (a.count(), a.depth());
    let (right, _) = right.as_chunks::<PANEL>();
    // Of nothing there is one slice too, which sums to zeros.
    let slices = depth.div_ceil(SLICE).max(1);
    let slice = depth.div_ceil(slices);
    let chunk = chunk_rows(rows, slice * size_of::<E>(), CHUNK_BYTES).div_ceil(R);
    for_each_part([rows.div_ceil(R), columns.div_ceil(PANEL)], chunk, R * slice, |blocks, panels, left| {
        let rows = blocks.start * R..rows.min(blocks.end * R);
        for numbers in (0..slices).map(|index| index * slice..depth.min((index + 1) * slice)) {
            order::<E, R>(a, rows.clone(), numbers.clone(), left);
            let slice_of = |panel: usize| &right[panel * depth..][numbers.clone()];
            for panel in panels.clone() {
                pulp::Arch::new().dispatch(Strip {
                    left: left.as_chunks::<R>().0,
                    right: slice_of(panel),
                    next: if panel + 1 < panels.end { slice_of(panel + 1) } else { &[] },
                    write: if numbers.start == 0 { write } else { Write::Add },
                    rows: rows.clone(),
                    columns: panel * PANEL..columns.min((panel + 1) * PANEL),
                    to,
                    finish: (numbers.end == depth).then_some(&finish),
                });
            }
        }
    })
}

/// What a chunk of rows by a panel sums of a slice.
struct Strip<'a, E, F, const R: usize> {
    /// [blocks of the rows, numbers]
    left: &'a [[E; R]],
    /// [numbers]
    right: &'a [[E; PANEL]],
    /// The same of the panel after it, which is asked for meanwhile.
    next: &'a [[E; PANEL]],
    write: Write,
    rows: Range<usize>,
    columns: Range<usize>,
    to: &'a Rows<'a, E>,
    /// What is done to rows when no slice is left.
    finish: Option<&'a F>,
}

impl<E: Real, F: Fn(usize, usize, &mut [E]), const R: usize> WithSimd for Strip<'_, E, F, R> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match PANEL / E::count::<S>() {
            1 => self.sum::<S, 1>(simd),
            2 => self.sum::<S, 2>(simd),
            4 => self.sum::<S, 4>(simd),
            8 => self.sum::<S, 8>(simd),
            _ => self.sum::<S, PANEL>(simd),
        }
    }
}

impl<E: Real, F: Fn(usize, usize, &mut [E]), const R: usize> Strip<'_, E, F, R> {
    /// With `V` registers for a row of a block.
    #[inline(always)]
    fn sum<S: Simd, const V: usize>(self, simd: S) {
        let numbers = self.right.len();
        let (first_column, width) = (self.columns.start, self.columns.len());
        let to = |row| {
            // SAFETY: the block's elements belong to this task alone.
            unsafe { std::slice::from_raw_parts_mut(self.to.at(row, first_column), width) }
        };
        let blocks = self.rows.len().div_ceil(R);
        let mut next = self.next.chunks(self.next.len().div_ceil(blocks.max(1)).max(1));
        for (block, first_row) in self.rows.clone().step_by(R).enumerate() {
            let rows = first_row..self.rows.end.min(first_row + R);
            rows.clone().for_each(|row| prefetch(to(row)));
            prefetch(next.next().unwrap_or_default().as_flattened());
            let sums = sums::<E, S, R, V>(simd, &self.left[block * numbers..][..numbers], self.right);
            for (row, sums) in rows.zip(&sums) {
                let to = to(row);
                match (self.write, <&mut [E; PANEL]>::try_from(&mut *to)) {
                    (Write::Replace, Ok(to)) => *to = *sums,
                    (Write::Add, Ok(to)) => to.iter_mut().zip(sums).for_each(|(to, &x)| *to += x),
                    (Write::Replace, Err(_)) => to.copy_from_slice(&sums[..width]),
                    (Write::Add, Err(_)) => to.iter_mut().zip(sums).for_each(|(to, &x)| *to += x),
                }
                if let Some(finish) = self.finish {
                    finish(row, first_column, to);
                }
            }
        }
    }
}

/// A block of a·b, for `R` rows of a and a panel of b.
#[inline(always)]
fn sums<E: Real, S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: &[[E; R]],
    b: &[[E; PANEL]],
) -> [[E; PANEL]; R] {
    let mut sums = [[E::splat(simd, E::ZERO); V]; R];
    let ((a, last_a), (b, last_b)) = (a.as_chunks::<UNROLLED>(), b.as_chunks::<UNROLLED>());
    for (a, b) in a.iter().zip(b) {
        for (a, b) in a.iter().zip(b) {
            add(simd, a, b, &mut sums);
        }
    }
    for (a, b) in last_a.iter().zip(last_b) {
        add(simd, a, b, &mut sums);
    }
    let mut numbers = [[E::ZERO; PANEL]; R];
    for (numbers, sums) in numbers.iter_mut().zip(sums) {
        E::vectors_mut::<S>(numbers).copy_from_slice(&sums);
    }
    numbers
}

/// Adds the products of one number of each row with one of each column.
#[inline(always)]
fn add<E: Real, S: Simd, const R: usize, const V: usize>(
    simd: S,
    a: &[E; R],
    b: &[E; PANEL],
    sums: &mut [[E::Vector<S>; V]; R],
) {
    let b: &[E::Vector<S>; V] = E::vectors::<S>(b).try_into().expect("a panel is whole vectors");
    for (sums, &a) in sums.iter_mut().zip(a) {
        let a = E::splat(simd, a);
        for (sum, &b) in sums.iter_mut().zip(b) {
            *sum = E::mul_add_vectors(simd, a, b, *sum);
        }
    }
}
