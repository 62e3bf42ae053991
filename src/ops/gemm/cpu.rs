//! Matrix products in blocks of a panel's output channels by a chunk of rows, one block a task.

use super::{GemmBackward, GemmForward, GemmOp};
use crate::device::amx::{Ahead, Amx};
use crate::device::split::{self, BLOCK, Block, Step};
use crate::device::{Cpu, Factor, ROWS_IN_PLACE, Real, Rows, V, Write, prefetch, product, sum, vectorised};
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::tensor::{Layout, PANEL, SPLIT_PANEL};
use rayon::prelude::*;

/// Bytes of x that a chunk of rows may take, so that it stays in a core's second-level cache while
/// the panels of the weight pass by.
const CHUNK_BYTES: usize = 1 << 20;

/// Rows of a chunk, each `row_bytes` long: few enough for the cache, and not so few that the
/// panels are read again and again.
fn chunk_rows(rows: usize, row_bytes: usize) -> usize {
    let most = (CHUNK_BYTES / row_bytes.max(1)).max(128);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// What is done to a block of the product while it is in the cache.
struct Epilogue<'a, E: Real> {
    /// [out]
    bias: Option<&'a [E]>,
    /// [rows, out]
    pre_activation: Option<Rows<'a, E>>,
    activation: Option<Activation>,
    /// [rows, out]
    residual: Option<V<'a, Cpu<E>>>,
}

impl<E: Real> Epilogue<'_, E> {
    /// Makes y of x·Wᵀ, in columns `first..` of row `row`.
    ///
    /// # Safety
    /// The same elements of `pre_activation` belong to the caller alone.
    #[inline(always)]
    unsafe fn finish(&self, row: usize, first: usize, y: &mut [E]) {
        let columns = first..first + y.len();
        if let Some(bias) = self.bias {
            y.iter_mut().zip(&bias[columns.clone()]).for_each(|(y, &b)| *y += b);
        }
        if let Some(saved) = &self.pre_activation {
            // SAFETY: as the caller promises.
            unsafe { std::slice::from_raw_parts_mut(saved.at(row, first), y.len()) }.copy_from_slice(y);
        }
        if let Some(activation) = self.activation {
            activation.apply(y);
        }
        if let Some(residual) = self.residual {
            y.iter_mut().zip(&residual.row(row)[columns]).for_each(|(y, &r)| *y += r);
        }
    }
}

/// y = f(x·Wᵀ + b) + r on AMX, for a weight in split panels.
fn split_forward<E: Real>(
    amx: Amx,
    x: V<'_, Cpu<E>>,
    weight: V<'_, Cpu<E>>,
    epilogue: &Epilogue<'_, E>,
    y: &Rows<'_, E>,
) {
    let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.rows());
    let steps = split::steps(inputs);
    let chunk = chunk_rows(rows, inputs * size_of::<f32>()).next_multiple_of(BLOCK);
    let panels = outputs.div_ceil(SPLIT_PANEL);
    let tasks = 0..rows.div_ceil(chunk) * panels;
    let multiply = |x: &[Step], task: usize| {
        let (first_row, panel) = (task / panels * chunk, task % panels);
        let (end, first_col) = (rows.min(first_row + chunk), panel * SPLIT_PANEL);
        let n = SPLIT_PANEL.min(outputs - first_col);
        // SAFETY: the panel lies within the weight, which is stored in steps.
        let weight =
            unsafe { std::slice::from_raw_parts(weight.pointer().cast::<Step>().add(panel * steps), steps) };
        let mut ahead = Ahead::new(weight, (end - first_row).div_ceil(BLOCK));
        let mut product = Block([[0.0; BLOCK]; BLOCK]);
        for first_row in (first_row..end).step_by(BLOCK) {
            let x = &x[first_row / BLOCK * steps..][..steps];
            amx.product(x, weight, &mut ahead, &mut product);
            vectorised(
                #[inline(always)]
                || {
                    for (r, product) in (first_row..end).zip(&product.0) {
                        // SAFETY: these columns of the row belong to this task alone.
                        unsafe {
                            let y = std::slice::from_raw_parts_mut(y.at(r, first_col), n);
                            y.iter_mut().zip(product).for_each(|(y, &product)| *y = E::of_f32(product));
                            epilogue.finish(r, first_col, y);
                        }
                    }
                },
            );
        }
    };
    split::with_split_rows(x, |x| tasks.into_par_iter().for_each(|task| multiply(x, task)));
}

impl<E: Real> GemmOp for Cpu<E> {
    fn gemm_forward(&self, args: GemmForward<'_, Self>) -> Result<()> {
        args.check();
        let GemmForward { x, weight, bias, activation, residual, pre_activation, y } = args;
        let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.rows());
        if rows == 0 || outputs == 0 {
            return Ok(());
        }
        let bias = bias.map(|b| b.row(0));
        let pre_activation = pre_activation.map(|p| p.into_rows());
        let epilogue = Epilogue { bias, pre_activation, activation, residual };
        let y = y.into_rows();
        if weight.layout() == Layout::SplitPanels {
            let amx = self.amx().expect("a weight is split for a device that has AMX");
            split_forward(amx, x, weight, &epilogue, &y);
            return Ok(());
        }
        let chunk = chunk_rows(rows, inputs * size_of::<E>());
        let panels = outputs.div_ceil(PANEL);
        (0..rows.div_ceil(chunk) * panels).into_par_iter().for_each(|task| {
            let (first_row, first_col) = (task / panels * chunk, task % panels * PANEL);
            let (end, n) = (rows.min(first_row + chunk), PANEL.min(outputs - first_col));
            let (weight, group) = match weight.layout() {
                Layout::Rows { .. } => (Factor::of(weight, first_col, 0).transposed(), chunk),
                // SAFETY: the panel that starts at output `first_col` lies within the weight.
                Layout::Panels => unsafe {
                    let panel = Factor::panel(weight, first_col);
                    prefetch(std::slice::from_raw_parts(panel.pointer, PANEL * inputs));
                    (panel, ROWS_IN_PLACE)
                },
                Layout::SplitPanels => unreachable!("multiplied above"),
            };
            for first_row in (first_row..end).step_by(group) {
                let m = group.min(end - first_row);
                let out = (y.at(first_row, first_col), y.pitch(), 1);
                // SAFETY: this block of y belongs to this task alone.
                unsafe { product([m, n, inputs], Factor::of(x, first_row, 0), weight, Write::Replace, out) };
                vectorised(
                    #[inline(always)]
                    || {
                        for r in first_row..first_row + m {
                            // SAFETY: these columns of the row belong to this task alone.
                            unsafe {
                                epilogue.finish(
                                    r,
                                    first_col,
                                    std::slice::from_raw_parts_mut(y.at(r, first_col), n),
                                )
                            };
                        }
                    },
                );
            }
        });
        Ok(())
    }

    fn gemm_backward(&self, args: GemmBackward<'_, Self>) -> Result<()> {
        args.check();
        let GemmBackward { x, weight, dy, dx, dweight, dbias } = args;
        let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.rows());
        if rows == 0 {
            return Ok(());
        }
        // dx [rows, in] (+)= dy [rows, out] · W [out, in]
        if let Some((write, dx)) = dx {
            let chunk = chunk_rows(rows, outputs * size_of::<E>());
            let stripes = inputs.div_ceil(PANEL);
            let dx = dx.into_rows();
            (0..rows.div_ceil(chunk) * stripes).into_par_iter().for_each(|task| {
                let (first_row, first_col) = (task / stripes * chunk, task % stripes * PANEL);
                let (m, n) = (chunk.min(rows - first_row), PANEL.min(inputs - first_col));
                let out = (dx.at(first_row, first_col), dx.pitch(), 1);
                let (dy, weight) = (Factor::of(dy, first_row, 0), Factor::of(weight, 0, first_col));
                // SAFETY: this block of dx belongs to this task alone.
                unsafe { product([m, n, outputs], dy, weight, write, out) };
            });
        }
        // dW [out, in] += dyᵀ [out, rows] · x [rows, in]
        let stripes = outputs.div_ceil(PANEL);
        let dweight = dweight.into_rows();
        (0..stripes).into_par_iter().for_each(|task| {
            let first = task * PANEL;
            let out = (dweight.at(first, 0), dweight.pitch(), 1);
            let (dy, x) = (Factor::of(dy, 0, first).transposed(), Factor::of(x, 0, 0));
            // SAFETY: these rows of dW belong to this task alone.
            unsafe { product([PANEL.min(outputs - first), inputs, rows], dy, x, Write::Add, out) };
        });
        if let Some(dbias) = dbias {
            let dbias = dbias.into_rows();
            // SAFETY: the only slice of the only row.
            let dbias = unsafe { dbias.row(0) };
            dbias.par_iter_mut().enumerate().with_min_len(PANEL).for_each(|(j, db)| {
                *db += sum(rows, |r| dy.row(r)[j]);
            });
        }
        Ok(())
    }
}
