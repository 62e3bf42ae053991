//! Matrix products in blocks of a panel's output channels by a chunk of rows, one block a task.

use super::{GemmBackward, GemmForward, GemmOp};
use crate::device::amx::Amx;
use crate::device::split::{self, Columns, Operand, chunk_rows};
use crate::device::{Cpu, Factor, M, ROWS_IN_PLACE, Real, Rows, V, Write, prefetch, product, vectorised};
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::tensor::{Layout, PANEL};
use rayon::prelude::*;

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

/// Rows of dy that are summed before they are added to the sum of all, which is the more exact.
const SUMMED_ROWS: usize = 64;

/// db += the sum of dy's rows
fn add_rows<E: Real>(dy: V<'_, Cpu<E>>, dbias: &mut [E]) {
    dbias.par_chunks_mut(PANEL).enumerate().for_each(|(panel, dbias)| {
        vectorised(
            #[inline(always)]
            || {
                let columns = panel * PANEL..panel * PANEL + dbias.len();
                for first in (0..dy.rows()).step_by(SUMMED_ROWS) {
                    let mut partial = [E::ZERO; PANEL];
                    for row in first..dy.rows().min(first + SUMMED_ROWS) {
                        for (partial, &dy) in partial.iter_mut().zip(&dy.row(row)[columns.clone()]) {
                            *partial += dy;
                        }
                    }
                    for (db, partial) in dbias.iter_mut().zip(partial) {
                        *db += partial;
                    }
                }
            },
        );
    });
}

/// dx and dW on AMX.
fn split_backward<E: Real>(
    amx: Amx,
    [x, weight, dy]: [V<'_, Cpu<E>>; 3],
    dx: Option<(Write, M<'_, Cpu<E>>)>,
    dweight: M<'_, Cpu<E>>,
) -> Result<()> {
    if let Some((write, dx)) = dx {
        let (a, b) = (Operand::summed_by_columns(dy), Columns::Whole(Operand::summed_by_rows(weight)));
        // SAFETY: dx is borrowed exclusively.
        unsafe { split::product(amx, a, b, write, &dx.into_rows(), |_, _, _| {}) }?;
    }
    let (a, b) = (Operand::summed_by_rows(dy), Columns::Whole(Operand::summed_by_rows(x)));
    // SAFETY: dW is borrowed exclusively.
    unsafe { split::product(amx, a, b, Write::Add, &dweight.into_rows(), |_, _, _| {}) }
}

/// dx and dW in vector registers.
fn plain_backward<E: Real>(
    [x, weight, dy]: [V<'_, Cpu<E>>; 3],
    dx: Option<(Write, M<'_, Cpu<E>>)>,
    dweight: M<'_, Cpu<E>>,
) {
    let (rows, inputs, outputs) = (x.rows(), x.cols(), weight.rows());
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
        let columns = match (weight.layout(), self.amx()) {
            (Layout::SplitPanels, _) => Some(Columns::Panels(weight)),
            (Layout::Rows { .. }, Some(_)) => Some(Columns::Whole(Operand::summed_by_columns(weight))),
            _ => None,
        };
        if let Some(columns) = columns {
            let amx = self.amx().expect("a weight is split for a device that has AMX");
            // SAFETY: y is borrowed exclusively, and so is the pre-activation.
            return unsafe {
                split::product(
                    amx,
                    Operand::summed_by_columns(x),
                    columns,
                    Write::Replace,
                    &y,
                    #[inline(always)]
                    |row, first, y| epilogue.finish(row, first, y),
                )
            };
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
        if x.rows() == 0 {
            return Ok(());
        }
        match self.amx() {
            Some(amx) => split_backward(amx, [x, weight, dy], dx, dweight)?,
            None => plain_backward([x, weight, dy], dx, dweight),
        }
        if let Some(mut dbias) = dbias {
            add_rows(dy, dbias.row_mut(0));
        }
        Ok(())
    }
}
