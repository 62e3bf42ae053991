//! Some rows a task; the gradient of γ is summed over a task's rows, then over the tasks.

use super::{RmsNormBackward, RmsNormForward, RmsNormGradients, RmsNormOp};
use crate::device::{Cpu, Real, Write, sum, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// Fewest rows worth a task of their own.
const ROWS_PER_TASK: usize = 16;

/// Most tasks of a backward pass, whatever the number of threads.
const MOST_TASKS: usize = 64;

impl<E: Real> RmsNormOp for Cpu<E> {
    fn rms_norm_partials(&self, rows: usize) -> usize {
        rows.div_ceil(ROWS_PER_TASK).min(MOST_TASKS)
    }

    fn rms_norm_forward(&self, args: RmsNormForward<'_, Self>) -> Result<()> {
        args.check();
        let RmsNormForward { epsilon, scale, x, weight, statistics, y } = args;
        let (rows, width) = (x.rows(), x.cols());
        let (weight, epsilon, scale) = (weight.row(0), E::of(epsilon), E::of(scale));
        let share = E::of(1.0 / width as f64);
        let (y, statistics) = (y.into_rows(), statistics.map(|s| s.into_rows()));
        (0..rows).into_par_iter().with_min_len(ROWS_PER_TASK).for_each(|r| {
            vectorised(
                #[inline(always)]
                || {
                    let x = x.row(r);
                    let inverse = E::ONE / (sum([x], |[x]| x * x) * share + epsilon).sqrt();
                    let factor = scale * inverse;
                    // SAFETY: one task a row.
                    let y = unsafe { y.row(r) };
                    for (y, (&x, &w)) in y.iter_mut().zip(x.iter().zip(weight)) {
                        *y = x * factor * w;
                    }
                    if let Some(statistics) = &statistics {
                        // SAFETY: one task a row.
                        unsafe { statistics.row(r) }.fill(inverse);
                    }
                },
            );
        });
        Ok(())
    }

    fn rms_norm_backward(&self, args: RmsNormBackward<'_, Self>) -> Result<()> {
        args.check(self);
        let RmsNormBackward { scale, x, weight, statistics, dy, write, dx, gradients } = args;
        let (rows, width) = (x.rows(), x.cols());
        let tasks = self.rms_norm_partials(rows);
        let (weight, scale, share) = (weight.row(0), E::of(scale), E::of(1.0 / width as f64));
        let dx = dx.into_rows();
        let (partials, dweight) =
            gradients.map(|RmsNormGradients { partials, dweight }| (partials.into_rows(), dweight)).unzip();
        // With r = 1/√(mean(x²) + ε), x̂ = r·x and g = s·γ·dy: dx = r·(g − x̂·mean(g·x̂)), dγ = Σ s·dy·x̂
        (0..tasks).into_par_iter().for_each(|task| {
            vectorised(
                #[inline(always)]
                || {
                    let mut partial = partials.as_ref().map(|partials| {
                        // SAFETY: one task a row.
                        let partial = unsafe { partials.row(task) };
                        partial.fill(E::ZERO);
                        partial
                    });
                    for r in rows * task / tasks..rows * (task + 1) / tasks {
                        let (x, dy, inverse) = (x.row(r), dy.row(r), statistics.row(r)[0]);
                        let factor = scale * inverse;
                        let products = sum([weight, dy, x], |[w, dy, x]| w * dy * x);
                        let along = factor * inverse * inverse * products * share;
                        // SAFETY: one task a row.
                        let dx = unsafe { dx.row(r) };
                        // A loop each: a choice inside would keep it from vectorising.
                        match write {
                            Write::Replace => {
                                for i in 0..width {
                                    dx[i] = weight[i] * dy[i] * factor - x[i] * along;
                                }
                            }
                            Write::Add => {
                                for i in 0..width {
                                    dx[i] += weight[i] * dy[i] * factor - x[i] * along;
                                }
                            }
                        }
                        if let Some(partial) = &mut partial {
                            for i in 0..width {
                                partial[i] += dy[i] * (x[i] * factor);
                            }
                        }
                    }
                },
            );
        });
        let (Some(partials), Some(mut dweight)) = (partials, dweight) else { return Ok(()) };
        let dweight = dweight.row_mut(0);
        for task in 0..tasks {
            // SAFETY: the tasks are done.
            let partial = unsafe { partials.row(task) };
            dweight.iter_mut().zip(partial).for_each(|(to, &mut x)| *to += x);
        }
        Ok(())
    }
}
