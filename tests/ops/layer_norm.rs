use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::dropout::{Dropout as DropoutOf, DropoutForward, DropoutOp};
use qformer::ops::layer_norm::{LayerNormBackward, LayerNormForward, LayerNormGradients, LayerNormOp};

const EPSILON: f64 = 1e-12;

/// Rows, width: the model's widths, vectors of either number a lane and of more than registers hold,
/// one, primes.
const SHAPES: [[usize; 2]; 8] =
    [[257, 1408], [41, 768], [3, 1024], [9, 1544], [1, 2], [7, 31], [131, 97], [1, 8]];

#[derive(Clone, Copy, PartialEq)]
enum Dropout {
    None,
    Quarter,
}

/// What a mask is drawn from, in a device's memory.
struct Key<D: TestDevice>(Tensor<D, u32>);

impl<D: TestDevice> Key<D> {
    fn new() -> Self {
        Self(Tensor::indices(1, 2, &[5, 6]))
    }

    fn dropout(&mut self, dropout: Dropout) -> Option<DropoutOf<'_, D>> {
        let of = |key| DropoutOf { probability: 0.25, site: 3, key };
        (dropout == Dropout::Quarter).then(|| of(self.0.view()))
    }
}

#[derive(Clone)]
struct Norm {
    dropout: Dropout,
    epsilon: f64,
    x: Matrix,
    residual: Matrix,
    weight: Matrix,
    bias: Matrix,
}

struct Output {
    sum: Matrix,
    /// Mean and inverse deviation of each row.
    statistics: Matrix,
    y: Matrix,
}

struct Gradient {
    sum: Matrix,
    /// The gradient of x: that of the sum if there is no dropout.
    x: Matrix,
    weight: Matrix,
    bias: Matrix,
}

/// 0 or 1/(1 − p) for each element, as the operation `dropout` has it.
fn factors(dropout: Dropout, rows: usize, cols: usize) -> Matrix {
    let ones = Matrix::filled(rows, cols, 1.0);
    let mut y = Tensor::<Cpu<f64>>::output(rows, cols);
    match Key::new().dropout(dropout) {
        None => ones,
        Some(dropout) => {
            let x = &mut Tensor::pitched(&ones);
            Cpu::<f64>::new()
                .dropout_forward(DropoutForward { dropout, x: x.view(), y: y.view_mut() })
                .unwrap();
            y.read()
        }
    }
}

impl Norm {
    /// Numbers that `D` holds.
    fn random<D: TestDevice>(rows: usize, width: usize, dropout: Dropout) -> Self {
        let mut random = Random::new(1);
        let mut matrix = |rows| rounded::<D>(&random.matrix(rows, width));
        let (x, residual, weight, bias) = (matrix(rows), matrix(rows), matrix(1), matrix(1));
        Self { dropout, epsilon: EPSILON, x, residual, weight, bias }
    }

    fn plain(&self) -> Output {
        let (rows, width) = (self.x.rows, self.x.cols);
        let factors = factors(self.dropout, rows, width);
        let sum =
            Matrix::from_fn(rows, width, |r, c| self.x.at(r, c) * factors.at(r, c) + self.residual.at(r, c));
        let statistics: Vec<f64> = (0..rows)
            .flat_map(|r| {
                let mean = sum.row(r).iter().sum::<f64>() / width as f64;
                let variance = sum.row(r).iter().map(|s| (s - mean).powi(2)).sum::<f64>() / width as f64;
                [mean, (variance + self.epsilon).sqrt().recip()]
            })
            .collect();
        let statistics = Matrix { rows, cols: 2, values: statistics };
        let y = Matrix::from_fn(rows, width, |r, c| {
            (sum.at(r, c) - statistics.at(r, 0)) * statistics.at(r, 1) * self.weight.at(0, c)
                + self.bias.at(0, c)
        });
        Output { sum, statistics, y }
    }

    fn forward<D: TestDevice + LayerNormOp>(&self) -> Output {
        let (rows, width) = (self.x.rows, self.x.cols);
        let (mut sum, mut y) = (Tensor::<D>::output(rows, width), Tensor::<D>::output(rows, width));
        let mut statistics = Tensor::<D, D::Stat>::output(rows, 2);
        D::get()
            .layer_norm_forward(LayerNormForward {
                x: Tensor::pitched(&self.x).view(),
                dropout: Key::new().dropout(self.dropout),
                residual: Some(Tensor::pitched(&self.residual).view()),
                weight: Tensor::pitched(&self.weight).view(),
                bias: Tensor::pitched(&self.bias).view(),
                epsilon: self.epsilon,
                sum: Some(sum.view_mut()),
                statistics: Some(statistics.view_mut()),
                y: y.view_mut(),
            })
            .unwrap();
        Output { sum: sum.read(), statistics: statistics.read(), y: y.read() }
    }

    /// Without residual, and nothing saved.
    fn forward_alone<D: TestDevice + LayerNormOp>(&self) -> Matrix {
        let mut y = Tensor::<D>::output(self.x.rows, self.x.cols);
        D::get()
            .layer_norm_forward(LayerNormForward {
                x: Tensor::pitched(&self.x).view(),
                dropout: Key::new().dropout(self.dropout),
                residual: None,
                weight: Tensor::pitched(&self.weight).view(),
                bias: Tensor::pitched(&self.bias).view(),
                epsilon: self.epsilon,
                sum: None,
                statistics: None,
                y: y.view_mut(),
            })
            .unwrap();
        y.read()
    }

    /// Gradients at what a forward pass saved; those of the parameters on top of `before`, a row of numbers.
    fn backward_from<D: TestDevice + LayerNormOp>(
        &self,
        saved: &Output,
        dy: &Matrix,
        before: &Matrix,
    ) -> Gradient {
        self.backward_of::<D>(saved, dy, before, true)
    }

    /// The same, γ and β `trained` or frozen.
    fn backward_of<D: TestDevice + LayerNormOp>(
        &self,
        saved: &Output,
        dy: &Matrix,
        before: &Matrix,
        trained: bool,
    ) -> Gradient {
        let (rows, width) = (dy.rows, dy.cols);
        let (mut dsum, mut dx) = (Tensor::<D>::output(rows, width), Tensor::<D>::output(rows, width));
        let mut dweight = Tensor::<D, D::Stat>::pitched(before);
        let mut dbias = Tensor::<D, D::Stat>::pitched(before);
        let mut partials = Tensor::<D, D::Stat>::output(D::get().layer_norm_partials(rows), 2 * width);
        D::get()
            .layer_norm_backward(LayerNormBackward {
                dropout: Key::new().dropout(self.dropout),
                sum: Tensor::pitched(&saved.sum).view(),
                statistics: Tensor::<D, D::Stat>::pitched(&saved.statistics).view(),
                weight: Tensor::pitched(&self.weight).view(),
                dy: Tensor::pitched(dy).view(),
                dsum: dsum.view_mut(),
                dx: (self.dropout == Dropout::Quarter).then(|| dx.view_mut()),
                parameters: trained.then(|| LayerNormGradients {
                    partials: partials.view_mut(),
                    dweight: dweight.view_mut(),
                    dbias: dbias.view_mut(),
                }),
            })
            .unwrap();
        let sum = dsum.read();
        let x = if self.dropout == Dropout::None { sum.clone() } else { dx.read() };
        Gradient { sum, x, weight: dweight.read(), bias: dbias.read() }
    }

    fn backward<D: TestDevice + LayerNormOp>(&self, dy: &Matrix, before: &Matrix) -> Gradient {
        self.backward_from::<D>(&self.forward::<D>(), dy, before)
    }
}

fn forward_matches<D: TestDevice + LayerNormOp>() {
    for [rows, width] in SHAPES {
        for dropout in [Dropout::None, Dropout::Quarter] {
            let norm = Norm::random::<D>(rows, width, dropout);
            let (got, want) = (norm.forward::<D>(), norm.plain());
            assert_rounded::<D>("sum", &got.sum, &want.sum);
            // Statistics are in single precision on all devices; a mean may be near zero.
            assert_close("statistics", &got.statistics, &want.statistics, tolerance::<f32>());
            assert_rounded::<D>("y", &got.y, &want.y);
            let alone = Norm { residual: Matrix::filled(rows, width, 0.0), ..norm };
            assert_rounded::<D>("without residual", &alone.forward_alone::<D>(), &alone.plain().y);
        }
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

fn epsilon_counts_on<D: TestDevice + LayerNormOp>() {
    for width in [8, 31, 1408, 1544] {
        let mut norm = Norm { epsilon: 0.01, ..Norm::random::<D>(3, width, Dropout::None) };
        // A constant row, whose deviation is that of ε alone, and one of a deviation near ε's root.
        for c in 0..width {
            norm.x.set(0, c, 0.5);
            norm.residual.set(0, c, 0.25);
            norm.x.set(1, c, norm.x.at(1, c) / 16.0);
            norm.residual.set(1, c, norm.residual.at(1, c) / 16.0);
        }
        let (got, want) = (norm.forward::<D>(), norm.plain());
        let inverse = |output: &Output| Matrix::from_fn(3, 1, |r, _| output.statistics.at(r, 1));
        assert_close("inverse", &inverse(&got), &inverse(&want), tolerance::<f32>());
        assert_rounded::<D>("y", &got.y, &want.y);
    }
}

#[test]
fn epsilon_is_added_to_the_variance() {
    epsilon_counts_on::<Cpu<f64>>();
    epsilon_counts_on::<Cpu<f32>>();
    epsilon_counts_on::<Cuda>();
}

#[test]
fn a_large_mean_costs_no_precision_beyond_that_of_the_input() {
    let mut norm = Norm::random::<Cpu<f32>>(3, 768, Dropout::None);
    // Sums are multiples of 2⁻⁶ below 2¹⁴, hence exact in single precision; each summand is exact in bf16.
    norm.x.values.iter_mut().for_each(|x| *x = 8192.0);
    norm.residual.values.iter_mut().for_each(|x| *x = (*x * 64.0).round() / 64.0);
    // The mean is known to a few units of 2⁻²⁴·8192 = 5e-4, against a deviation of 0.6.
    assert_close("y", &norm.forward::<Cpu<f32>>().y, &norm.plain().y, 2e-3);
    let norm = Norm { weight: rounded::<Cuda>(&norm.weight), bias: rounded::<Cuda>(&norm.bias), ..norm };
    // To which 2⁻⁹ = 2e-3 are added when y is rounded.
    assert_close("y", &norm.forward::<Cuda>().y, &norm.plain().y, 4e-3);
}

#[test]
fn whole_numbers_are_normalised_exactly() {
    // Half of a row is 3 and half is 5: mean 4, deviation 1.
    for width in [768, 1408, 1544, 62] {
        let rows = 5;
        let filled = |value| Matrix::filled(1, width, value);
        let norm = Norm {
            dropout: Dropout::None,
            epsilon: EPSILON,
            x: Matrix::from_fn(rows, width, |r, c| if (r + c) % 2 == 0 { 1.0 } else { 3.0 }),
            residual: Matrix::filled(rows, width, 2.0),
            weight: filled(3.0),
            bias: filled(7.0),
        };
        let Output { sum, statistics, y } = norm.forward::<Cuda>();
        assert_eq!(sum, Matrix::from_fn(rows, width, |r, c| if (r + c) % 2 == 0 { 3.0 } else { 5.0 }));
        assert_eq!(statistics, Matrix::from_fn(rows, 2, |_, c| [4.0, 1.0][c]));
        assert_eq!(y, Matrix::from_fn(rows, width, |r, c| if (r + c) % 2 == 0 { 4.0 } else { 10.0 }));
    }
}

#[test]
fn backward_matches_finite_differences() {
    for (rows, width) in [(3, 7), (1, 2), (19, 5), (2, 33)] {
        for dropout in [Dropout::None, Dropout::Quarter] {
            let norm = Norm::random::<Cpu<f64>>(rows, width, dropout);
            let dy = Random::new(2).matrix(rows, width);
            let gradient = norm.backward::<Cpu<f64>>(&dy, &Matrix::filled(1, width, 0.0));
            let loss = |norm: &Norm| norm.forward::<Cpu<f64>>().y.dot(&dy);
            if width > 2 {
                assert_gradient("dx", &norm.x, &gradient.x, |x| loss(&Norm { x: x.clone(), ..norm.clone() }));
                assert_gradient("dr", &norm.residual, &gradient.sum, |residual| {
                    loss(&Norm { residual: residual.clone(), ..norm.clone() })
                });
            } else {
                // Two numbers are always normalised to -1 and 1.
                assert!(gradient.sum.values.iter().all(|d| d.abs() < 1e-9));
            }
            assert_gradient("dweight", &norm.weight, &gradient.weight, |weight| {
                loss(&Norm { weight: weight.clone(), ..norm.clone() })
            });
            assert_gradient("dbias", &norm.bias, &gradient.bias, |bias| {
                loss(&Norm { bias: bias.clone(), ..norm.clone() })
            });
        }
    }
}

#[test]
fn single_precision_gradients_are_those_of_double_precision() {
    let norm = Norm::random::<Cpu<f32>>(37, 768, Dropout::Quarter);
    let mut random = Random::new(3);
    let (dy, before) = (random.matrix(37, 768), random.matrix(1, 768));
    let (got, want) = (norm.backward::<Cpu<f32>>(&dy, &before), norm.backward::<Cpu<f64>>(&dy, &before));
    assert_close("dsum", &got.sum, &want.sum, tolerance::<f32>());
    assert_close("dx", &got.x, &want.x, tolerance::<f32>());
    assert_close("dweight", &got.weight, &want.weight, tolerance::<f32>());
    assert_close("dbias", &got.bias, &want.bias, tolerance::<f32>());
}

#[test]
fn the_gpu_has_the_same_gradients() {
    // More rows than all blocks of a simulated GPU have warps.
    for [rows, width] in SHAPES.into_iter().chain([[2113, 16]]) {
        for dropout in [Dropout::None, Dropout::Quarter] {
            let norm = Norm::random::<Cuda>(rows, width, dropout);
            let mut random = Random::new(6);
            let dy = rounded::<Cuda>(&random.matrix(rows, width));
            let before = random.matrix(1, width);
            let saved = norm.forward::<Cuda>();
            let got = norm.backward_from::<Cuda>(&saved, &dy, &before);
            let want = norm.backward_from::<Cpu<f64>>(&saved, &dy, &before);
            if width > 2 {
                assert_rounded::<Cuda>("dsum", &got.sum, &want.sum);
                assert_rounded::<Cuda>("dx", &got.x, &want.x);
            }
            assert_close("dweight", &got.weight, &want.weight, tolerance::<f32>());
            assert_close("dbias", &got.bias, &want.bias, tolerance::<f32>());
            let again = norm.backward_from::<Cuda>(&saved, &dy, &before);
            let bits = |g: &Gradient| [&g.sum, &g.x, &g.weight, &g.bias].map(Matrix::bits);
            assert_eq!(bits(&got), bits(&again), "{rows}×{width}");
        }
    }
}

fn frozen_parameters_leave_no_gradient<D: TestDevice + LayerNormOp>() {
    for [rows, width] in SHAPES {
        for dropout in [Dropout::None, Dropout::Quarter] {
            let norm = Norm::random::<D>(rows, width, dropout);
            let mut random = Random::new(8);
            let (dy, before) = (rounded::<D>(&random.matrix(rows, width)), random.matrix(1, width));
            let saved = norm.forward::<D>();
            let [trained, frozen] =
                [true, false].map(|trained| norm.backward_of::<D>(&saved, &dy, &before, trained));
            assert_eq!(trained.sum.bits(), frozen.sum.bits(), "{rows}×{width}");
            assert_eq!(trained.x.bits(), frozen.x.bits(), "{rows}×{width}");
            let untouched = Matrix::from_fn(1, width, |r, c| f64::from(before.at(r, c) as f32));
            assert_close("dweight", &frozen.weight, &untouched, 0.0);
            assert_close("dbias", &frozen.bias, &untouched, 0.0);
        }
    }
}

#[test]
fn the_input_s_gradient_is_the_same_where_the_parameters_are_frozen() {
    frozen_parameters_leave_no_gradient::<Cpu<f32>>();
    frozen_parameters_leave_no_gradient::<Cuda>();
}

#[test]
fn gradients_of_parameters_are_added_to_what_was_there() {
    let norm = Norm::random::<Cpu<f64>>(6, 11, Dropout::None);
    let mut random = Random::new(4);
    let (dy, before) = (random.matrix(6, 11), random.matrix(1, 11));
    let fresh = norm.backward::<Cpu<f64>>(&dy, &Matrix::filled(1, 11, 0.0));
    let added = norm.backward::<Cpu<f64>>(&dy, &before);
    assert_close("dweight", &added.weight.minus(&before), &fresh.weight, tolerance::<f64>());
    assert_close("dbias", &added.bias.minus(&before), &fresh.bias, tolerance::<f64>());
}

fn nan_reaches<D: TestDevice + LayerNormOp>() {
    for width in [40, 768, 33] {
        let mut norm = Norm::random::<D>(3, width, Dropout::None);
        norm.x.set(1, 7, f64::NAN);
        let y = norm.forward::<D>().y;
        assert!((0..3).all(|r| y.row(r).iter().all(|y| y.is_nan() == (r == 1))));
        let mut dy = Random::new(7).matrix(3, width);
        dy.set(2, 5, f64::NAN);
        let gradient =
            Norm::random::<D>(3, width, Dropout::None).backward::<D>(&dy, &Matrix::filled(1, width, 0.0));
        assert!((0..3).all(|r| gradient.sum.row(r).iter().all(|d| d.is_nan() == (r == 2))));
        for parameter in [gradient.weight, gradient.bias] {
            assert!((0..width).all(|c| parameter.at(0, c).is_nan() == (c == 5)));
        }
    }
}

#[test]
fn nan_reaches_the_output() {
    nan_reaches::<Cpu<f32>>();
    nan_reaches::<Cuda>();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // More rows than 64 tasks of 16.
    let norm = Norm::random::<Cpu<f32>>(1103, 97, Dropout::Quarter);
    let dy = Random::new(5).matrix(1103, 97);
    assert_independent_of_threads(|| {
        let Output { sum, statistics, y } = norm.forward::<Cpu<f32>>();
        let gradient = norm.backward::<Cpu<f32>>(&dy, &norm.bias);
        vec![sum, statistics, y, gradient.sum, gradient.x, gradient.weight, gradient.bias]
    });
}
