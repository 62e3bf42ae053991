//! Products of split matrices, one block of columns by a chunk of rows a task.

use super::{BLOCK, Block, Operand, Side, Step, steps, with_steps};
use crate::device::amx::{Ahead, Amx};
use crate::device::{Cpu, Real, V, vectorised};
use crate::tensor::{Layout, SPLIT_PANEL};
use rayon::prelude::*;

/// Bytes of the left factor that a chunk of rows may take, so that it stays in a core's second-level
/// cache while the columns of the right one pass by.
const CHUNK_BYTES: usize = 1 << 20;

/// Steps of a column block that stay in the first-level cache while a chunk of rows passes by.
const STEPS_IN_CACHE: usize = 8;

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

/// a·b; calls `finish(row, first column, products)` for every row of every block, from vectorised code.
pub(crate) fn product<E: Real>(
    amx: Amx,
    a: Operand<'_, E>,
    b: Columns<'_, E>,
    finish: impl Fn(usize, usize, &[f32]) + Sync,
) {
    match b {
        Columns::Whole(b) => {
            assert_eq!(a.depth(), b.depth(), "numbers to be summed of both factors");
            with_steps([a.steps(), b.steps()], |[left, right]| {
                a.write(Side::Left, left);
                b.write(Side::Right, right);
                multiply(amx, left, right, [a.count(), b.count(), steps(a.depth())], finish);
            });
        }
        Columns::Panels(weight) => {
            assert!(weight.layout() == Layout::SplitPanels && weight.cols() == a.depth());
            let count = weight.rows().div_ceil(SPLIT_PANEL) * steps(weight.cols());
            // SAFETY: the weight is stored in so many steps.
            let right = unsafe { std::slice::from_raw_parts(weight.pointer().cast::<Step>(), count) };
            with_steps([a.steps(), 0], |[left, _]| {
                a.write(Side::Left, left);
                multiply(amx, left, right, [a.count(), weight.rows(), steps(a.depth())], finish);
            });
        }
    }
}

/// The product of split factors that have `steps` steps a block.
fn multiply(
    amx: Amx,
    left: &[Step],
    right: &[Step],
    [rows, columns, steps]: [usize; 3],
    finish: impl Fn(usize, usize, &[f32]) + Sync,
) {
    let chunk = chunk_rows(rows, steps * size_of::<Step>() / BLOCK).next_multiple_of(BLOCK);
    let panels = columns.div_ceil(BLOCK);
    let tasks = rows.div_ceil(chunk) * panels;
    (0..tasks).into_par_iter().for_each_init(Vec::new, |products: &mut Vec<Block>, task| {
        let (first_row, panel) = (task / panels * chunk, task % panels);
        let (end, first_column) = (rows.min(first_row + chunk), panel * BLOCK);
        let width = BLOCK.min(columns - first_column);
        let blocks = (end - first_row).div_ceil(BLOCK);
        let left = &left[first_row / BLOCK * steps..][..blocks * steps];
        let right = &right[panel * steps..][..steps];
        products.clear();
        products.resize_with(blocks, || Block([[0.0; BLOCK]; BLOCK]));
        let mut ahead = Ahead::new(right, blocks);
        let tiles = amx.tiles();
        for (part, right) in right.chunks(STEPS_IN_CACHE).enumerate() {
            for (block, products) in products.iter_mut().enumerate() {
                let left = &left[block * steps + part * STEPS_IN_CACHE..][..right.len()];
                tiles.add_product(left, right, &mut ahead, products);
            }
        }
        drop(tiles);
        vectorised(
            #[inline(always)]
            || {
                let rows = products.iter().flat_map(|block| &block.0);
                for (row, products) in (first_row..end).zip(rows) {
                    finish(row, first_column, &products[..width]);
                }
            },
        );
    });
}
