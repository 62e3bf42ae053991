//! Products of matrices on all cores: their factors, and what both ways of multiplying have in common.

use super::amx::Amx;
use super::{Cpu, CpuBuffer, Real, Rows, V, Write, packed, split};
use crate::error::Result;
use crate::tensor::{Layout, SPLIT_PANEL};
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// What of a matrix a product sums over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Summed {
    Columns,
    Rows,
}

/// A factor of a product, as it lies in memory.
pub(crate) struct Operand<'a, E: Real> {
    pub(super) values: V<'a, Cpu<E>>,
    pub(super) summed: Summed,
}

impl<E: Real> Clone for Operand<'_, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<E: Real> Copy for Operand<'_, E> {}

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

    /// Some of the rows of a, or columns of b.
    fn part(self, lines: Range<usize>) -> Self {
        let values = match self.summed {
            Summed::Columns => self.values.row_range(lines),
            Summed::Rows => self.values.columns(lines),
        };
        Self { values, ..self }
    }

    /// How many numbers are summed.
    pub(super) fn depth(self) -> usize {
        if self.summed == Summed::Columns { self.values.cols() } else { self.values.rows() }
    }
}

/// The right factor of a product.
pub(crate) enum Columns<'a, E: Real> {
    /// The output channels of a weight in panels, plain or split.
    Panels(V<'a, Cpu<E>>),
    /// To be brought to the layout that the device multiplies by first.
    Whole(Operand<'a, E>),
}

/// Bytes of a right factor that are brought to their layout at a time: few, so that they take little memory and are
/// multiplied before they leave the cache; but for every part the left factor is brought to its layout anew.
const RIGHT_BYTES: usize = 1 << 25;

impl<E: Real> Cpu<E> {
    /// to (+)= a·b; calls `finish(row, first column, elements of to)` for every part of every row when it is
    /// done, from vectorised code.
    ///
    /// # Errors
    /// Fails if there is not enough memory.
    ///
    /// # Safety
    /// The elements of `to` must belong to the caller alone.
    pub(crate) unsafe fn product(
        &self,
        a: Operand<'_, E>,
        b: Columns<'_, E>,
        write: Write,
        to: &Rows<'_, E>,
        finish: impl Fn(usize, usize, &mut [E]) + Sync,
    ) -> Result<()> {
        let amx = self.amx();
        let b = match b {
            Columns::Whole(b) => b,
            Columns::Panels(weight) => {
                let amx = amx.filter(|_| weight.layout() == Layout::SplitPanels);
                // SAFETY: as the caller promises.
                return unsafe { product(amx, a, b, write, to, finish) };
            }
        };
        let columns = b.count();
        let most = (RIGHT_BYTES / size_of::<E>() / b.depth().max(1)).max(SPLIT_PANEL);
        // Parts of one size, but for a panel.
        let each = columns.div_ceil(columns.div_ceil(most).max(1)).next_multiple_of(SPLIT_PANEL);
        (0..columns).step_by(each.max(1)).try_for_each(|first| {
            let part = first..columns.min(first + each);
            let (b, to) = (Columns::Whole(b.part(part.clone())), to.columns(part));
            // SAFETY: as the caller promises.
            unsafe {
                product(
                    amx,
                    a,
                    b,
                    write,
                    &to,
                    #[inline(always)]
                    |row, column, to| finish(row, first + column, to),
                )
            }
        })
    }
}

/// The same, by one way of multiplying or the other.
///
/// # Safety
/// As [`Cpu::product`].
unsafe fn product<E: Real>(
    amx: Option<Amx>,
    a: Operand<'_, E>,
    b: Columns<'_, E>,
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    // SAFETY: as the caller promises.
    unsafe {
        match amx {
            Some(amx) => split::product(amx, a, b, write, to, finish),
            None => packed::product(a, b, write, to, finish),
        }
    }
}

/// The right factor of the last product.
static RIGHT: Mutex<Option<CpuBuffer>> = Mutex::new(None);

thread_local! {
    /// A part of the left factor. Brought to its layout where it is multiplied, it does not leave the cache.
    static LEFT: RefCell<Option<CpuBuffer>> = const { RefCell::new(None) };
}

/// What may have any bits.
///
/// # Safety
/// No bits must be invalid, and a page's alignment must suffice.
pub(super) unsafe trait Plain {}
// SAFETY: a number may have any bits.
unsafe impl<E: Real> Plain for E {}

/// So many elements of `memory`, which is kept from one product to the next because fresh memory is slow at
/// first touch.
fn elements_in<T: Plain>(memory: &mut Option<CpuBuffer>, count: usize) -> Result<&mut [T]> {
    let bytes = count * size_of::<T>();
    if memory.as_mut().is_none_or(|memory| memory.bytes_mut().len() < bytes) {
        *memory = Some(CpuBuffer::new(bytes, "the factors of a product")?);
    }
    let memory = memory.as_mut().expect("taken above").bytes_mut();
    // SAFETY: the memory, which starts with a page, holds so many elements, and any bits are one.
    Ok(unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), count) })
}

/// Calls `multiply` with memory for `count` elements of the right factor.
pub(super) fn with_right<T: Plain>(
    count: usize,
    multiply: impl FnOnce(&mut [T]) -> Result<()>,
) -> Result<()> {
    let kept = || RIGHT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut memory = kept().take();
    multiply(elements_in(&mut memory, count)?)?;
    *kept() = memory;
    Ok(())
}

/// Calls `work(blocks, panels, memory)` for every chunk of so many of the left factor's `blocks` at most and
/// every group of the right one's `panels`, with memory for `per_block` elements of each of its blocks.
pub(super) fn for_each_part<T: Plain>(
    [blocks, panels]: [usize; 2],
    chunk: usize,
    per_block: usize,
    work: impl Fn(Range<usize>, Range<usize>, &mut [T]) + Sync,
) -> Result<()> {
    let chunks = blocks.div_ceil(chunk);
    let groups = groups(chunks).min(panels);
    // The parts are of one size, but for a block or a panel.
    let share = |of: usize, index: usize, count: usize| index * of / count..(index + 1) * of / count;
    (0..chunks * groups).into_par_iter().try_for_each(|task| {
        let (blocks, panels) = (share(blocks, task / groups, chunks), share(panels, task % groups, groups));
        LEFT.with_borrow_mut(|memory| {
            let count = blocks.len() * per_block;
            work(blocks, panels, elements_in(memory, count)?);
            Ok(())
        })
    })
}

/// Rows of a chunk, each `row_bytes` long: few enough for `cache` bytes, and not so few that the columns are read
/// again and again.
pub(super) fn chunk_rows(rows: usize, row_bytes: usize, cache: usize) -> usize {
    let most = (cache / row_bytes.max(1)).max(128);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Groups that the panels are divided into, so that tasks of so many chunks are a multiple of the threads:
/// as few as that needs, because every task brings its rows to their layout anew.
fn groups(chunks: usize) -> usize {
    let threads = rayon::current_num_threads();
    let (mut a, mut b) = (chunks, threads);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    threads / a.max(1)
}
