//! Batches whose similarities are all equal: their gradients are known exactly.

use super::case::Case;
use crate::common::{Matrix, Random};
use crate::device::{TestDevice, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::contrastive::{ContrastiveGradient, ContrastiveOp};

/// All similarities are 1, by the first channel, and each has the same part in every softmax.
fn even(gradient: ContrastiveGradient, [images, count, texts, width]: [usize; 4]) -> (Case, [Matrix; 2]) {
    let mut random = Random::new(6);
    let (of_queries, of_texts) = (random.whole(images * count, width, 2), random.whole(texts, width, 2));
    let winner = |i: usize| i * count + (5 * i + 1) % count;
    // The channels of the one side are zero on the other.
    let queries = Matrix::from_fn(images * count, width, |r, e| match e {
        0 => {
            if r == winner(r / count) {
                1.0
            } else {
                -1.0
            }
        }
        e if e % 2 == 0 => of_queries.at(r, e),
        _ => 0.0,
    });
    let texts_of = Matrix::from_fn(texts, width, |t, e| match e {
        0 => 1.0,
        e if e % 2 == 1 => of_texts.at(t, e),
        _ => 0.0,
    });
    let case = Case {
        queries,
        texts: texts_of,
        temperature: 1.0,
        smoothing: 0.5,
        image_ids: (0..images as u32).collect(),
        text_ids: (0..texts as u32).map(|t| t % images as u32).collect(),
    };
    let dlogit = |i: usize, t: usize, lines: usize, n: usize, positives: usize| {
        let target = if t % images == i { 0.5 / positives as f64 } else { 0.0 };
        (0.5 / n as f64 - target) / lines as f64
    };
    let (mut dqueries, mut dtexts) =
        (Matrix::filled(images * count, width, 0.0), Matrix::filled(texts, width, 0.0));
    for i in 0..images {
        for t in 0..texts {
            let (row, column) = (dlogit(i, t, images, texts, texts / images), dlogit(i, t, texts, images, 1));
            let [of_query, of_text] = match gradient {
                ContrastiveGradient::OneSided => [row, column],
                ContrastiveGradient::Full => [row + column; 2],
            };
            for e in 0..width {
                let q = winner(i);
                dqueries.set(q, e, dqueries.at(q, e) + of_query * case.texts.at(t, e));
                dtexts.set(t, e, dtexts.at(t, e) + of_text * case.queries.at(q, e));
            }
        }
    }
    (case, [dqueries, dtexts])
}

fn even_gradients_are_exact<D: TestDevice + ContrastiveOp>() {
    for gradient in [ContrastiveGradient::OneSided, ContrastiveGradient::Full] {
        for shape in [[8, 32, 8, 256], [4, 3, 8, 13], [4, 64, 4, 24], [2, 5, 2, 264]] {
            let (case, [dqueries, dtexts]) = even(gradient, shape);
            let got = case.backward::<D>(gradient, 2.0, 0.0);
            for (got, want) in got.iter().zip([&dqueries, &dtexts]) {
                // Every number has eight bits, as bf16 has.
                assert_eq!(*want, rounded::<Cuda>(want), "{shape:?}");
                assert_eq!(got.settled(), *want, "{shape:?}");
            }
        }
    }
}

#[test]
fn even_similarities_have_exact_gradients() {
    even_gradients_are_exact::<Cpu<f64>>();
    even_gradients_are_exact::<Cpu<f32>>();
    even_gradients_are_exact::<Cuda>();
}
