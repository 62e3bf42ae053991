//! A row a task.

use super::{Dropout, DropoutBackward, DropoutForward, DropoutOp};
use crate::device::{Cpu, M, Real, V};
use crate::error::Result;
use crate::random::philox;
use rayon::prelude::*;

impl<E: Real> Dropout<'_, Cpu<E>> {
    /// Calls `each(col, factor)` for the elements of a row of a head's matrix, `cols` wide: what they
    /// are multiplied by, which is 0 or 1/(1 − p).
    pub(crate) fn for_each_factor(&self, head: u32, row: usize, cols: usize, mut each: impl FnMut(usize, E)) {
        let key = [self.key.row(0)[0], self.key.row(0)[1]];
        let (threshold, scale) = (self.threshold(), E::of(self.scale()));
        for first in (0..cols).step_by(4) {
            let words = philox([first as u32 / 4, row as u32, self.site, head], key);
            for (col, word) in (first..cols).zip(words) {
                each(col, if word >= threshold { scale } else { E::ZERO });
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
        let x = x.row(r);
        dropout.for_each_factor(0, r, x.len(), |c, factor| y[c] = x[c] * factor);
    });
}
