//! Products of split matrices, one block of columns by a chunk of rows a task.

use super::operand::{Side, Steps};
use super::{BLOCK, Block, Operand, Step, steps, steps_in};
use crate::device::amx::{Ahead, Amx};
use crate::device::{Cpu, CpuBuffer, Real, Rows, V, Write, prefetch, vectorised};
use crate::error::Result;
use crate::tensor::{Layout, SPLIT_PANEL};
use rayon::prelude::*;
use std::cell::RefCell;
use std::sync::{Mutex, PoisonError};

/// Bytes of the left factor that a chunk of rows may take, so that it stays in a core's second-level
/// cache while the columns of the right one pass by.
const CHUNK_BYTES: usize = 1 << 20;

/// The right factor of a product.
pub(crate) enum Columns<'a, E: Real> {
    /// The output channels of a weight in [`Layout::SplitPanels`].
    Panels(V<'a, Cpu<E>>),
    /// To be split first.
    Whole(Operand<'a, E>),
}

/// Rows of a chunk, each `row_bytes` long: few enough for the cache, and not so few that the
/// columns are read again and again.
pub(crate) fn chunk_rows(rows: usize, row_bytes: usize) -> usize {
    let most = (CHUNK_BYTES / row_bytes.max(1)).max(128);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Steps that are summed in the tiles before the sum is added to what there is of it: enough to make
/// little of that, and so few that a slice of a chunk, and of the columns passing by, fit the cache.
const SLICE: usize = 48;

/// The right factor of the last product.
static RIGHT: Mutex<Option<CpuBuffer>> = Mutex::new(None);

thread_local! {
    /// A slice of a chunk of the left factor. Split where it is multiplied, it does not leave the cache.
    static LEFT: RefCell<Option<CpuBuffer>> = const { RefCell::new(None) };
}

/// to (+)= a·b; calls `finish(row, first column, elements of to)` for every row of every block when it is
/// done, from vectorised code.
///
/// # Errors
/// Fails if there is not enough memory.
///
/// # Safety
/// The elements of `to` must belong to the caller alone.
pub(crate) unsafe fn product<E: Real>(
    amx: Amx,
    a: Operand<'_, E>,
    b: Columns<'_, E>,
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    match b {
        Columns::Whole(b) => {
            assert_eq!(a.depth(), b.depth(), "numbers to be summed of both factors");
            let kept = || RIGHT.lock().unwrap_or_else(PoisonError::into_inner);
            let mut memory = kept().take();
            let right = steps_in(&mut memory, b.steps())?;
            b.write(amx, Side::Right, right);
            multiply(amx, a, (right, b.count()), write, to, finish)?;
            *kept() = memory;
            Ok(())
        }
        Columns::Panels(weight) => {
            assert!(weight.layout() == Layout::SplitPanels && weight.cols() == a.depth());
            let count = weight.rows().div_ceil(SPLIT_PANEL) * steps(weight.cols());
            // SAFETY: the weight is stored in so many steps.
            let right = unsafe { std::slice::from_raw_parts(weight.pointer().cast::<Step>(), count) };
            multiply(amx, a, (right, weight.rows()), write, to, finish)
        }
    }
}

/// The product with a split factor of so many columns. A task takes a chunk of rows and a group of panels,
/// slice by slice.
fn multiply<E: Real>(
    amx: Amx,
    a: Operand<'_, E>,
    (right, columns): (&[Step], usize),
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    let (rows, steps) = (a.count(), steps(a.depth()));
    let (blocks, panels) = (rows.div_ceil(BLOCK), columns.div_ceil(BLOCK));
    // Of nothing there is one slice too, which sums to zeros.
    let slices = steps.div_ceil(SLICE).max(1);
    let slice = steps.div_ceil(slices).max(1);
    let chunk = chunk_rows(rows, slice * size_of::<Step>() / BLOCK).div_ceil(BLOCK);
    let chunks = blocks.div_ceil(chunk);
    let groups = groups(chunks).min(panels);
    (0..chunks * groups).into_par_iter().try_for_each(|task| {
        let (first, group) = (task / groups * chunk, task % groups);
        let blocks = first..blocks.min(first + chunk);
        let panels = group * panels / groups..(group + 1) * panels / groups;
        LEFT.with_borrow_mut(|left| {
            for slice in (0..slices).map(|index| index * slice..steps.min((index + 1) * slice)) {
                let left = steps_in(left, blocks.len() * slice.len())?;
                let part = Steps::of(left, blocks.clone(), slice.clone());
                // SAFETY: the memory is this thread's.
                unsafe { a.write_part(amx, Side::Left, [blocks.clone(), slice.clone()], &part) };
                let write = if slice.start == 0 { write } else { Write::Add };
                for panel in panels.clone() {
                    let right = &right[panel * steps..][slice.clone()];
                    let first_column = panel * BLOCK;
                    let width = BLOCK.min(columns - first_column);
                    let mut ahead = Ahead::new(right, steps, blocks.len());
                    let mut products = Block([[0.0; BLOCK]; BLOCK]);
                    let tiles = amx.tiles();
                    for (index, block) in blocks.clone().enumerate() {
                        let rows = block * BLOCK..rows.min((block + 1) * BLOCK);
                        // SAFETY: a block of `to` belongs to one task.
                        let to =
                            |row| unsafe { std::slice::from_raw_parts_mut(to.at(row, first_column), width) };
                        rows.clone().for_each(|row| prefetch(to(row)));
                        let left = &left[index * slice.len()..][..slice.len()];
                        tiles.product(left, right, &mut ahead, &mut products);
                        vectorised(
                            #[inline(always)]
                            || {
                                for (row, products) in rows.zip(&products.0) {
                                    let to = to(row);
                                    write_products(to, &products[..width], write);
                                    if slice.end == steps {
                                        finish(row, first_column, to);
                                    }
                                }
                            },
                        );
                    }
                }
            }
            Ok(())
        })
    })
}

/// Groups that the panels are divided into, so that tasks of so many chunks are a multiple of the threads:
/// as few as that needs, because every task splits its rows anew.
fn groups(chunks: usize) -> usize {
    let threads = rayon::current_num_threads();
    let (mut a, mut b) = (chunks, threads);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    threads / a.max(1)
}

/// What becomes of products that replace elements or are added to them.
#[inline(always)]
fn write_products<E: Real>(to: &mut [E], products: &[f32], write: Write) {
    match write {
        Write::Replace => to.iter_mut().zip(products).for_each(|(to, &x)| *to = E::of_f32(x)),
        Write::Add => to.iter_mut().zip(products).for_each(|(to, &x)| *to += E::of_f32(x)),
    }
}
