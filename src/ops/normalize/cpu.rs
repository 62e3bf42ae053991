//! A row a task.

use super::{NormalizeBackward, NormalizeForward, NormalizeOp, SMALLEST_LENGTH};
use crate::device::{Cpu, Real, sum};
use crate::error::Result;
use rayon::prelude::*;

/// max(‖x‖, 1e-12); NaN stays NaN.
fn length<E: Real>(x: &[E]) -> E {
    let length = sum([x], |[x]| x * x).sqrt();
    if length < E::of(SMALLEST_LENGTH) { E::of(SMALLEST_LENGTH) } else { length }
}

impl<E: Real> NormalizeOp for Cpu<E> {
    fn normalize_forward(&self, NormalizeForward { x, y }: NormalizeForward<'_, Self>) -> Result<()> {
        assert_eq!(x.shape(), y.shape());
        let y = y.into_rows();
        (0..x.rows()).into_par_iter().with_min_len(16).for_each(|r| {
            let x = x.row(r);
            let inverse = E::ONE / length(x);
            // SAFETY: one task a row.
            for (y, &x) in unsafe { y.row(r) }.iter_mut().zip(x) {
                *y = x * inverse;
            }
        });
        Ok(())
    }

    fn normalize_backward(&self, NormalizeBackward { x, dy, dx }: NormalizeBackward<'_, Self>) -> Result<()> {
        assert!(x.shape() == dy.shape() && x.shape() == dx.shape());
        let dx = dx.into_rows();
        (0..x.rows()).into_par_iter().with_min_len(16).for_each(|r| {
            let (x, dy) = (x.row(r), dy.row(r));
            let length = length(x);
            let inverse = E::ONE / length;
            // A length that counts as the smallest does not change with x.
            let along = if length == E::of(SMALLEST_LENGTH) {
                E::ZERO
            } else {
                sum([x, dy], |[x, dy]| x * dy) * inverse * inverse
            };
            // SAFETY: one task a row.
            for (i, dx) in unsafe { dx.row(r) }.iter_mut().enumerate() {
                *dx = (dy[i] - x[i] * along) * inverse;
            }
        });
        Ok(())
    }
}
