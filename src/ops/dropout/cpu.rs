//! A row a task.

use super::{Dropout, DropoutBackward, DropoutForward, DropoutOp};
use crate::device::{Cpu, M, Real, V, vectorised};
use crate::error::Result;
use crate::random::philox_run;
use rayon::prelude::*;

/// Counters whose words are drawn together: as many as vector registers have lanes.
const COUNTERS: usize = 16;
/// Elements of a row that are dropped or kept by them.
pub(crate) const RUN: usize = 4 * COUNTERS;

impl<E: Real> Dropout<'_, Cpu<E>> {
    /// What elements `run`·[`RUN`].. of a row of a head's matrix are multiplied by: 0 or 1/(1 − p). To be
    /// called from vectorised code.
    #[inline(always)]
    pub(crate) fn factors(&self, head: u32, row: usize, run: usize) -> [E; RUN] {
        let key = [self.key.row(0)[0], self.key.row(0)[1]];
        let (threshold, scale) = (self.threshold(), E::of(self.scale()));
        let first = (run * COUNTERS) as u32;
        let words = philox_run::<COUNTERS>([first, row as u32, self.site, head], key);
        let mut factors = [E::ZERO; RUN];
        for (factor, &word) in factors.iter_mut().zip(words.as_flattened()) {
            *factor = if word >= threshold { scale } else { E::ZERO };
        }
        factors
    }

    /// Drops elements of a row of a head's matrix, or scales them. To be called from vectorised code.
    #[inline(always)]
    pub(crate) fn apply(&self, head: u32, row: usize, x: &mut [E]) {
        for (run, x) in x.chunks_mut(RUN).enumerate() {
            for (x, factor) in x.iter_mut().zip(self.factors(head, row, run)) {
                *x = *x * factor;
            }
        }
    }
}

impl<E: Real> DropoutOp for Cpu<E> {
    fn dropout_forward(&self, DropoutForward { dropout, x, y }: DropoutForward<'_, Self>) -> Result<()> {
        multiply(dropout, x, y);
        Ok(())
    }

    fn dropout_backward(&self, DropoutBackward { dropout, dy, dx }: DropoutBackward<'_, Self>) -> Result<()> {
        multiply(dropout, dy, dx);
        Ok(())
    }
}

/// The mask is its own gradient.
fn multiply<E: Real>(dropout: Dropout<'_, Cpu<E>>, x: V<'_, Cpu<E>>, y: M<'_, Cpu<E>>) {
    assert_eq!(x.shape(), y.shape());
    let y = y.into_rows();
    (0..x.rows()).into_par_iter().for_each(|r| {
        // SAFETY: one task a row.
        let y = unsafe { y.row(r) };
        y.copy_from_slice(x.row(r));
        vectorised(
            #[inline(always)]
            || dropout.apply(0, r, y),
        );
    });
}
