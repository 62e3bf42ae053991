//! A task is a few heads of one image. It holds whole rows of scores (N is small) and streams over
//! the image's width, so no intermediate is larger than [heads·Q, W].

use super::{AbsorbedAttention, AbsorbedAttentionForward};
use crate::device::{Cpu, Factor, Real, Write, product, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// Rows of scores that a task works on, or a multiple where one head has more.
const ROWS_PER_TASK: usize = 64;

/// Columns of a product that `gemm` computes without copying its factor first.
const COLUMNS_IN_PLACE: usize = 48;

/// Buffers of a task.
#[derive(Default)]
struct Scratch<E> {
    /// (q·Wₖ)ᵀ [W, rows]
    absorbed: Vec<E>,
    /// Scores, then probabilities, transposed: [N, rows]
    scores: Vec<E>,
    /// (p·x)ᵀ [W, rows]
    gathered: Vec<E>,
    /// Per row of scores: its maximum, then the inverse of its sum.
    row: Vec<E>,
}

impl<E: Real> AbsorbedAttention for Cpu<E> {
    fn absorbed_attention(&self, args: AbsorbedAttentionForward<'_, Self>) -> Result<()> {
        let [queries, tokens, head_width] = args.check();
        let AbsorbedAttentionForward {
            heads,
            scale,
            q,
            image,
            key_weight,
            value_weight,
            value_bias,
            images,
            out,
        } = args;
        let width = image.cols();
        let scale = E::of(scale);
        let heads_per_task = (ROWS_PER_TASK / queries).clamp(1, heads);
        let tasks_per_image = heads.div_ceil(heads_per_task);
        let bias = value_bias.row(0);
        let out = out.into_rows();
        (0..images * tasks_per_image).into_par_iter().for_each_init(Scratch::default, |scratch, task| {
            let (index, first_head) = (task / tasks_per_image, task % tasks_per_image * heads_per_task);
            let count = heads_per_task.min(heads - first_head);
            let (rows, first_query) = (count * queries, index * queries);
            let Scratch { absorbed, scores, gathered, row } = scratch;
            absorbed.resize(width * rows, E::ZERO);
            scores.resize(tokens * rows, E::ZERO);
            gathered.resize(width * rows, E::ZERO);
            for h in 0..count {
                let col = (first_head + h) * head_width;
                // SAFETY: the head's block lies within `absorbed`.
                unsafe {
                    let to = (absorbed.as_mut_ptr().add(h * queries), 1, rows);
                    let q = Factor::of(q, first_query, col);
                    product(
                        [queries, width, head_width],
                        q,
                        Factor::of(key_weight, col, 0),
                        Write::Replace,
                        to,
                    );
                }
            }
            let columns = |x: &[E]| Factor::rows(x, rows).transposed();
            for first in (0..tokens).step_by(COLUMNS_IN_PLACE) {
                let n = COLUMNS_IN_PLACE.min(tokens - first);
                let x = Factor::of(image, index * tokens + first, 0).transposed();
                // SAFETY: the columns of the product lie within `scores`.
                unsafe {
                    let to = (scores.as_mut_ptr().add(first * rows), 1, rows);
                    product([rows, n, width], columns(absorbed), x, Write::Replace, to);
                }
            }
            softmax_columns(scores, rows, scale, row);
            // SAFETY: `gathered` holds the whole product.
            unsafe {
                let x = Factor::of(image, index * tokens, 0);
                let to = (gathered.as_mut_ptr(), 1, rows);
                product([rows, width, tokens], columns(scores), x, Write::Replace, to);
            }
            for h in 0..count {
                let col = (first_head + h) * head_width;
                let a = columns(&gathered[h * queries..]);
                let b = Factor::of(value_weight, col, 0).transposed();
                let to = (out.at(first_query, col), out.pitch(), 1);
                // SAFETY: this head's columns of the image's rows belong to this task alone.
                unsafe { product([queries, head_width, width], a, b, Write::Replace, to) };
                for r in first_query..first_query + queries {
                    // SAFETY: as above.
                    let out = unsafe { std::slice::from_raw_parts_mut(out.at(r, col), head_width) };
                    out.iter_mut().zip(&bias[col..col + head_width]).for_each(|(o, &b)| *o += b);
                }
            }
        });
        Ok(())
    }
}

/// x = softmax(scale·x) down each of the `columns` columns of x.
fn softmax_columns<E: Real>(x: &mut [E], columns: usize, scale: E, column: &mut Vec<E>) {
    column.clear();
    column.extend_from_slice(&x[..columns]);
    vectorised(
        #[inline(always)]
        || {
            for row in x.chunks_exact(columns) {
                for (largest, &x) in column.iter_mut().zip(row) {
                    *largest = if *largest >= x { *largest } else { x };
                }
            }
            for row in x.chunks_exact_mut(columns) {
                for (x, &largest) in row.iter_mut().zip(&*column) {
                    *x = ((*x - largest) * scale).exp();
                }
            }
            column.fill(E::ZERO);
            for row in x.chunks_exact(columns) {
                for (total, &x) in column.iter_mut().zip(row) {
                    *total += x;
                }
            }
            column.iter_mut().for_each(|total| *total = E::ONE / *total);
            for row in x.chunks_exact_mut(columns) {
                for (x, &inverse) in row.iter_mut().zip(&*column) {
                    *x = *x * inverse;
                }
            }
        },
    );
}
