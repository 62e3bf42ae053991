//! Lookups a row a task; scattered sums a column block a task, so that their order is fixed.

use super::{EmbeddingBackward, EmbeddingForward, EmbeddingOp};
use crate::device::{Cpu, M, Real, V};
use crate::error::Result;
use rayon::prelude::*;

/// Columns of a table that a task adds to.
const STRIPE: usize = 64;

impl<E: Real> EmbeddingOp for Cpu<E> {
    fn embedding_forward(&self, args: EmbeddingForward<'_, Self>) -> Result<()> {
        let EmbeddingForward { ids, table, positions, y } = args;
        assert_eq!((y.rows(), y.cols()), (ids.cols(), table.cols()), "y [count, width]");
        assert!(positions.is_none_or(|(p, t)| p.cols() == ids.cols() && t.cols() == table.cols()));
        let y = y.into_rows();
        ids.row(0).par_iter().enumerate().with_min_len(16).for_each(|(i, &id)| {
            // SAFETY: one task a row.
            let y = unsafe { y.row(i) };
            table.read_row(id as usize, 0, y);
            if let Some((places, positions)) = positions {
                for (y, &p) in y.iter_mut().zip(positions.row(places.row(0)[i] as usize)) {
                    *y += p;
                }
            }
        });
        Ok(())
    }

    fn embedding_backward(&self, args: EmbeddingBackward<'_, Self>) -> Result<()> {
        let EmbeddingBackward { ids, frozen, dy, dtable, dpositions } = args;
        scatter_add(ids.row(0), frozen, dy, dtable);
        if let Some((places, dpositions)) = dpositions {
            scatter_add(places.row(0), None, dy, dpositions);
        }
        Ok(())
    }
}

fn scatter_add<E: Real>(ids: &[u32], frozen: Option<u32>, dy: V<'_, Cpu<E>>, dtable: M<'_, Cpu<E>>) {
    assert_eq!((dy.rows(), dy.cols()), (ids.len(), dtable.cols()), "dy [count, width]");
    let width = dy.cols();
    let dtable = dtable.into_rows();
    (0..width.div_ceil(STRIPE)).into_par_iter().for_each(|stripe| {
        let first = stripe * STRIPE;
        let n = STRIPE.min(width - first);
        for (i, &id) in ids.iter().enumerate().filter(|&(_, &id)| Some(id) != frozen) {
            // SAFETY: these columns of the table belong to this task alone.
            let row = unsafe { std::slice::from_raw_parts_mut(dtable.at(id as usize, first), n) };
            for (d, &dy) in row.iter_mut().zip(&dy.row(i)[first..first + n]) {
                *d += dy;
            }
        }
    });
}
