use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::similarity::{Pairing, SimilarityBackward, SimilarityForward, SimilarityOp};

/// Queries of `images` images, and texts.
struct Pairs {
    pairing: Pairing,
    images: usize,
    queries: Matrix,
    texts: Matrix,
}

impl Pairs {
    /// Numbers that `D` holds.
    fn random<D: TestDevice>(pairing: Pairing, [images, count, texts, width]: [usize; 4]) -> Self {
        let mut random = Random::new(1);
        let mut matrix = |rows| rounded::<D>(&random.matrix(rows, width));
        Self { pairing, images, queries: matrix(images * count), texts: matrix(texts) }
    }

    /// Whole numbers from -2 to 2: products are exact, and many are equal.
    fn whole(pairing: Pairing, [images, count, texts, width]: [usize; 4]) -> Self {
        let mut random = Random::new(1);
        let mut matrix = |rows| Matrix::from_fn(rows, width, |_, _| random.below(5) as f64 - 2.0);
        Self { pairing, images, queries: matrix(images * count), texts: matrix(texts) }
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
        self.backward_from::<D>(&winner, dsimilarity)
    }

    fn backward_from<D: TestDevice + SimilarityOp>(
        &self,
        winner: &[u32],
        dsimilarity: &Matrix,
    ) -> [Matrix; 2] {
        let mut dqueries = Tensor::<D>::output(self.queries.rows, self.queries.cols);
        let mut dtexts = Tensor::<D>::output(self.texts.rows, self.texts.cols);
        D::get()
            .similarity_backward(SimilarityBackward {
                pairing: self.pairing,
                queries: Tensor::pitched(&self.queries).view(),
                texts: Tensor::pitched(&self.texts).view(),
                winner: Tensor::<D, u32>::indices(self.images, self.columns(), winner).view(),
                dsimilarity: Tensor::pitched(dsimilarity).view(),
                dqueries: dqueries.view_mut(),
                dtexts: dtexts.view_mut(),
            })
            .unwrap();
        [dqueries.read(), dtexts.read()]
    }
}

/// Images, queries of each, texts, width: the model's, more than a tile of texts, more than 32 queries, one,
/// primes.
const SHAPES: [(Pairing, [usize; 4]); 9] = [
    (Pairing::All, [9, 32, 11, 256]),
    (Pairing::Matched, [9, 32, 9, 256]),
    (Pairing::All, [5, 32, 130, 64]),
    (Pairing::All, [2, 71, 19, 24]),
    (Pairing::Matched, [3, 71, 3, 13]),
    (Pairing::All, [1, 1, 1, 1]),
    (Pairing::All, [2, 3, 5, 7]),
    (Pairing::All, [5, 7, 2, 3]),
    (Pairing::Matched, [3, 5, 3, 7]),
];

fn forward_matches<D: TestDevice + SimilarityOp>() {
    for (pairing, shape) in SHAPES {
        let pairs = Pairs::random::<D>(pairing, shape);
        let (similarity, winner) = pairs.forward::<D>(&pairs.queries, &pairs.texts);
        let largest = |scores: Vec<f64>| scores.into_iter().reduce(f64::max).unwrap();
        let want = Matrix::from_fn(pairs.images, pairs.columns(), |i, t| largest(pairs.scores(i, t)));
        assert_rounded::<D>("similarity", &similarity, &want);
        let won = Matrix::from_fn(want.rows, want.cols, |i, t| {
            pairs.scores(i, t)[winner[i * want.cols + t] as usize]
        });
        // Of queries that are as good as equal either may win.
        assert_close("the winner's", &won, &want, tolerance::<f32>());
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

#[test]
fn whole_numbers_have_exact_similarities_winners_and_gradients() {
    for (pairing, shape) in SHAPES {
        let pairs = Pairs::whole(pairing, shape);
        let (want, winner) = pairs.forward::<Cpu<f64>>(&pairs.queries, &pairs.texts);
        let (got, won) = pairs.forward::<Cuda>(&pairs.queries, &pairs.texts);
        assert_eq!(got, rounded::<Cuda>(&want), "{pairing:?} {shape:?}");
        assert_eq!(won, winner, "{pairing:?} {shape:?}");
        let mut random = Random::new(5);
        let dsimilarity = Matrix::from_fn(pairs.images, pairs.columns(), |_, _| random.below(7) as f64 - 3.0);
        let want = pairs.backward::<Cpu<f64>>(&dsimilarity).map(|gradient| rounded::<Cuda>(&gradient));
        assert_eq!(pairs.backward::<Cuda>(&dsimilarity), want, "{pairing:?} {shape:?}");
    }
}

#[test]
fn the_gpu_has_the_same_gradients() {
    for (pairing, shape) in SHAPES {
        let pairs = Pairs::random::<Cuda>(pairing, shape);
        let dsimilarity = rounded::<Cuda>(&Random::new(4).matrix(pairs.images, pairs.columns()));
        let (similarity, winner) = pairs.forward::<Cuda>(&pairs.queries, &pairs.texts);
        let got = pairs.backward_from::<Cuda>(&winner, &dsimilarity);
        let want = pairs.backward_from::<Cpu<f64>>(&winner, &dsimilarity);
        assert_rounded::<Cuda>("dqueries", &got[0], &want[0]);
        assert_rounded::<Cuda>("dtexts", &got[1], &want[1]);
        let (again, winner_again) = pairs.forward::<Cuda>(&pairs.queries, &pairs.texts);
        assert_eq!((similarity.bits(), winner), (again.bits(), winner_again));
        assert_eq!(got.map(|g| g.bits()), pairs.backward::<Cuda>(&dsimilarity).map(|g| g.bits()));
    }
}

#[test]
fn the_first_of_equals_wins() {
    first_wins::<Cpu<f32>>();
    first_wins::<Cuda>();
}

fn first_wins<D: TestDevice + SimilarityOp>() {
    for (pairing, texts) in [(Pairing::All, 3), (Pairing::Matched, 2)] {
        let mut pairs = Pairs::random::<D>(pairing, [2, 40, texts, 5]);
        pairs.queries = Matrix::from_fn(80, 5, |_, c| c as f64 + 1.0);
        assert!(pairs.forward::<D>(&pairs.queries, &pairs.texts).1.iter().all(|&q| q == 0));
        // All are NaN: the first again.
        pairs.texts = Matrix::filled(texts, 5, f64::NAN);
        assert!(pairs.forward::<D>(&pairs.queries, &pairs.texts).1.iter().all(|&q| q == 0));
    }
}

#[test]
fn backward_matches_finite_differences() {
    for (pairing, shape) in &SHAPES[5..] {
        let pairs = Pairs::random::<Cpu<f64>>(*pairing, *shape);
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
    nan_reaches::<Cpu<f32>>();
    nan_reaches::<Cuda>();
}

fn nan_reaches<D: TestDevice + SimilarityOp>() {
    for pairing in [Pairing::All, Pairing::Matched] {
        for query in [0, 1, 8, 17, 34] {
            let mut pairs = Pairs::random::<D>(pairing, [3, 35, 3, 6]);
            pairs.queries.set(35 + query, 2, f64::NAN);
            let (similarity, winner) = pairs.forward::<D>(&pairs.queries, &pairs.texts);
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
        let pairs = Pairs::random::<Cpu<f64>>(*pairing, *shape);
        let dsimilarity = Random::new(3).matrix(pairs.images, pairs.columns());
        assert_independent_of_threads(|| {
            let mut all = vec![pairs.forward::<Cpu<f32>>(&pairs.queries, &pairs.texts).0];
            all.extend(pairs.backward::<Cpu<f32>>(&dsimilarity));
            all
        });
    }
}
