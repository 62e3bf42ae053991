//! A group a task.

use super::{PoolBackward, PoolForward, PoolOp, group_size};
use crate::device::{Cpu, Real};
use crate::error::Result;
use rayon::prelude::*;

impl<E: Real> PoolOp for Cpu<E> {
    fn pool_forward(&self, PoolForward { x, y }: PoolForward<'_, Self>) -> Result<()> {
        assert_eq!(x.cols(), y.cols());
        let (groups, size) = (y.rows(), group_size(x.rows(), y.rows()));
        let inverse = E::of(1.0 / size as f64);
        let y = y.into_rows();
        (0..groups).into_par_iter().for_each(|g| {
            // SAFETY: one task a row.
            let y = unsafe { y.row(g) };
            y.fill(E::ZERO);
            for r in g * size..(g + 1) * size {
                y.iter_mut().zip(x.row(r)).for_each(|(y, &x)| *y += x);
            }
            y.iter_mut().for_each(|y| *y = *y * inverse);
        });
        Ok(())
    }

    fn pool_backward(&self, PoolBackward { dy, dx }: PoolBackward<'_, Self>) -> Result<()> {
        assert_eq!(dx.cols(), dy.cols());
        let size = group_size(dx.rows(), dy.rows());
        let inverse = E::of(1.0 / size as f64);
        let rows = dx.rows();
        let dx = dx.into_rows();
        (0..rows).into_par_iter().for_each(|r| {
            // SAFETY: one task a row.
            let dx = unsafe { dx.row(r) };
            dx.iter_mut().zip(dy.row(r / size)).for_each(|(dx, &dy)| *dx = dy * inverse);
        });
        Ok(())
    }
}
