use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, tolerance};
use qformer::device::Cpu;
use qformer::ops::layer_norm::{LayerNormBackward, LayerNormForward, LayerNormOp};

const EPSILON: f64 = 1e-12;

#[derive(Clone)]
struct Norm {
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
    weight: Matrix,
    bias: Matrix,
}

impl Norm {
    fn random(rows: usize, width: usize) -> Self {
        let mut random = Random::new(1);
        Self {
            x: random.matrix(rows, width),
            residual: random.matrix(rows, width),
            weight: random.matrix(1, width),
            bias: random.matrix(1, width),
        }
    }

    fn plain(&self) -> Output {
        let (rows, width) = (self.x.rows, self.x.cols);
        let sum = Matrix::from_fn(rows, width, |r, c| self.x.at(r, c) + self.residual.at(r, c));
        let mean = |r: usize| sum.row(r).iter().sum::<f64>() / width as f64;
        let statistics = Matrix::from_fn(rows, 2, |r, c| {
            let variance = sum.row(r).iter().map(|s| (s - mean(r)).powi(2)).sum::<f64>() / width as f64;
            [mean(r), (variance + EPSILON).sqrt().recip()][c]
        });
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
                residual: Some(Tensor::pitched(&self.residual).view()),
                weight: Tensor::pitched(&self.weight).view(),
                bias: Tensor::pitched(&self.bias).view(),
                epsilon: EPSILON,
                sum: Some(sum.view_mut()),
                statistics: Some(statistics.view_mut()),
                y: y.view_mut(),
            })
            .unwrap();
        Output { sum: sum.read(), statistics: statistics.read(), y: y.read() }
    }

    fn forward_alone<D: TestDevice + LayerNormOp>(&self) -> Matrix {
        let mut y = Tensor::<D>::output(self.x.rows, self.x.cols);
        D::get()
            .layer_norm_forward(LayerNormForward {
                x: Tensor::pitched(&self.x).view(),
                residual: None,
                weight: Tensor::pitched(&self.weight).view(),
                bias: Tensor::pitched(&self.bias).view(),
                epsilon: EPSILON,
                sum: None,
                statistics: None,
                y: y.view_mut(),
            })
            .unwrap();
        y.read()
    }

    /// Gradients; those of the parameters on top of `before`, a row of numbers.
    fn backward<D: TestDevice + LayerNormOp>(&self, dy: &Matrix, before: &Matrix) -> Gradient {
        let Output { sum, statistics, .. } = self.forward::<D>();
        let mut dsum = Tensor::<D>::output(sum.rows, sum.cols);
        let mut dweight = Tensor::<D, D::Stat>::pitched(before);
        let mut dbias = Tensor::<D, D::Stat>::pitched(before);
        D::get()
            .layer_norm_backward(LayerNormBackward {
                sum: Tensor::pitched(&sum).view(),
                statistics: Tensor::<D, D::Stat>::pitched(&statistics).view(),
                weight: Tensor::pitched(&self.weight).view(),
                dy: Tensor::pitched(dy).view(),
                dsum: dsum.view_mut(),
                dweight: dweight.view_mut(),
                dbias: dbias.view_mut(),
            })
            .unwrap();
        Gradient { sum: dsum.read(), weight: dweight.read(), bias: dbias.read() }
    }
}

fn forward_matches<D: TestDevice + LayerNormOp>() {
    for (rows, width) in [(33, 1408), (41, 768), (1, 2), (7, 31), (5, 97)] {
        let norm = Norm::random(rows, width);
        let (got, want) = (norm.forward::<D>(), norm.plain());
        assert_rounded::<D>("sum", &got.sum, &want.sum);
        assert_rounded::<D>("statistics", &got.statistics, &want.statistics);
        assert_rounded::<D>("y", &got.y, &want.y);
        let alone = Norm { residual: Matrix::filled(rows, width, 0.0), ..norm };
        assert_rounded::<D>("without residual", &alone.forward_alone::<D>(), &alone.plain().y);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
}

#[test]
fn a_large_mean_costs_no_precision_beyond_that_of_the_input() {
    let mut norm = Norm::random(3, 768);
    // Sums are multiples of 2⁻¹⁰ below 2¹⁴, hence exact in single precision.
    norm.x.values.iter_mut().for_each(|x| *x = 8192.0 + (*x * 1024.0).round() / 1024.0);
    norm.residual.values.iter_mut().for_each(|x| *x = (*x * 1024.0).round() / 1024.0);
    // The mean is known to a few units of 2⁻²⁴·8192 = 5e-4, against a deviation of 0.8.
    assert_close("y", &norm.forward::<Cpu<f32>>().y, &norm.plain().y, 2e-3);
}

#[test]
fn backward_matches_finite_differences() {
    for (rows, width) in [(3, 7), (1, 2), (19, 5), (2, 33)] {
        let norm = Norm::random(rows, width);
        let dy = Random::new(2).matrix(rows, width);
        let gradient = norm.backward::<Cpu<f64>>(&dy, &Matrix::filled(1, width, 0.0));
        let loss = |norm: &Norm| norm.forward::<Cpu<f64>>().y.dot(&dy);
        if width > 2 {
            assert_gradient("dx", &norm.x, &gradient.sum, |x| loss(&Norm { x: x.clone(), ..norm.clone() }));
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

#[test]
fn single_precision_gradients_are_those_of_double_precision() {
    let norm = Norm::random(37, 768);
    let mut random = Random::new(3);
    let (dy, before) = (random.matrix(37, 768), random.matrix(1, 768));
    let (got, want) = (norm.backward::<Cpu<f32>>(&dy, &before), norm.backward::<Cpu<f64>>(&dy, &before));
    assert_close("dsum", &got.sum, &want.sum, tolerance::<f32>());
    assert_close("dweight", &got.weight, &want.weight, tolerance::<f32>());
    assert_close("dbias", &got.bias, &want.bias, tolerance::<f32>());
}

#[test]
fn gradients_of_parameters_are_added_to_what_was_there() {
    let norm = Norm::random(6, 11);
    let mut random = Random::new(4);
    let (dy, before) = (random.matrix(6, 11), random.matrix(1, 11));
    let fresh = norm.backward::<Cpu<f64>>(&dy, &Matrix::filled(1, 11, 0.0));
    let added = norm.backward::<Cpu<f64>>(&dy, &before);
    assert_close("dweight", &added.weight.minus(&before), &fresh.weight, tolerance::<f64>());
    assert_close("dbias", &added.bias.minus(&before), &fresh.bias, tolerance::<f64>());
}

#[test]
fn nan_reaches_the_output() {
    let mut norm = Norm::random(3, 40);
    norm.x.set(1, 7, f64::NAN);
    let y = norm.forward::<Cpu<f32>>().y;
    assert!((0..3).all(|r| y.row(r).iter().all(|y| y.is_nan() == (r == 1))));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let norm = Norm::random(131, 97);
    let dy = Random::new(5).matrix(131, 97);
    assert_independent_of_threads(|| {
        let Output { sum, statistics, y } = norm.forward::<Cpu<f32>>();
        let gradient = norm.backward::<Cpu<f32>>(&dy, &norm.bias);
        vec![sum, statistics, y, gradient.sum, gradient.weight, gradient.bias]
    });
}
