//! Products of matrices on all cores, by one way of multiplying or the other.

use super::amx::Amx;
use super::operand::{Columns, Operand};
use super::rows::Rows;
use super::{Cpu, Real, packed, split, stream};
use crate::device::Write;
use crate::error::Result;
use crate::tensor::{Packing, SPLIT_PANEL};

/// Bytes of a right factor that are brought to their layout at a time: few, so that they take little memory and are
/// multiplied before they leave the cache; but for every part the left factor is brought to its layout anew.
const RIGHT_BYTES: usize = 1 << 25;

impl<E: Real> Cpu<E> {
    /// to (+)= a·b; calls `finish(row, first column, elements of to)` for every part of every row when it is
    /// done, from vectorised code.
    ///
    /// # Errors
    /// Fails if there is not enough memory.
    ///
    /// # Safety
    /// The elements of `to` must belong to the caller alone.
    pub(crate) unsafe fn product(
        &self,
        a: Operand<'_, E>,
        b: Columns<'_, E>,
        write: Write,
        to: &Rows<'_, E>,
        finish: impl Fn(usize, usize, &mut [E]) + Sync,
    ) -> Result<()> {
        let amx = self.amx();
        let b = match b {
            Columns::Whole(b) if stream::takes(a, b) => {
                // SAFETY: as the caller promises.
                return unsafe { stream::product(a, b, write, to, finish) };
            }
            Columns::Whole(b) => b,
            Columns::Panels(weight) => {
                let amx = amx.filter(|_| weight.packing() == Packing::SplitPanels);
                // SAFETY: as the caller promises.
                return unsafe { product(amx, a, b, write, to, finish) };
            }
        };
        let columns = b.count();
        let most = (RIGHT_BYTES / size_of::<E>() / b.depth().max(1)).max(SPLIT_PANEL);
        // Parts of one size, but for a panel.
        let each = columns.div_ceil(columns.div_ceil(most).max(1)).next_multiple_of(SPLIT_PANEL);
        (0..columns).step_by(each.max(1)).try_for_each(|first| {
            let part = first..columns.min(first + each);
            let (b, to) = (Columns::Whole(b.part(part.clone())), to.columns(part));
            // SAFETY: as the caller promises.
            unsafe {
                product(
                    amx,
                    a,
                    b,
                    write,
                    &to,
                    #[inline(always)]
                    |row, column, to| finish(row, first + column, to),
                )
            }
        })
    }
}

/// The same, by one way of multiplying or the other.
///
/// # Safety
/// As [`Cpu::product`].
unsafe fn product<E: Real>(
    amx: Option<Amx>,
    a: Operand<'_, E>,
    b: Columns<'_, E>,
    write: Write,
    to: &Rows<'_, E>,
    finish: impl Fn(usize, usize, &mut [E]) + Sync,
) -> Result<()> {
    // SAFETY: as the caller promises.
    unsafe {
        match amx {
            Some(amx) => split::product(amx, a, b, write, to, finish),
            None => packed::product(a, b, write, to, finish),
        }
    }
}
