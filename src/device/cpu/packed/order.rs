//! Factors in the order in which a product reads them.

use crate::device::cpu::Real;
use crate::device::cpu::lanes::TILE;
use crate::device::cpu::operand::{Operand, Summed};
use crate::device::cpu::real::vectorised;
use crate::tensor::PANEL;
use rayon::prelude::*;
use std::ops::Range;

/// Panels of a task.
const PANELS_PER_TASK: usize = 4;

/// Numbers of a row that are widened at a time: with those of the other rows, few enough for the nearest cache.
const RUN: usize = 128;

/// Brings all of a right factor to panels of its columns.
pub(super) fn order_panels<E: Real>(factor: Operand<'_, E>, to: &mut [E]) {
    let (count, depth) = (factor.count(), factor.depth());
    let each = PANELS_PER_TASK * PANEL;
    to.par_chunks_mut((each * depth).max(1)).enumerate().for_each(|(task, to)| {
        order::<E, PANEL>(factor, task * each..count.min((task + 1) * each), 0..depth, to);
    });
}

/// Writes these numbers of each of the `lines`, which are not summed: of the first `L` lines number after
/// number, then of the next. What fills the last ones up is zeros.
pub(super) fn order<E: Real, const L: usize>(
    factor: Operand<'_, E>,
    lines: Range<usize>,
    numbers: Range<usize>,
    to: &mut [E],
) {
    let (to, _) = to.as_chunks_mut::<L>();
    if !factor.is_own() {
        return order_widened(factor, lines, numbers, to);
    }
    let Operand { values, summed } = factor;
    let values = values.matrix::<E>();
    vectorised(
        #[inline(always)]
        || {
            for (to, first) in to.chunks_exact_mut(numbers.len().max(1)).zip(lines.clone().step_by(L)) {
                let there = L.min(lines.end - first);
                if there < L {
                    to.fill([E::ZERO; L]);
                }
                match summed {
                    Summed::Columns if there == L => {
                        interleave(std::array::from_fn(|i| &values.row(first + i)[numbers.clone()]), to);
                    }
                    Summed::Columns => {
                        for i in 0..there {
                            for (to, &x) in to.iter_mut().zip(&values.row(first + i)[numbers.clone()]) {
                                to[i] = x;
                            }
                        }
                    }
                    Summed::Rows => {
                        for (to, number) in to.iter_mut().zip(numbers.clone()) {
                            let from = &values.row(number)[first..first + there];
                            match from.first_chunk::<L>() {
                                Some(from) => *to = *from,
                                None => to[..there].copy_from_slice(from),
                            }
                        }
                    }
                }
            }
        },
    );
}

/// The same of a factor of 16 bits.
fn order_widened<E: Real, const L: usize>(
    Operand { values, summed }: Operand<'_, E>,
    lines: Range<usize>,
    numbers: Range<usize>,
    to: &mut [[E; L]],
) {
    vectorised(
        #[inline(always)]
        || {
            for (to, first) in to.chunks_exact_mut(numbers.len().max(1)).zip(lines.clone().step_by(L)) {
                let there = L.min(lines.end - first);
                match summed {
                    Summed::Columns => {
                        let mut widened = [[E::ZERO; RUN]; L];
                        for (to, number) in to.chunks_mut(RUN).zip(numbers.clone().step_by(RUN)) {
                            for (i, widened) in widened[..there].iter_mut().enumerate() {
                                values.read_row(first + i, number, &mut widened[..to.len()]);
                            }
                            interleave(widened.each_ref().map(|row| &row[..to.len()]), to);
                        }
                    }
                    Summed::Rows => {
                        for (to, number) in to.iter_mut().zip(numbers.clone()) {
                            values.read_row(number, first, &mut to[..there]);
                            to[there..].fill(E::ZERO);
                        }
                    }
                }
            }
        },
    );
}

/// Writes `L` rows number after number.
#[inline(always)]
fn interleave<E: Real, const L: usize>(rows: [&[E]; L], to: &mut [[E; L]]) {
    let (tiles, last) = to.as_chunks_mut::<TILE>();
    let first_of_last = tiles.len() * TILE;
    for (index, to) in tiles.iter_mut().enumerate() {
        for first in (0..L).step_by(TILE) {
            let there = TILE.min(L - first);
            let mut tile = [[E::ZERO; TILE]; TILE];
            for (tile, row) in tile.iter_mut().zip(&rows[first..first + there]) {
                tile.copy_from_slice(&row[index * TILE..][..TILE]);
            }
            for (to, numbers) in to.iter_mut().zip(E::transpose(tile)) {
                to[first..first + there].copy_from_slice(&numbers[..there]);
            }
        }
    }
    for (to, number) in last.iter_mut().zip(first_of_last..) {
        *to = rows.map(|row| row[number]);
    }
}
