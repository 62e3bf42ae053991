//! An image a task; in the backward pass an image a task for the queries, a text a task for the texts.

use super::{Pairing, SimilarityBackward, SimilarityForward, SimilarityOp};
use crate::device::{Cpu, Factor, Real, Write, product};
use crate::error::Result;
use rayon::prelude::*;

impl<E: Real> SimilarityOp for Cpu<E> {
    fn similarity_forward(&self, args: SimilarityForward<'_, Self>) -> Result<()> {
        let count = args.check();
        let SimilarityForward { pairing, queries, texts, similarity, winner } = args;
        let (images, width) = (similarity.rows(), queries.cols());
        let (similarity, winner) = (similarity.into_rows(), winner.map(|w| w.into_rows()));
        (0..images).into_par_iter().for_each_init(Vec::new, |scores: &mut Vec<E>, image| {
            let text = if pairing == Pairing::All { 0..texts.rows() } else { image..image + 1 };
            let n = text.len();
            scores.resize(count * n, E::ZERO);
            let a = Factor::of(queries, image * count, 0);
            let b = Factor::of(texts, text.start, 0).transposed();
            // SAFETY: `scores` is this task's own and holds the whole product.
            unsafe { product([count, n, width], a, b, Write::Replace, (scores.as_mut_ptr(), n, 1)) };
            // SAFETY: one task a row.
            let best = unsafe { similarity.row(image) };
            best.copy_from_slice(&scores[..n]);
            // SAFETY: one task a row.
            let mut winner = winner.as_ref().map(|w| unsafe { w.row(image) });
            if let Some(winner) = &mut winner {
                winner.fill(0);
            }
            for q in 1..count {
                for (t, &score) in scores[q * n..(q + 1) * n].iter().enumerate() {
                    // A NaN must not be passed over, and nothing is larger than one.
                    if score > best[t] || (score.is_nan() && !best[t].is_nan()) {
                        best[t] = score;
                        if let Some(winner) = &mut winner {
                            winner[t] = q as u32;
                        }
                    }
                }
            }
        });
        Ok(())
    }

    fn similarity_backward(&self, args: SimilarityBackward<'_, Self>) -> Result<()> {
        let count = args.check();
        let SimilarityBackward { pairing, queries, texts, winner, dsimilarity, dqueries, dtexts } = args;
        let images = dsimilarity.rows();
        let (dqueries, dtexts) = (dqueries.into_rows(), dtexts.into_rows());
        // The text that a column of the similarities stands for.
        let text_of = |image: usize, column: usize| if pairing == Pairing::All { column } else { image };
        (0..images).into_par_iter().for_each(|image| {
            for q in 0..count {
                // SAFETY: an image's query rows belong to its task alone.
                unsafe { dqueries.row(image * count + q) }.fill(E::ZERO);
            }
            for (column, (&d, &q)) in dsimilarity.row(image).iter().zip(winner.row(image)).enumerate() {
                assert!((q as usize) < count, "winner {q} of {count} queries");
                // SAFETY: as above.
                let dquery = unsafe { dqueries.row(image * count + q as usize) };
                let text = texts.row(text_of(image, column));
                dquery.iter_mut().zip(text).for_each(|(dq, &t)| *dq += d * t);
            }
        });
        (0..texts.rows()).into_par_iter().for_each(|text| {
            // SAFETY: one task a row.
            let dtext = unsafe { dtexts.row(text) };
            dtext.fill(E::ZERO);
            let (rows, column) =
                if pairing == Pairing::All { (0..images, text) } else { (text..text + 1, 0) };
            for image in rows {
                let (d, q) = (dsimilarity.row(image)[column], winner.row(image)[column] as usize);
                let query = queries.row(image * count + q);
                dtext.iter_mut().zip(query).for_each(|(dt, &x)| *dt += d * x);
            }
        });
        Ok(())
    }
}
