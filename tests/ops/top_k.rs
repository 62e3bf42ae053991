use crate::common::{Matrix, Random, assert_close, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::top_k::{TopK, TopKOp};

/// Rows, words and k: language models', one of each, all words, primes, whole vectors, and the longest list of words that
/// are few, or that are more than the parts of a row have at first.
const SHAPES: [([usize; 2], usize); 8] = [
    ([2, 50_272], 10),
    ([1, 1], 1),
    ([3, 5], 5),
    ([11, 2053], 3),
    ([4, 2048], 1),
    ([2, 129], 128),
    ([5, 8193], 16),
    ([1, 50_272], 128),
];

struct Rows {
    logits: Matrix,
    k: usize,
    /// Ids [rows, m].
    asked: Vec<u32>,
}

#[derive(Debug, PartialEq)]
struct Output {
    lse: Matrix,
    ids: Vec<u32>,
    values: Matrix,
    asked: Matrix,
}

impl Rows {
    /// Logits that are far apart, and three that are asked for.
    fn random<D: TestDevice>([rows, words]: [usize; 2], k: usize) -> Self {
        let mut random = Random::new(1);
        let mut logits = random.matrix(rows, words);
        logits.values.iter_mut().for_each(|x| *x *= 8.0);
        let asked = (0..3 * rows).map(|_| random.below(words) as u32).collect();
        Self { logits: rounded::<D>(&logits), k, asked }
    }

    /// Logits of which many are equal.
    fn coarse([rows, words]: [usize; 2], k: usize) -> Self {
        Self { logits: Random::new(2).whole(rows, words, 3), k, asked: Vec::new() }
    }

    /// A sort of all logits.
    fn plain(&self) -> Output {
        let Matrix { rows, .. } = self.logits;
        let best: Vec<Vec<u32>> = (0..rows)
            .map(|r| {
                let x = self.logits.row(r);
                let mut ids: Vec<u32> = (0..x.len() as u32).collect();
                // Stable.
                ids.sort_by(|&a, &b| x[b as usize].total_cmp(&x[a as usize]));
                ids[..self.k].to_vec()
            })
            .collect();
        let at = |r: usize, id: u32| self.logits.at(r, id as usize);
        let m = self.asked.len() / rows;
        Output {
            lse: Matrix::from_fn(1, rows, |_, r| {
                self.logits.row(r).iter().map(|x| x.exp()).sum::<f64>().ln()
            }),
            values: Matrix::from_fn(rows, self.k, |r, i| at(r, best[r][i])),
            asked: Matrix::from_fn(rows, m, |r, i| at(r, self.asked[r * m + i])),
            ids: best.concat(),
        }
    }

    fn found<D: TestDevice + TopKOp>(&self) -> Output {
        self.found_in::<D>(Tensor::pitched(&self.logits))
    }

    fn found_in<D: TestDevice + TopKOp>(&self, mut logits: Tensor<D>) -> Output {
        let (rows, k) = (self.logits.rows, self.k);
        let m = self.asked.len() / rows;
        let mut lse = Tensor::<D, D::Stat>::output(1, rows);
        let mut ids = Tensor::<D, u32>::indices(rows, k, &vec![u32::MAX; rows * k]);
        let mut values = Tensor::<D, D::Stat>::output(rows, k);
        let mut asked_ids = Tensor::<D, u32>::indices(rows, m, &self.asked);
        let mut asked_values = Tensor::<D, D::Stat>::output(rows, m);
        D::get()
            .top_k(TopK {
                logits: logits.view(),
                asked: (m > 0).then(|| (asked_ids.view(), asked_values.view_mut())),
                lse: lse.view_mut(),
                ids: ids.view_mut(),
                values: values.view_mut(),
            })
            .unwrap();
        Output { lse: lse.read(), ids: ids.read_indices(), values: values.read(), asked: asked_values.read() }
    }

    #[track_caller]
    fn assert_found(&self, got: &Output, lse_tolerance: f64) {
        let want = self.plain();
        let shape = (self.logits.rows, self.logits.cols, self.k);
        assert_eq!(got.ids, want.ids, "{shape:?}");
        assert_eq!(got.values, want.values, "{shape:?}");
        assert_eq!(got.asked, want.asked, "{shape:?}");
        assert_close("lse", &got.lse, &want.lse, lse_tolerance);
    }
}

fn finds<D: TestDevice + TopKOp>(lse_tolerance: f64) {
    for (shape, k) in SHAPES {
        let rows = Rows::random::<D>(shape, k);
        rows.assert_found(&rows.found::<D>(), lse_tolerance);
    }
}

#[test]
fn the_largest_logits_are_those_of_a_sort() {
    finds::<Cpu<f64>>(tolerance::<f64>());
    finds::<Cpu<f32>>(tolerance::<f32>());
    finds::<Cuda>(tolerance::<f32>());
}

fn orders_equals<D: TestDevice + TopKOp>() {
    for (shape, k) in SHAPES {
        let rows = Rows::coarse(shape, k);
        assert_eq!(rows.found::<D>().ids, rows.plain().ids, "{shape:?}");
    }
    // −0 is 0.
    let signs = Matrix::from_fn(1, 40, |_, c| if c % 3 == 0 { -0.0 } else { 0.0 });
    let found = Rows { logits: signs, k: 12, asked: Vec::new() }.found::<D>();
    assert_eq!(found.ids, Vec::from_iter(0..12));
    assert_eq!(found.values, Matrix::filled(1, 12, 0.0));
}

#[test]
fn of_equal_logits_the_smaller_id_comes_first() {
    orders_equals::<Cpu<f64>>();
    orders_equals::<Cpu<f32>>();
    orders_equals::<Cuda>();
}

fn is_sorted_whatever_the_order<D: TestDevice + TopKOp>() {
    // Every word larger than those before it, and the other way round; multiples of 2⁻² below 2⁶, exact in bf16.
    for sign in [1.0, -1.0] {
        let logits = Matrix::from_fn(1, 9000, |_, c| sign * (c / 64) as f64 / 4.0);
        let rows = Rows { logits, k: 100, asked: vec![0, 8999] };
        rows.assert_found(&rows.found::<D>(), tolerance::<f32>());
    }
}

#[test]
fn logits_in_order_are_no_special_case() {
    is_sorted_whatever_the_order::<Cpu<f32>>();
    is_sorted_whatever_the_order::<Cuda>();
}

fn takes_any_pitch<D: TestDevice + TopKOp>() {
    // Rows at addresses of every remainder, with nothing between them.
    let rows = Rows::random::<D>([9, 2053], 7);
    rows.assert_found(&rows.found_in::<D>(Tensor::rows(&rows.logits)), tolerance::<f32>());
}

#[test]
fn rows_may_start_anywhere() {
    takes_any_pitch::<Cpu<f32>>();
    takes_any_pitch::<Cuda>();
}

fn leaves_out<D: TestDevice + TopKOp>() {
    // But for a few words; all other parts of the row have none.
    let mut rows = Rows::random::<D>([2, 20_000], 8);
    for c in (0..20_000).filter(|c| !(9000..9010).contains(c)) {
        rows.logits.set(1, c, f64::NEG_INFINITY);
    }
    rows.assert_found(&rows.found::<D>(), tolerance::<f32>());
    // More words than are left: the first of those that are not.
    let found = Rows { k: 12, ..rows }.found::<D>();
    assert_eq!(found.ids[22..], [0, 1]);
    assert_eq!(found.values.row(1)[10..], [f64::NEG_INFINITY; 2]);
}

#[test]
fn words_of_no_probability_come_last() {
    leaves_out::<Cpu<f64>>();
    leaves_out::<Cpu<f32>>();
    leaves_out::<Cuda>();
}

fn shows_what_is_not_finite<D: TestDevice + TopKOp>() {
    let words = 2053;
    for place in [0, 8, 1500, 2052] {
        for bad in [f64::NAN, -f64::NAN, f64::INFINITY] {
            let mut rows = Rows::random::<D>([3, words], 9);
            let clean = rows.found::<D>();
            rows.logits.set(1, place, bad);
            let found = rows.found::<D>();
            let finite: Vec<bool> = found.lse.values.iter().map(|x| x.is_finite()).collect();
            assert_eq!(finite, [true, false, true], "{bad} at {place}");
            assert!(found.ids.iter().all(|&id| (id as usize) < words), "{bad} at {place}");
            assert_eq!((&found.ids[..9], &found.ids[18..]), (&clean.ids[..9], &clean.ids[18..]));
        }
    }
    for bad in [f64::NAN, f64::NEG_INFINITY] {
        let found = Rows { logits: Matrix::filled(1, words, bad), k: 3, asked: Vec::new() }.found::<D>();
        assert!(!found.lse.values[0].is_finite());
        assert_eq!(found.ids, [0, 1, 2]);
    }
}

#[test]
fn a_row_that_is_not_finite_shows_it_and_has_ids_of_words() {
    shows_what_is_not_finite::<Cpu<f64>>();
    shows_what_is_not_finite::<Cpu<f32>>();
    shows_what_is_not_finite::<Cuda>();
}

fn is_stable<D: TestDevice + TopKOp>() {
    let mut rows = Rows::random::<D>([2, 3001], 4);
    rows.logits.values.iter_mut().for_each(|x| *x = D::round(*x * 1000.0));
    // Here e^x overflows; the largest logit is far above all others.
    rows.logits.set(0, 7, D::round(9e4));
    rows.logits.set(1, 3000, D::round(9e4));
    let lse = rows.found::<D>().lse;
    assert_close("lse", &lse, &Matrix::filled(1, 2, D::round(9e4)), tolerance::<f32>());
}

#[test]
fn large_logits_do_not_overflow() {
    is_stable::<Cpu<f64>>();
    is_stable::<Cpu<f32>>();
    is_stable::<Cuda>();
}

#[test]
#[should_panic(expected = "6 of 5 logits")]
fn more_than_there_are_is_refused() {
    let rows = Rows { logits: Matrix::filled(1, 5, 0.0), k: 6, asked: Vec::new() };
    rows.found::<Cpu<f32>>();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let rows = Rows::random::<Cpu<f32>>([5, 30_523], 10);
    assert_independent_of_threads(|| {
        let Output { lse, ids, values, asked } = rows.found::<Cpu<f32>>();
        let ids = Matrix { rows: 5, cols: 10, values: ids.into_iter().map(f64::from).collect() };
        vec![lse, ids, values, asked]
    });
}

#[test]
fn two_runs_on_the_gpu_are_equal() {
    let rows = Rows::random::<Cuda>([3, 30_524], 10);
    assert_eq!(rows.found::<Cuda>(), rows.found::<Cuda>());
}
