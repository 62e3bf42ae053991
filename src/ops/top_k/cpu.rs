//! A part of a row a task, so that few rows keep all threads busy; then what the parts of each row have found is put
//! together.

use super::{TopK, TopKOp};
use crate::device::{Cpu, Real, maximum, sum, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// Most logits of a part.
const PART: usize = 8192;

/// Logits that are looked at together.
const CHUNK: usize = 64;

impl<E: Real> TopKOp for Cpu<E> {
    fn top_k(&self, args: TopK<'_, Self>) -> Result<()> {
        args.check();
        let TopK { logits, asked, mut lse, ids, values } = args;
        let (rows, width, k) = (logits.rows(), logits.cols(), ids.cols());
        let parts = width.div_ceil(PART);
        let part = |task: usize| {
            let (row, part) = (logits.row(task / parts), task % parts);
            let (start, end) = (width * part / parts, width * (part + 1) / parts);
            vectorised(
                #[inline(always)]
                || Part::of(&row[start..end], start, k),
            )
        };
        let all: Vec<Part<E>> = (0..rows * parts).into_par_iter().map(part).collect();
        let (ids, values) = (ids.into_rows(), values.into_rows());
        let asked = asked.map(|(ids, values)| (ids, values.into_rows()));
        let outputs = lse.row_mut(0).par_iter_mut().zip(all.par_chunks(parts));
        outputs.enumerate().for_each(|(r, (lse, parts))| {
            *lse = log_sum_exp(parts);
            let mut best: Vec<_> = parts.iter().flat_map(|part| part.best.iter().copied()).collect();
            // Stable: of equals those of an earlier part first. None is NaN.
            best.sort_by(|(a, _), (b, _)| b.partial_cmp(a).expect("numbers"));
            // SAFETY: one task a row.
            let (ids, values) = unsafe { (ids.row(r), values.row(r)) };
            for ((id, value), &(logit, token)) in ids.iter_mut().zip(values).zip(&best) {
                (*id, *value) = (token, logit);
            }
            if let Some((ids, values)) = &asked {
                // SAFETY: one task a row.
                let values = unsafe { values.row(r) };
                for (value, &id) in values.iter_mut().zip(ids.row(r)) {
                    *value = logits.row(r)[id as usize];
                }
            }
        });
        Ok(())
    }
}

/// What a part of a row has.
struct Part<E> {
    /// Its k largest logits with their tokens, or all if it has fewer; the largest first, of equals the first.
    best: Vec<(E, u32)>,
    /// The largest logit, or NaN if there is any.
    largest: E,
    /// Σ exp(x − largest)
    exponentials: E,
}

impl<E: Real> Part<E> {
    /// Of logits `x`, of which the first is that of token `start`; to be called from vectorised code.
    #[inline(always)]
    fn of(x: &[E], start: usize, k: usize) -> Self {
        let least = E::of(f64::NEG_INFINITY);
        let mut best: Vec<(E, u32)> = Vec::with_capacity(k);
        for (chunk, first) in x.chunks(CHUNK).zip((start..).step_by(CHUNK)) {
            // Most have nothing that is large enough.
            if best.len() == k && !any_above(chunk, best[k - 1].0) {
                continue;
            }
            for (&x, token) in chunk.iter().zip(first..) {
                let x = if x.is_nan() { least } else { x };
                if best.len() == k {
                    if x <= best[k - 1].0 {
                        continue;
                    }
                    best.pop();
                }
                // Behind its equals, whose ids are smaller.
                let place = best.partition_point(|&(other, _)| other >= x);
                best.insert(place, (x, token as u32));
            }
        }
        let largest = maximum(x);
        // −∞ less itself is no number.
        let exponentials = if largest == least { E::ZERO } else { sum([x], |[x]| (x - largest).exp()) };
        Self { best, largest, exponentials }
    }
}

/// Whether any of `x` is larger than `bound`; no NaN is.
#[inline(always)]
fn any_above<E: Real>(x: &[E], bound: E) -> bool {
    let mut any = false;
    for &x in x {
        any |= x > bound;
    }
    any
}

/// ln Σ exp of a row of such parts.
fn log_sum_exp<E: Real>(parts: &[Part<E>]) -> E {
    let largest: Vec<E> = parts.iter().map(|part| part.largest).collect();
    let largest = maximum(&largest);
    let mut total = E::ZERO;
    for part in parts {
        total += part.exponentials * (part.largest - largest).exp();
    }
    largest + total.ln()
}
