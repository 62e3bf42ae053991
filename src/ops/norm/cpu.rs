//! A partial sum a task.

use super::{Norm, NormOp, PARTIAL_SUMS};
use crate::device::{Cpu, Real, sum, vectorised};
use crate::error::Result;
use rayon::prelude::*;

impl<E: Real> NormOp for Cpu<E> {
    fn norm(&self, mut args: Norm<'_, Self>) -> Result<()> {
        args.check();
        let x = args.x.row(0);
        let share = x.len().div_ceil(PARTIAL_SUMS).max(1);
        let partial_sums = args.partial_sums.row_mut(0);
        partial_sums.fill(E::ZERO);
        partial_sums.par_iter_mut().zip(x.par_chunks(share)).for_each(|(partial_sum, x)| {
            *partial_sum = vectorised(
                #[inline(always)]
                || sum([x], |[x]| x * x),
            );
        });
        args.norm.row_mut(0)[0] = sum([partial_sums], |[x]| x).sqrt();
        Ok(())
    }
}
