//! Products of split matrices, one block of columns by a chunk of rows a task.

use super::operand::Side;
use super::{BLOCK, Block, Operand, Step, steps, with_steps};
use crate::device::amx::{Ahead, Amx};
use crate::device::{Cpu, Real, Rows, V, prefetch, vectorised};
use crate::tensor::{Layout, SPLIT_PANEL};
use rayon::prelude::*;

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

/// a·b; calls `finish(row, first column, elements of to, products)` for every row of every block, from
/// vectorised code.
///
/// # Safety
/// The elements of `to` must belong to the caller alone.
pub(crate) unsafe fn product<E: Real>(
    amx: Amx,
    a: Operand<'_, E>,
    b: Columns<'_, E>,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E], &[f32]) + Sync,
) {
    match b {
        Columns::Whole(b) => {
            assert_eq!(a.depth(), b.depth(), "numbers to be summed of both factors");
            with_steps([a.steps(), b.steps()], |[left, right]| {
                a.write(amx, Side::Left, left);
                b.write(amx, Side::Right, right);
                multiply(amx, left, right, [a.count(), b.count(), steps(a.depth())], to, finish);
            });
        }
        Columns::Panels(weight) => {
            assert!(weight.layout() == Layout::SplitPanels && weight.cols() == a.depth());
            let count = weight.rows().div_ceil(SPLIT_PANEL) * steps(weight.cols());
            // SAFETY: the weight is stored in so many steps.
            let right = unsafe { std::slice::from_raw_parts(weight.pointer().cast::<Step>(), count) };
            with_steps([a.steps(), 0], |[left, _]| {
                a.write(amx, Side::Left, left);
                multiply(amx, left, right, [a.count(), weight.rows(), steps(a.depth())], to, finish);
            });
        }
    }
}

/// The product of split factors that have `steps` steps a block.
fn multiply<E: Real>(
    amx: Amx,
    left: &[Step],
    right: &[Step],
    [rows, columns, steps]: [usize; 3],
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E], &[f32]) + Sync,
) {
    let chunk = chunk_rows(rows, steps * size_of::<Step>() / BLOCK).next_multiple_of(BLOCK);
    let panels = columns.div_ceil(BLOCK);
    let tasks = rows.div_ceil(chunk) * panels;
    (0..tasks).into_par_iter().for_each(|task| {
        let (first_row, panel) = (task / panels * chunk, task % panels);
        let (end, first_column) = (rows.min(first_row + chunk), panel * BLOCK);
        let width = BLOCK.min(columns - first_column);
        let left = left[first_row / BLOCK * steps..].chunks_exact(steps);
        let right = &right[panel * steps..][..steps];
        let mut ahead = Ahead::new(right, (end - first_row).div_ceil(BLOCK));
        let mut products = Block([[0.0; BLOCK]; BLOCK]);
        let tiles = amx.tiles();
        for (first_row, left) in (first_row..end).step_by(BLOCK).zip(left) {
            let rows = first_row..end.min(first_row + BLOCK);
            // SAFETY: a block of `to` belongs to one task.
            let to = |row| unsafe { std::slice::from_raw_parts_mut(to.at(row, first_column), width) };
            rows.clone().for_each(|row| prefetch(to(row)));
            tiles.product(left, right, &mut ahead, &mut products);
            vectorised(
                #[inline(always)]
                || {
                    for (row, products) in rows.zip(&products.0) {
                        finish(row, first_column, to(row), &products[..width]);
                    }
                },
            );
        }
    });
}
