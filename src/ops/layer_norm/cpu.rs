//! A row a task; the parameters' gradients by columns, so that their order of summation is fixed.

use super::{LayerNormBackward, LayerNormForward, LayerNormOp};
use crate::device::{Cpu, Real, sum, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// Fewest rows worth a task of their own.
const ROWS_PER_TASK: usize = 16;

impl<E: Real> LayerNormOp for Cpu<E> {
    fn layer_norm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()> {
        let LayerNormForward { x, residual, weight, bias, epsilon, sum: saved, statistics, y } = args;
        let (rows, width) = (x.rows(), x.cols());
        assert_eq!(y.shape(), x.shape());
        assert!(residual.is_none_or(|r| r.shape() == x.shape()));
        assert!(saved.as_ref().is_none_or(|s| s.shape() == x.shape()));
        assert!(statistics.as_ref().is_none_or(|s| s.rows() == rows && s.cols() == 2));
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
                    if let Some(residual) = residual {
                        for (y, &residual) in y.iter_mut().zip(residual.row(r)) {
                            *y += residual;
                        }
                    }
                    if let Some(saved) = &saved {
                        // SAFETY: one task a row.
                        unsafe { saved.row(r) }.copy_from_slice(y);
                    }
                    let mean = sum(width, |i| y[i]) * scale;
                    let variance = sum(width, |i| (y[i] - mean) * (y[i] - mean)) * scale;
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
        let LayerNormBackward { sum: s, statistics, weight, dy, dsum, dweight, dbias } = args;
        let (rows, width) = (s.rows(), s.cols());
        assert_eq!(dy.shape(), s.shape());
        assert_eq!(dsum.shape(), s.shape());
        assert_eq!((dweight.cols(), dbias.cols()), (width, width), "dweight and dbias [1, width]");
        let weight = &weight.row(0)[..width];
        let scale = E::of(1.0 / width as f64);
        let dsum = dsum.into_rows();
        // With x̂ the normalised row and g = γ·dy: ds = (g − mean(g) − x̂·mean(g·x̂)) / σ
        (0..rows).into_par_iter().with_min_len(ROWS_PER_TASK).for_each(|r| {
            vectorised(
                #[inline(always)]
                || {
                    let (s, dy) = (s.row(r), dy.row(r));
                    let &[mean, inverse] = statistics.row(r) else { unreachable!("two statistics a row") };
                    let mean_g = sum(width, |i| weight[i] * dy[i]) * scale;
                    let mean_gx = sum(width, |i| weight[i] * dy[i] * ((s[i] - mean) * inverse)) * scale;
                    // SAFETY: one task a row.
                    let ds = unsafe { dsum.row(r) };
                    for i in 0..width {
                        ds[i] = (weight[i] * dy[i] - mean_g - (s[i] - mean) * inverse * mean_gx) * inverse;
                    }
                },
            );
        });
        let (dweight, dbias) = (dweight.into_rows(), dbias.into_rows());
        // SAFETY: the only slices of the only rows.
        let (dweight, dbias) = unsafe { (dweight.row(0), dbias.row(0)) };
        dweight.par_iter_mut().zip(dbias).enumerate().with_min_len(ROWS_PER_TASK).for_each(
            |(i, (dw, db))| {
                let normalised = |r: usize| (s.row(r)[i] - statistics.row(r)[0]) * statistics.row(r)[1];
                *dw += sum(rows, |r| dy.row(r)[i] * normalised(r));
                *db += sum(rows, |r| dy.row(r)[i]);
            },
        );
        Ok(())
    }
}
