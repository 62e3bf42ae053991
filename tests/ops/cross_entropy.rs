use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::cross_entropy::{CrossEntropyBackward, CrossEntropyForward, CrossEntropyOp, IGNORED};

/// Rows and words: the model's, one of each, less than a vector, primes, whole vectors, and more rows than the block
/// that takes their mean has threads.
const SHAPES: [[usize; 2]; 6] = [[7, 30_523], [1, 1], [3, 5], [11, 2053], [2, 4096], [1031, 5]];
/// How far the logits of words are apart.
const SPREAD: f64 = 8.0;

struct Rows {
    smoothing: f64,
    logits: Matrix,
    labels: Vec<u32>,
}

#[derive(PartialEq)]
struct Output {
    lse: Matrix,
    loss: Matrix,
    predictions: Vec<u32>,
    correct: u32,
}

impl Rows {
    fn random<D: TestDevice>(smoothing: f64, [rows, words]: [usize; 2]) -> Self {
        let mut random = Random::new(1);
        let mut logits = random.matrix(rows, words);
        logits.values.iter_mut().for_each(|x| *x *= SPREAD);
        let labels = (0..rows).map(|_| random.below(words) as u32).collect();
        Self { smoothing, logits: rounded::<D>(&logits), labels }
    }

    fn words(&self) -> usize {
        self.logits.cols
    }

    /// −ln p of every word of a row.
    fn surprisals(&self, row: usize) -> Vec<f64> {
        let x = self.logits.row(row);
        let lse = x.iter().map(|x| x.exp()).sum::<f64>().ln();
        x.iter().map(|x| lse - x).collect()
    }

    /// PyTorch's definition, word for word.
    fn plain(&self) -> Output {
        let rows = self.logits.rows;
        let row_loss = |r: usize| {
            let surprisals = self.surprisals(r);
            let mean = surprisals.iter().sum::<f64>() / self.words() as f64;
            (1.0 - self.smoothing) * surprisals[self.labels[r] as usize] + self.smoothing * mean
        };
        let loss = (0..rows).map(row_loss).sum::<f64>() / rows as f64;
        let prediction = |r: usize| {
            let x = self.logits.row(r);
            let largest = x.iter().copied().fold(f64::MIN, f64::max);
            x.iter().position(|&x| x == largest).unwrap() as u32
        };
        let predictions: Vec<u32> = (0..rows).map(prediction).collect();
        Output {
            lse: Matrix::from_fn(1, rows, |_, r| self.surprisals(r)[0] + self.logits.at(r, 0)),
            loss: Matrix::filled(1, 1, loss),
            correct: predictions.iter().zip(&self.labels).filter(|(p, l)| p == l).count() as u32,
            predictions,
        }
    }

    fn plain_gradient(&self, weight: f64) -> Matrix {
        let rows = self.logits.rows;
        let surprisals: Vec<Vec<f64>> = (0..rows).map(|r| self.surprisals(r)).collect();
        Matrix::from_fn(rows, self.words(), |r, c| {
            let label = if self.labels[r] as usize == c { 1.0 - self.smoothing } else { 0.0 };
            let p = (-surprisals[r][c]).exp();
            weight / rows as f64 * (p - label - self.smoothing / self.words() as f64)
        })
    }

    fn forward<D: TestDevice + CrossEntropyOp>(&self) -> Output {
        self.forward_of::<D>(Tensor::pitched(&self.logits))
    }

    fn forward_of<D: TestDevice + CrossEntropyOp>(&self, mut logits: Tensor<D>) -> Output {
        let rows = self.logits.rows;
        let [mut lse, mut row_losses] = [(); 2].map(|()| Tensor::<D, D::Stat>::output(1, rows));
        let mut loss = Tensor::<D, D::Stat>::output(1, 1);
        let mut predictions = Tensor::<D, u32>::indices(1, rows, &vec![u32::MAX; rows]);
        let mut correct = Tensor::<D, u32>::indices(1, 1, &[u32::MAX]);
        D::get()
            .cross_entropy_forward(CrossEntropyForward {
                smoothing: self.smoothing,
                logits: logits.view(),
                labels: Tensor::<D, u32>::indices(1, rows, &self.labels).view(),
                lse: lse.view_mut(),
                row_losses: row_losses.view_mut(),
                predictions: predictions.view_mut(),
                loss: loss.view_mut(),
                correct: correct.view_mut(),
            })
            .unwrap();
        Output {
            lse: lse.read(),
            loss: loss.read(),
            predictions: predictions.read_indices(),
            correct: correct.read_indices()[0],
        }
    }

    fn backward<D: TestDevice + CrossEntropyOp>(&self, weight: f64) -> Matrix {
        let rows = self.logits.rows;
        let lse = self.forward::<D>().lse;
        let mut logits = Tensor::<D>::pitched(&self.logits);
        D::get()
            .cross_entropy_backward(CrossEntropyBackward {
                smoothing: self.smoothing,
                weight,
                labels: Tensor::<D, u32>::indices(1, rows, &self.labels).view(),
                lse: Tensor::<D, D::Stat>::pitched(&lse).view(),
                logits: logits.view_mut(),
            })
            .unwrap();
        logits.read()
    }
}

fn forward_matches<D: TestDevice + CrossEntropyOp>(tolerance: f64) {
    for shape in SHAPES {
        for smoothing in [0.0, 0.1] {
            let rows = Rows::random::<D>(smoothing, shape);
            let (got, want) = (rows.forward::<D>(), rows.plain());
            assert_close("lse", &got.lse, &want.lse, tolerance);
            assert_eq!(got.predictions, want.predictions);
            assert_eq!(got.correct, want.correct);
            if shape[1] > 1 {
                assert_close("loss", &got.loss, &want.loss, tolerance);
            } else {
                assert!(got.loss.values[0].abs() <= tolerance, "one word is certain");
            }
        }
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>(tolerance::<f64>());
    forward_matches::<Cpu<f32>>(tolerance::<f32>());
    forward_matches::<Cuda>(tolerance::<f32>());
}

#[test]
fn smoothing_sets_a_floor() {
    // Logits whose softmax is the targets, over the model's vocabulary.
    let words = 30_523;
    let at_all = 0.1 / words as f64;
    let (labels, target) = (vec![17, 30_522], 0.9 + at_all);
    let logit = |r: usize, word: usize| if labels[r] as usize == word { (target / at_all).ln() } else { 0.0 };
    let rows = Rows { smoothing: 0.1, logits: Matrix::from_fn(2, words, logit), labels: labels.clone() };
    let floor = -target * target.ln() - (1.0 - target) * at_all.ln();
    assert!((floor - 1.3577).abs() < 5e-5, "{floor}");
    // Sums of 30523 terms in double precision.
    assert!((rows.forward::<Cpu<f64>>().loss.at(0, 0) - floor).abs() < 1e-11);
    // The gradient is 0 there; a label's is 0.5 where no word is likelier than another.
    assert!(rows.backward::<Cpu<f64>>(1.0).values.iter().all(|d| d.abs() < 1e-11));
}

#[test]
fn backward_matches_finite_differences() {
    for shape in [[3, 7], [1, 2], [4, 33]] {
        for smoothing in [0.0, 0.3] {
            let rows = Rows {
                logits: Random::new(2).matrix(shape[0], shape[1]),
                ..Rows::random::<Cpu<f64>>(smoothing, shape)
            };
            assert_gradient("logits", &rows.logits, &rows.backward::<Cpu<f64>>(0.7), |logits| {
                let moved = Rows { smoothing, logits: logits.clone(), labels: rows.labels.clone() };
                0.7 * moved.forward::<Cpu<f64>>().loss.values[0]
            });
        }
    }
}

fn backward_matches<D: TestDevice + CrossEntropyOp>() {
    for shape in SHAPES.into_iter().filter(|shape| shape[1] > 1) {
        for smoothing in [0.0, 0.1] {
            let rows = Rows::random::<D>(smoothing, shape);
            assert_rounded::<D>("logits", &rows.backward::<D>(2.0), &rows.plain_gradient(2.0));
        }
    }
}

#[test]
fn backward_matches_a_plain_computation() {
    backward_matches::<Cpu<f64>>();
    backward_matches::<Cpu<f32>>();
    backward_matches::<Cuda>();
}

fn even_logits_are_exact<D: TestDevice + CrossEntropyOp>() {
    for words in [8, 4096] {
        let labels = (0..4).map(|r| r * (words as u32 - 1) / 3).collect();
        let rows = Rows { smoothing: 0.5, logits: Matrix::filled(4, words, 3.0), labels };
        // Probabilities are powers of two, but for the rounding of the log-sum-exp, of which bf16 keeps nothing;
        // so are weights, targets and their differences.
        let gradient = Matrix::from_fn(4, words, |r, word| {
            let label = if rows.labels[r] as usize == word { 0.5 } else { 0.0 };
            2.0 / 4.0 * (0.5 / words as f64 - label)
        });
        assert_eq!(rounded::<Cuda>(&rows.backward::<D>(2.0)), rounded::<Cuda>(&gradient));
    }
}

#[test]
fn even_logits_of_a_power_of_two_of_words_have_exact_gradients() {
    even_logits_are_exact::<Cpu<f64>>();
    even_logits_are_exact::<Cpu<f32>>();
    even_logits_are_exact::<Cuda>();
}

fn takes_any_pitch<D: TestDevice + CrossEntropyOp>() {
    let rows = Rows::random::<D>(0.1, [5, 2053]);
    // Rows at addresses of every remainder, with nothing between them.
    let (got, want) = (rows.forward_of::<D>(Tensor::rows(&rows.logits)), rows.plain());
    assert_close("lse", &got.lse, &want.lse, tolerance::<f32>());
    assert_close("loss", &got.loss, &want.loss, tolerance::<f32>());
    assert_eq!(got.predictions, want.predictions);
}

#[test]
fn rows_may_start_anywhere() {
    takes_any_pitch::<Cpu<f32>>();
    takes_any_pitch::<Cuda>();
}

fn predicts_the_first_of_equals<D: TestDevice + CrossEntropyOp>() {
    // Places of the largest logit, of which the first is the label: within a thread, a warp, and apart.
    let places: [&[u32]; 5] = [&[0, 1], &[9, 10, 2052], &[7, 2047], &[255, 1024], &[2051, 2052]];
    let mut logits = Matrix::filled(places.len(), 2053, 1.0);
    for (r, places) in places.iter().enumerate() {
        places.iter().for_each(|&place| logits.set(r, place as usize, 4.0));
    }
    let labels: Vec<u32> = places.iter().map(|places| places[0]).collect();
    let output = Rows { smoothing: 0.0, logits, labels: labels.clone() }.forward::<D>();
    assert_eq!((output.predictions, output.correct), (labels, 5));
}

#[test]
fn the_first_of_equal_logits_is_predicted() {
    predicts_the_first_of_equals::<Cpu<f64>>();
    predicts_the_first_of_equals::<Cpu<f32>>();
    predicts_the_first_of_equals::<Cuda>();
}

fn ignores_rows<D: TestDevice + CrossEntropyOp>() {
    let all = Rows::random::<D>(0.1, [5, 2053]);
    let counted = [0, 2, 3];
    let kept = Rows {
        logits: Matrix::from_fn(3, 2053, |r, c| all.logits.at(counted[r], c)),
        labels: counted.map(|r| all.labels[r]).to_vec(),
        ..all
    };
    let label = |r: usize| if counted.contains(&r) { all.labels[r] } else { IGNORED };
    let filled = Rows { labels: (0..5).map(label).collect(), ..all };
    let (got, want) = (filled.forward::<D>(), kept.forward::<D>());
    // The same terms in the same order, with zeros between them.
    assert!(got.loss == want.loss && got.correct == want.correct);
    let (got, want) = (filled.backward::<D>(2.0), kept.backward::<D>(2.0));
    counted.iter().enumerate().for_each(|(r, &row)| assert_eq!(got.row(row), want.row(r)));
    assert!([1, 4].iter().all(|&r| got.row(r).iter().all(|&d| d == 0.0)));
}

#[test]
fn ignored_rows_count_for_nothing() {
    ignores_rows::<Cpu<f64>>();
    ignores_rows::<Cpu<f32>>();
    ignores_rows::<Cuda>();
}

fn is_stable<D: TestDevice + CrossEntropyOp>() {
    let mut rows = Rows::random::<D>(0.1, [2, 601]);
    rows.logits.values.iter_mut().for_each(|x| *x = D::round(*x * 1000.0));
    let shift = rows.logits.values.iter().copied().fold(f64::MIN, f64::max);
    let shifted = Rows {
        logits: Matrix::from_fn(2, 601, |r, c| rows.logits.at(r, c) - shift),
        labels: rows.labels.clone(),
        ..rows
    };
    // Here e^x overflows, but after subtraction of a common number, which changes no loss, does not.
    let want = shifted.plain();
    assert_close("loss", &rows.forward::<D>().loss, &want.loss, tolerance::<f32>());
}

#[test]
fn large_logits_do_not_overflow() {
    is_stable::<Cpu<f64>>();
    is_stable::<Cpu<f32>>();
    is_stable::<Cuda>();
}

fn shows_nan<D: TestDevice + CrossEntropyOp>() {
    for place in [0, 8, 600] {
        let mut rows = Rows::random::<D>(0.0, [3, 601]);
        rows.logits.set(1, place, f64::NAN);
        let output = rows.forward::<D>();
        assert!(output.loss.values[0].is_nan());
        let nan: Vec<bool> = output.lse.values.iter().map(|x| x.is_nan()).collect();
        assert_eq!(nan, [false, true, false]);
    }
}

#[test]
fn nan_reaches_the_loss() {
    shows_nan::<Cpu<f64>>();
    shows_nan::<Cpu<f32>>();
    shows_nan::<Cuda>();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let rows = Rows::random::<Cpu<f32>>(0.1, [37, 211]);
    assert_independent_of_threads(|| {
        let Output { lse, loss, .. } = rows.forward::<Cpu<f32>>();
        vec![lse, loss, rows.backward::<Cpu<f32>>(1.0)]
    });
}

#[test]
fn two_runs_on_the_gpu_are_equal() {
    // More rows than the threads of the block that takes their mean.
    let rows = Rows::random::<Cuda>(0.1, [1031, 67]);
    assert!(rows.forward::<Cuda>() == rows.forward::<Cuda>());
    assert!(rows.backward::<Cuda>(1.0).bits() == rows.backward::<Cuda>(1.0).bits());
}
