//! A row a task.

use super::{GateBackward, GateForward, GateOp};
use crate::device::{Cpu, Real, vectorised};
use crate::error::Result;
use rayon::prelude::*;

impl<E: Real> GateOp for Cpu<E> {
    fn gate_forward(&self, args: GateForward<'_, Self>) -> Result<()> {
        args.check();
        let GateForward { activation, x, y } = args;
        let (rows, width) = (y.rows(), y.cols());
        let y = y.into_rows();
        (0..rows).into_par_iter().for_each(|r| {
            let (a, b) = x.row(r).split_at(width);
            // SAFETY: one task a row.
            let y = unsafe { y.row(r) };
            y.copy_from_slice(a);
            vectorised(
                #[inline(always)]
                || {
                    activation.apply(y);
                    multiply(y, b);
                },
            );
        });
        Ok(())
    }

    fn gate_backward(&self, args: GateBackward<'_, Self>) -> Result<()> {
        args.check();
        let GateBackward { activation, x, dy, dx } = args;
        let (rows, width) = (dy.rows(), dy.cols());
        let dx = dx.into_rows();
        (0..rows).into_par_iter().for_each(|r| {
            let (a, b) = x.row(r).split_at(width);
            let dy = dy.row(r);
            // SAFETY: one task a row.
            let (da, db) = unsafe { dx.row(r) }.split_at_mut(width);
            da.copy_from_slice(b);
            db.copy_from_slice(a);
            vectorised(
                #[inline(always)]
                || {
                    multiply(da, dy);
                    activation.apply_derivative(a, da);
                    activation.apply(db);
                    multiply(db, dy);
                },
            );
        });
        Ok(())
    }
}

/// x = x·y, to be called from vectorised code.
#[inline(always)]
fn multiply<E: Real>(x: &mut [E], y: &[E]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x = *x * y;
    }
}
