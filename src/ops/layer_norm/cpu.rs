//! Some rows a task; the parameters' gradients are summed over a task's rows, then over the tasks.

use super::{LayerNormBackward, LayerNormForward, LayerNormGradients, LayerNormOp};
use crate::device::{Cpu, Real, sum, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// Fewest rows worth a task of their own.
const ROWS_PER_TASK: usize = 16;

/// Most tasks of a backward pass, whatever the number of threads.
const MOST_TASKS: usize = 64;

impl<E: Real> LayerNormOp for Cpu<E> {
    fn layer_norm_partials(&self, rows: usize) -> usize {
        rows.div_ceil(ROWS_PER_TASK).min(MOST_TASKS)
    }

    fn layer_norm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()> {
        args.check();
        let LayerNormForward { x, dropout, residual, weight, bias, epsilon, sum: saved, statistics, y } =
            args;
        let (rows, width) = (x.rows(), x.cols());
        let (weight, bias, epsilon) = (&weight.row(0)[..width], &bias.row(0)[..width], E::of(epsilon));
        let scale = E::of(1.0 / width as f64);
        let y = y.into_rows();
        let saved = saved.map(|s| s.into_rows());
        let statistics = statistics.map(|s| s.into_rows());
        (0..rows).into_par_iter().with_min_len(ROWS_PER_TASK).for_each(|r| {
            vectorised(
                #[inline(always)]
                || {
                    // SAFETY: one task a row.
                    let y = unsafe { y.row(r) };
                    y.copy_from_slice(x.row(r));
                    if let Some(dropout) = dropout {
                        dropout.apply(0, r, y);
                    }
                    if let Some(residual) = residual {
                        for (y, &residual) in y.iter_mut().zip(residual.row(r)) {
                            *y += residual;
                        }
                    }
                    if let Some(saved) = &saved {
                        // SAFETY: one task a row.
                        unsafe { saved.row(r) }.copy_from_slice(y);
                    }
                    let mean = sum([y], |[y]| y) * scale;
                    let variance = sum([y], |[y]| (y - mean) * (y - mean)) * scale;
                    let inverse = E::ONE / (variance + epsilon).sqrt();
                    for (y, (&w, &b)) in y.iter_mut().zip(weight.iter().zip(bias)) {
                        *y = ((*y - mean) * inverse).mul_add(w, b);
                    }
                    if let Some(statistics) = &statistics {
                        // SAFETY: one task a row.
                        unsafe { statistics.row(r) }.copy_from_slice(&[mean, inverse]);
                    }
                },
            );
        });
        Ok(())
    }

    fn layer_norm_backward(&self, args: LayerNormBackward<'_, Self>) -> Result<()> {
        args.check(self);
        let LayerNormBackward { dropout, sum: s, statistics, weight, dy, dsum, dx, parameters } = args;
        let (rows, width) = (s.rows(), s.cols());
        let tasks = self.layer_norm_partials(rows);
        let weight = &weight.row(0)[..width];
        let scale = E::of(1.0 / width as f64);
        let (dsum, dx) = (dsum.into_rows(), dx.map(|dx| dx.into_rows()));
        let (partials, sums) = parameters
            .map(|LayerNormGradients { partials, dweight, dbias }| (partials.into_rows(), [dweight, dbias]))
            .unzip();
        // With x̂ the normalised row and g = γ·dy: ds = (g − mean(g) − x̂·mean(g·x̂)) / σ
        (0..tasks).into_par_iter().for_each(|task| {
            vectorised(
                #[inline(always)]
                || {
                    let mut partial = partials.as_ref().map(|partials| {
                        // SAFETY: one task a row.
                        let partial = unsafe { partials.row(task) };
                        partial.fill(E::ZERO);
                        partial.split_at_mut(width)
                    });
                    for r in rows * task / tasks..rows * (task + 1) / tasks {
                        let (s, dy) = (s.row(r), dy.row(r));
                        let &[mean, inverse] = statistics.row(r) else {
                            unreachable!("two statistics a row")
                        };
                        let mean_g = sum([weight, dy], |[w, dy]| w * dy) * scale;
                        let mean_gx =
                            sum([weight, dy, s], |[w, dy, s]| w * dy * ((s - mean) * inverse)) * scale;
                        // SAFETY: one task a row.
                        let ds = unsafe { dsum.row(r) };
                        for i in 0..width {
                            let normalised = (s[i] - mean) * inverse;
                            ds[i] = (weight[i] * dy[i] - mean_g - normalised * mean_gx) * inverse;
                        }
                        if let Some((dweight, dbias)) = &mut partial {
                            for i in 0..width {
                                dweight[i] += dy[i] * ((s[i] - mean) * inverse);
                                dbias[i] += dy[i];
                            }
                        }
                        if let (Some(dropout), Some(dx)) = (dropout, &dx) {
                            // SAFETY: one task a row.
                            let dx = unsafe { dx.row(r) };
                            dx.copy_from_slice(ds);
                            dropout.apply(0, r, dx);
                        }
                    }
                },
            );
        });
        let (Some(partials), Some([mut dweight, mut dbias])) = (partials, sums) else { return Ok(()) };
        let (dweight, dbias) = (dweight.row_mut(0), dbias.row_mut(0));
        for task in 0..tasks {
            // SAFETY: the tasks are done.
            let partial = unsafe { partials.row(task) };
            let (dw, db) = partial.split_at(width);
            dweight.iter_mut().zip(dw).for_each(|(to, &x)| *to += x);
            dbias.iter_mut().zip(db).for_each(|(to, &x)| *to += x);
        }
        Ok(())
    }
}
