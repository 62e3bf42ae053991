use crate::common::{Matrix, Random, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded};
use qformer::device::Cpu;
use qformer::ops::similarity::{Pairing, SimilarityBackward, SimilarityForward, SimilarityOp};

/// Queries of `images` images, and texts.
struct Pairs {
    pairing: Pairing,
    images: usize,
    queries: Matrix,
    texts: Matrix,
}

impl Pairs {
    fn random(pairing: Pairing, [images, count, texts, width]: [usize; 4]) -> Self {
        let mut random = Random::new(1);
        let (queries, texts) = (random.matrix(images * count, width), random.matrix(texts, width));
        Self { pairing, images, queries, texts }
    }

    fn columns(&self) -> usize {
        if self.pairing == Pairing::All { self.texts.rows } else { 1 }
    }

    /// Products of every query of an image with the text of a column.
    fn scores(&self, image: usize, column: usize) -> Vec<f64> {
        let text = self.texts.row(if self.pairing == Pairing::All { column } else { image });
        let count = self.queries.rows / self.images;
        (image * count..(image + 1) * count)
            .map(|q| self.queries.row(q).iter().zip(text).map(|(q, t)| q * t).sum())
            .collect()
    }

    fn forward<D: TestDevice + SimilarityOp>(&self, queries: &Matrix, texts: &Matrix) -> (Matrix, Vec<u32>) {
        let mut similarity = Tensor::<D>::output(self.images, self.columns());
        let nobody = vec![u32::MAX; self.images * self.columns()];
        let mut winner = Tensor::<D, u32>::indices(self.images, self.columns(), &nobody);
        D::get()
            .similarity_forward(SimilarityForward {
                pairing: self.pairing,
                queries: Tensor::pitched(queries).view(),
                texts: Tensor::pitched(texts).view(),
                similarity: similarity.view_mut(),
                winner: Some(winner.view_mut()),
            })
            .unwrap();
        (similarity.read(), winner.read_indices())
    }

    fn backward<D: TestDevice + SimilarityOp>(&self, dsimilarity: &Matrix) -> [Matrix; 2] {
        let (_, winner) = self.forward::<D>(&self.queries, &self.texts);
        let mut dqueries = Tensor::<D>::output(self.queries.rows, self.queries.cols);
        let mut dtexts = Tensor::<D>::output(self.texts.rows, self.texts.cols);
        D::get()
            .similarity_backward(SimilarityBackward {
                pairing: self.pairing,
                queries: Tensor::pitched(&self.queries).view(),
                texts: Tensor::pitched(&self.texts).view(),
                winner: Tensor::<D, u32>::indices(self.images, self.columns(), &winner).view(),
                dsimilarity: Tensor::pitched(dsimilarity).view(),
                dqueries: dqueries.view_mut(),
                dtexts: dtexts.view_mut(),
            })
            .unwrap();
        [dqueries.read(), dtexts.read()]
    }
}

const SHAPES: [(Pairing, [usize; 4]); 6] = [
    (Pairing::All, [9, 32, 11, 256]),
    (Pairing::Matched, [9, 32, 9, 256]),
    (Pairing::All, [1, 1, 1, 1]),
    (Pairing::All, [2, 3, 5, 7]),
    (Pairing::All, [5, 7, 2, 3]),
    (Pairing::Matched, [3, 5, 3, 7]),
];

fn forward_matches<D: TestDevice + SimilarityOp>() {
    for (pairing, shape) in SHAPES {
        let pairs = Pairs::random(pairing, shape);
        let (similarity, winner) = pairs.forward::<D>(&pairs.queries, &pairs.texts);
        let largest = |scores: Vec<f64>| scores.into_iter().reduce(f64::max).unwrap();
        let want = Matrix::from_fn(pairs.images, pairs.columns(), |i, t| largest(pairs.scores(i, t)));
        assert_rounded::<D>("similarity", &similarity, &want);
        let won = Matrix::from_fn(want.rows, want.cols, |i, t| {
            pairs.scores(i, t)[winner[i * want.cols + t] as usize]
        });
        assert_rounded::<D>("the winner's", &won, &want);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
}

#[test]
fn the_first_of_equals_wins() {
    let mut pairs = Pairs::random(Pairing::All, [2, 4, 3, 5]);
    pairs.queries = Matrix::from_fn(8, 5, |_, c| c as f64 + 1.0);
    assert_eq!(pairs.forward::<Cpu<f32>>(&pairs.queries, &pairs.texts).1, [0; 6]);
}

#[test]
fn backward_matches_finite_differences() {
    for (pairing, shape) in &SHAPES[2..] {
        let pairs = Pairs::random(*pairing, *shape);
        let dsimilarity = Random::new(2).matrix(pairs.images, pairs.columns());
        let [dqueries, dtexts] = pairs.backward::<Cpu<f64>>(&dsimilarity);
        assert_gradient("dqueries", &pairs.queries, &dqueries, |queries| {
            pairs.forward::<Cpu<f64>>(queries, &pairs.texts).0.dot(&dsimilarity)
        });
        assert_gradient("dtexts", &pairs.texts, &dtexts, |texts| {
            pairs.forward::<Cpu<f64>>(&pairs.queries, texts).0.dot(&dsimilarity)
        });
    }
}

#[test]
fn nan_in_any_query_reaches_the_output() {
    for pairing in [Pairing::All, Pairing::Matched] {
        for query in 0..4 {
            let mut pairs = Pairs::random(pairing, [3, 4, 3, 6]);
            pairs.queries.set(4 + query, 2, f64::NAN);
            let (similarity, winner) = pairs.forward::<Cpu<f32>>(&pairs.queries, &pairs.texts);
            let columns = pairs.columns();
            assert!(
                (0..3).all(|i| similarity.row(i).iter().all(|s| s.is_nan() == (i == 1))),
                "query {query}"
            );
            assert!(winner[columns..2 * columns].iter().all(|&w| w as usize == query));
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for (pairing, shape) in &SHAPES[..2] {
        let pairs = Pairs::random(*pairing, *shape);
        let dsimilarity = Random::new(3).matrix(pairs.images, pairs.columns());
        assert_independent_of_threads(|| {
            let mut all = vec![pairs.forward::<Cpu<f32>>(&pairs.queries, &pairs.texts).0];
            all.extend(pairs.backward::<Cpu<f32>>(&dsimilarity));
            all
        });
    }
}
