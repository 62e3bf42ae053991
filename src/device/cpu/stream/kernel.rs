//! What is done in registers.

use super::vectors::{LANES, Stored, Task, Vectors};
use crate::device::Write;
use std::ptr;

/// Most outputs of a block.
pub(super) const OUTPUTS: usize = 4;

/// Outputs that pass by a slice of the rows.
pub(super) const TILE: usize = 32;

/// Bytes of a cache line.
const LINE: usize = 64;

/// A part of a product: blocks of outputs by a group of rows, along a slice of the numbers that are summed.
#[derive(Clone, Copy)]
pub(super) struct Pass<N> {
    /// Where the slice begins in the weight's row of each output of the first block; as many as a block has are read.
    pub(super) weights: [*const N; OUTPUTS],
    /// Numbers from one block to the next.
    pub(super) step: usize,
    /// Where the slice begins in the row of the last output: what would be behind it is that one again.
    pub(super) last: *const N,
    pub(super) blocks: usize,
    /// How many numbers are summed.
    pub(super) numbers: usize,
    /// So many blocks before they are read, they are asked for.
    pub(super) ahead: usize,
    /// Where the blocks that are read after these begin.
    pub(super) next: *const N,
    /// What is asked for lies so many numbers further.
    pub(super) further: usize,
    /// The rows, a register of each after the other, then the next; the last ones filled up with zeros.
    pub(super) x: *const f32,
    /// Rows of `x`, of which this group may be a part.
    pub(super) rows: usize,
    /// [blocks, rows, outputs] from the group's first row on, a register of each
    pub(super) sums: *mut f32,
    /// Whether the sums begin here or go on.
    pub(super) write: Write,
}

/// The same for a group of `R` rows and blocks of `O` outputs.
pub(super) struct Blocks<N, const R: usize, const O: usize>(pub(super) Pass<N>);

impl<N: Stored, const R: usize, const O: usize> Task for Blocks<N, R, O> {
    // Loops over constant bounds are unrolled, and what they index stays in registers.
    #[expect(clippy::needless_range_loop, reason = "iterators over the sums keep them in memory")]
    #[inline(always)]
    unsafe fn run<V: Vectors>(self) {
        let pass = self.0;
        for block in 0..pass.blocks {
            let weights = pass.weights.map(|row| row.wrapping_add(block * pass.step).min(pass.last));
            let later = match block + pass.ahead {
                later if later < pass.blocks => pass.weights[0].wrapping_add(later * pass.step),
                later => pass.next.wrapping_add((later - pass.blocks) * pass.step),
            };
            let later = later.wrapping_add(pass.further);
            let ahead = later.addr().wrapping_sub(weights[0].addr()) as isize;
            let kept =
                |r: usize, o: usize| pass.sums.wrapping_add((block * pass.rows * O + r * O + o) * V::LANES);
            // SAFETY: the rows of the weight and `x` hold so many numbers, and there is a register of every sum; a
            // prefetch reads nothing.
            unsafe {
                let mut sums = [[V::zeros(); O]; R];
                if pass.write == Write::Add {
                    for r in 0..R {
                        for o in 0..O {
                            sums[r][o] = V::load(kept(r, o));
                        }
                    }
                }
                let line = LINE / size_of::<N>();
                let (mut at, mut x) = (0, pass.x);
                while at + line <= pass.numbers {
                    for o in 0..O {
                        ask(weights[o].wrapping_add(at).wrapping_byte_offset(ahead));
                    }
                    for _ in 0..line / V::LANES {
                        let mut registers = [V::zeros(); O];
                        for o in 0..O {
                            registers[o] = N::load::<V>(weights[o].wrapping_add(at));
                        }
                        add::<V, R, O>(registers, x, &mut sums);
                        at += V::LANES;
                        x = x.wrapping_add(pass.rows * V::LANES);
                    }
                }
                while at < pass.numbers {
                    let there = V::LANES.min(pass.numbers - at);
                    let mut registers = [V::zeros(); O];
                    for o in 0..O {
                        let mut padded = [N::default(); LANES];
                        ptr::copy_nonoverlapping(weights[o].wrapping_add(at), padded.as_mut_ptr(), there);
                        registers[o] = N::load::<V>(padded.as_ptr());
                    }
                    add::<V, R, O>(registers, x, &mut sums);
                    at += there;
                    x = x.wrapping_add(pass.rows * V::LANES);
                }
                for r in 0..R {
                    for o in 0..O {
                        V::store(sums[r][o], kept(r, o));
                    }
                }
            }
        }
    }
}

/// Adds the products of a register of each row's numbers with one of each output's.
///
/// # Safety
/// As [`Vectors::load`].
#[expect(clippy::needless_range_loop, reason = "as above")]
#[inline(always)]
unsafe fn add<V: Vectors, const R: usize, const O: usize>(
    weights: [V::Register; O],
    x: *const f32,
    sums: &mut [[V::Register; O]; R],
) {
    for r in 0..R {
        // SAFETY: as the caller promises.
        let x = unsafe { V::load(x.wrapping_add(r * V::LANES)) };
        for o in 0..O {
            // SAFETY: as the caller promises.
            sums[r][o] = unsafe { V::mul_add(x, weights[o], sums[r][o]) };
        }
    }
}

/// Asks for a line of memory.
#[inline(always)]
fn ask<N>(address: *const N) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and is allowed on any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// What every register of a tile's sums comes to.
pub(super) struct Totals<'a> {
    /// [blocks, rows, outputs], a register of each
    pub(super) sums: *const f32,
    pub(super) blocks: usize,
    /// Outputs of a block.
    pub(super) outputs: usize,
    /// [rows]
    pub(super) totals: &'a mut [[f32; TILE]],
}

impl Task for Totals<'_> {
    #[inline(always)]
    unsafe fn run<V: Vectors>(self) {
        let mut sums = self.sums;
        for block in 0..self.blocks {
            for totals in &mut *self.totals {
                for total in &mut totals[block * self.outputs..][..self.outputs] {
                    // SAFETY: there is a register of each.
                    *total = unsafe { V::sum(V::load(sums)) };
                    sums = sums.wrapping_add(V::LANES);
                }
            }
        }
    }
}
