//! Rows, and for the norm's gradients columns, a block a task.

use super::{FoldBackward, FoldForward, FoldOp};
use crate::device::{Cpu, Real};
use crate::error::Result;
use rayon::prelude::*;

/// Columns of a task: a row's part is a few cache lines.
const COLUMNS: usize = 64;

impl<E: Real> FoldOp for Cpu<E> {
    fn fold_forward(&self, args: FoldForward<'_, Self>) -> Result<()> {
        args.check();
        let FoldForward { weight, bias, norm_weight, norm_bias, folded_weight, folded_bias } = args;
        let (bias, gamma, beta) = (bias.row(0), norm_weight.row(0), norm_bias.row(0));
        let (folded_weight, folded_bias) = (folded_weight.into_rows(), folded_bias.into_rows());
        (0..weight.rows()).into_par_iter().for_each(|r| {
            // SAFETY: one task a row.
            let folded = unsafe { folded_weight.row(r) };
            let mut shift = E::ZERO;
            for (((folded, &w), &gamma), &beta) in folded.iter_mut().zip(weight.row(r)).zip(gamma).zip(beta) {
                *folded = w * gamma;
                shift += w * beta;
            }
            // SAFETY: this element is this task's alone.
            unsafe { folded_bias.at(0, r).write(bias[r] + shift) };
        });
        Ok(())
    }

    fn fold_backward(&self, args: FoldBackward<'_, Self>) -> Result<()> {
        args.check();
        let FoldBackward { weight, norm_weight, norm_bias, dfolded_weight, dfolded_bias, .. } = args;
        let (gamma, beta, db) = (norm_weight.row(0), norm_bias.row(0), dfolded_bias.row(0));
        let (dweight, dbias) = (args.dweight.into_rows(), args.dbias.into_rows());
        (0..weight.rows()).into_par_iter().for_each(|r| {
            // SAFETY: one task a row, and an element of the bias.
            let dweight = unsafe { dweight.row(r) };
            for (((dw, &folded), &gamma), &beta) in
                dweight.iter_mut().zip(dfolded_weight.row(r)).zip(gamma).zip(beta)
            {
                *dw += folded * gamma + db[r] * beta;
            }
            // SAFETY: as above.
            unsafe { *dbias.at(0, r) += db[r] };
        });
        let (dgamma, dbeta) = (args.dnorm_weight.into_rows(), args.dnorm_bias.into_rows());
        (0..weight.cols().div_ceil(COLUMNS)).into_par_iter().for_each(|block| {
            let columns = block * COLUMNS..weight.cols().min((block + 1) * COLUMNS);
            let mut sums = [[E::ZERO; 2]; COLUMNS];
            for (r, &db) in db.iter().enumerate() {
                let w = &weight.row(r)[columns.clone()];
                let folded = &dfolded_weight.row(r)[columns.clone()];
                for ((sum, &w), &folded) in sums.iter_mut().zip(w).zip(folded) {
                    sum[0] += w * folded;
                    sum[1] += w * db;
                }
            }
            for (column, [gamma, beta]) in columns.zip(sums) {
                // SAFETY: these elements are this task's alone.
                unsafe {
                    *dgamma.at(0, column) += gamma;
                    *dbeta.at(0, column) += beta;
                }
            }
        });
        Ok(())
    }
}
