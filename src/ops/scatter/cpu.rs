//! In order, on one thread: these are few rows.

use super::{Scatter, ScatterOp};
use crate::device::{Cpu, Real};
use crate::error::Result;

impl<E: Real> ScatterOp for Cpu<E> {
    fn scatter(&self, Scatter { ids, x, mut y }: Scatter<'_, Self>) -> Result<()> {
        assert_eq!((x.rows(), x.cols()), (ids.cols(), y.cols()), "x [count, width]");
        for (i, &id) in ids.row(0).iter().enumerate() {
            y.row_mut(id as usize).copy_from_slice(x.row(i));
        }
        Ok(())
    }
}
