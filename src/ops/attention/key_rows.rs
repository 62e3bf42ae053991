//! The keys and values of one head on the CPU: laid out for many queries, read where they stand for a few.

use super::{Sequence, Span};
use crate::device::{Cpu, Real, TILE, prefetch, vectorised};
use crate::tensor::View;

/// Queries of a sequence for which its keys are read where they stand: to lay them out would cost more than it saves.
const FEW_QUERIES: usize = 4;

/// Columns that are summed side by side, in vectors.
const COLUMNS: usize = 16;

/// Rows of k or of v that are one head's keys or values.
#[derive(Clone, Copy)]
pub(super) struct KeyRows<'a, E> {
    /// Of the first and of the second span.
    pub matrices: [View<'a, Cpu<E>, E>; 2],
    pub spans: [Span; 2],
    /// The rows that second spans list, if they do.
    pub listed: Option<&'a [u32]>,
    /// First column of the head.
    pub col: usize,
    pub width: usize,
}

/// What the keys or values of a head are to their products with queries, which would bring them to this form
/// again for every few queries.
#[derive(Default)]
pub(super) struct Transposed<E> {
    /// [head width, pitch], both rounded up to whole tiles
    pub numbers: Vec<E>,
    /// At least the keys.
    pub pitch: usize,
}

/// Whether the sequence has few queries; it goes by the sequence alone, so its results do not depend on others.
pub(super) fn has_few_queries(sequence: &Sequence) -> bool {
    sequence.query_count() <= FEW_QUERIES
}

impl<'a, E: Real> KeyRows<'a, E> {
    fn count(&self) -> usize {
        self.spans[0].len + self.spans[1].len
    }

    /// The row of a key from the head's first column on.
    #[inline(always)]
    fn row(&self, key: usize) -> &'a [E] {
        let row = match key.checked_sub(self.spans[0].len) {
            None => self.matrices[0].row(self.spans[0].start + key),
            Some(key) => {
                let key = self.spans[1].start + key;
                self.matrices[1].row(self.listed.map_or(key, |rows| rows[key] as usize))
            }
        };
        &row[self.col..]
    }

    /// Lays out the second span's rows, if they are listed: [second span's keys, head width].
    pub(super) fn lay_out(&self, to: &mut Vec<E>) {
        to.clear();
        if self.listed.is_some() {
            for key in self.spans[0].len..self.count() {
                to.extend_from_slice(&self.row(key)[..self.width]);
            }
        }
    }

    /// The products of `q` and the first keys, as many as `scores`.
    #[inline(always)]
    pub(super) fn scores(&self, q: &[E], scores: &mut [E]) {
        for (key, score) in scores.iter_mut().enumerate() {
            *score = dot(q, &self.row(key)[..self.width]);
        }
    }

    /// out = the sum of the first rows by their weights `p`, key by key.
    #[inline(always)]
    pub(super) fn weighted_sum(&self, p: &[E], out: &mut [E]) {
        out.fill(E::ZERO);
        let (chunks, rest) = out.as_chunks_mut::<COLUMNS>();
        for (key, &p) in p.iter().enumerate() {
            let (from, last) = self.row(key)[..self.width].as_chunks::<COLUMNS>();
            for (out, from) in chunks.iter_mut().zip(from) {
                for (out, &x) in out.iter_mut().zip(from) {
                    *out = p.mul_add(x, *out);
                }
            }
            for (out, &x) in rest.iter_mut().zip(last) {
                *out = p.mul_add(x, *out);
            }
        }
    }
}

/// a·b, summed in an order that depends on the length alone.
#[inline(always)]
fn dot<E: Real>(a: &[E], b: &[E]) -> E {
    let ((a, last_a), (b, last_b)) = (a.as_chunks::<COLUMNS>(), b.as_chunks::<COLUMNS>());
    let mut lanes = [E::ZERO; COLUMNS];
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = a.mul_add(b, *lane);
        }
    }
    let mut half = COLUMNS / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    last_a.iter().zip(last_b).fold(lanes[0], |sum, (&a, &b)| a.mul_add(b, sum))
}

impl<E: Real> Transposed<E> {
    /// Of these rows.
    pub(super) fn fill(&mut self, device: &Cpu<E>, rows: &KeyRows<'_, E>) {
        let (count, width) = (rows.count(), rows.width);
        self.pitch = count.next_multiple_of(TILE);
        self.numbers.resize(width.next_multiple_of(TILE) * self.pitch, E::ZERO);
        vectorised(
            #[inline(always)]
            || {
                let mut tile = [[E::ZERO; TILE]; TILE];
                for first_key in (0..count).step_by(TILE) {
                    let present = TILE.min(count - first_key);
                    for i in 0..present {
                        // The next head's.
                        let next = &rows.row(first_key + i)[width..];
                        prefetch(&next[..width.min(next.len())]);
                    }
                    for first_col in (0..width).step_by(TILE) {
                        for (i, to) in tile[..present].iter_mut().enumerate() {
                            let from = &rows.row(first_key + i)[first_col..];
                            match from.first_chunk::<TILE>() {
                                Some(numbers) => *to = *numbers,
                                None => to[..from.len()].copy_from_slice(from),
                            }
                        }
                        device.transpose(&mut tile);
                        let to = &mut self.numbers[first_col * self.pitch + first_key..];
                        for (to, numbers) in to.chunks_mut(self.pitch).zip(&tile) {
                            to[..TILE].copy_from_slice(numbers);
                        }
                    }
                }
            },
        );
    }
}
