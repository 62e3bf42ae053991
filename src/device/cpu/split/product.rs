//! Products of split matrices, one block of columns by a chunk of rows a task.

use super::operand::{Side, Steps};
use crate::device::Write;
use crate::device::cpu::Real;
use crate::device::cpu::amx::{Ahead, Amx};
use crate::device::cpu::factors::{chunk_rows, for_each_part, with_right};
use crate::device::cpu::operand::{Columns, Operand};
use crate::device::cpu::real::vectorised;
use crate::device::cpu::rows::Rows;
use crate::device::cpu::single::prefetch;
use crate::device::cpu::tile::{BLOCK, Block, Step, steps};
use crate::error::Result;
use crate::tensor::{Packing, SPLIT_PANEL};

/// Bytes of the left factor that a chunk of rows may take, so that it stays in a core's second-level
/// cache while the columns of the right one pass by.
const CHUNK_BYTES: usize = 1 << 20;

/// Steps that are summed in the tiles before the sum is added to what there is of it: enough to make
/// little of that, and so few that a slice of a chunk, and of the columns passing by, fit the cache.
const SLICE: usize = 48;

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
            with_right(b.steps(), |right| {
                b.write(amx, Side::Right, right);
                multiply(amx, a, (right, b.count()), write, to, finish)
            })
        }
        Columns::Panels(weight) => {
            assert!(weight.packing() == Packing::SplitPanels && weight.cols() == a.depth());
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
    let chunk = chunk_rows(rows, slice * size_of::<Step>() / BLOCK, CHUNK_BYTES).div_ceil(BLOCK);
    for_each_part([blocks, panels], chunk, slice, |blocks, panels, left| {
        for slice in (0..slices).map(|index| index * slice..steps.min((index + 1) * slice)) {
            let left = &mut left[..blocks.len() * slice.len()];
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
                    let to = |row| unsafe { std::slice::from_raw_parts_mut(to.at(row, first_column), width) };
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
    })
}

/// What becomes of products that replace elements or are added to them.
#[inline(always)]
fn write_products<E: Real>(to: &mut [E], products: &[f32], write: Write) {
    match write {
        Write::Replace => to.iter_mut().zip(products).for_each(|(to, &x)| *to = E::of_f32(x)),
        Write::Add => to.iter_mut().zip(products).for_each(|(to, &x)| *to += E::of_f32(x)),
    }
}
