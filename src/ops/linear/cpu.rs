//! Matrix products, finished block by block while the block is in the cache.

use super::{LinearBackward, LinearForward, LinearInputBackward, LinearOp, ParameterBackward};
use crate::device::{Columns, Cpu, Operand, Real, Rows, V, Write, vectorised};
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::tensor::Packing;
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

/// Columns of dy that a task sums.
const STRIPE: usize = 64;

/// Rows of dy that are summed before they are added to the sum of all, which is the more exact.
const SUMMED_ROWS: usize = 64;

/// db += the sum of dy's rows
fn add_rows<E: Real>(dy: V<'_, Cpu<E>>, dbias: &mut [E]) {
    dbias.par_chunks_mut(STRIPE).enumerate().for_each(|(stripe, dbias)| {
        vectorised(
            #[inline(always)]
            || {
                let columns = stripe * STRIPE..stripe * STRIPE + dbias.len();
                for first in (0..dy.rows()).step_by(SUMMED_ROWS) {
                    let mut partial = [E::ZERO; STRIPE];
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

impl<E: Real> LinearOp for Cpu<E> {
    fn linear_forward(&self, args: LinearForward<'_, Self>) -> Result<()> {
        args.check();
        let LinearForward { x, weight, bias, activation, residual, pre_activation, y } = args;
        if y.shape().is_empty() {
            return Ok(());
        }
        let bias = bias.map(|b| b.row(0));
        let pre_activation = pre_activation.map(|p| p.into_rows());
        let epilogue = Epilogue { bias, pre_activation, activation, residual };
        let y = y.into_rows();
        let columns = match weight.packing() {
            Packing::Rows { .. } => Columns::Whole(Operand::summed_by_columns(weight)),
            Packing::Panels | Packing::SplitPanels => Columns::Panels(weight),
        };
        // SAFETY: y is borrowed exclusively, and so is the pre-activation.
        unsafe {
            self.product(
                Operand::summed_by_columns(x),
                columns,
                Write::Replace,
                &y,
                #[inline(always)]
                |row, first, y| epilogue.finish(row, first, y),
            )
        }
    }

    fn linear_input_backward(&self, args: LinearInputBackward<'_, Self>) -> Result<()> {
        args.check();
        let LinearInputBackward { weight, dy, activation, write, dx } = args;
        if dy.rows() == 0 {
            return Ok(());
        }
        let (a, b) = (Operand::summed_by_columns(dy), Columns::Whole(Operand::summed_by_rows(weight)));
        // SAFETY: dx is borrowed exclusively.
        unsafe {
            self.product(
                a,
                b,
                write,
                &dx.into_rows(),
                #[inline(always)]
                |row, first, dx| {
                    if let Some((activation, z)) = activation {
                        activation.apply_derivative(&z.row(row)[first..], dx);
                    }
                },
            )
        }
    }

    fn linear_backward(&self, args: LinearBackward<'_, Self>) -> Result<()> {
        let (input, ParameterBackward { x, dy, dweight, dbias }) = args.parts();
        if x.rows() == 0 {
            return Ok(());
        }
        input.map_or(Ok(()), |input| self.linear_input_backward(input))?;
        let (a, b) = (Operand::summed_by_rows(dy), Columns::Whole(Operand::summed_by_rows(x)));
        // SAFETY: dW is borrowed exclusively.
        unsafe { self.product(a, b, Write::Add, &dweight.into_rows(), |_, _, _| {}) }?;
        if let Some(mut dbias) = dbias {
            add_rows(dy, dbias.row_mut(0));
        }
        Ok(())
    }
}
