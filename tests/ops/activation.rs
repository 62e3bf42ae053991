use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::activation::{Activation, ActivationBackward, ActivationForward, ActivationOp};

const ALL: [Activation; 4] =
    [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];

fn plain(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Gelu => 0.5 * x * libm::erfc(-x / 2f64.sqrt()),
        Activation::GeluTanh => {
            let scale = (2.0 / std::f64::consts::PI).sqrt();
            0.5 * x * (1.0 + (scale * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        Activation::Relu => x.max(0.0),
    }
}

fn forward<D: TestDevice + ActivationOp>(activation: Activation, x: &Matrix) -> Matrix {
    let mut y = Tensor::<D>::output(x.rows, x.cols);
    D::get()
        .activation_forward(ActivationForward { activation, x: Tensor::pitched(x).view(), y: y.view_mut() })
        .unwrap();
    y.read()
}

fn backward<D: TestDevice + ActivationOp>(activation: Activation, x: &Matrix, dy: &Matrix) -> Matrix {
    let mut dx = Tensor::<D>::pitched(dy);
    D::get()
        .activation_backward(ActivationBackward {
            activation,
            x: Tensor::pitched(x).view(),
            dy: dx.view_mut(),
        })
        .unwrap();
    dx.read()
}

/// Random numbers in [-6, 6), where all activations bend.
fn inputs(rows: usize, cols: usize) -> Matrix {
    let mut x = Random::new(1).matrix(rows, cols);
    x.values.iter_mut().for_each(|x| *x *= 6.0);
    x
}

/// Rows, columns: the model's, one, primes, more than a block of threads has.
const SHAPES: [(usize, usize); 5] = [(32, 3072), (1, 1), (13, 7), (3, 129), (5, 1408)];

fn forward_matches<D: TestDevice + ActivationOp>() {
    for (rows, cols) in SHAPES {
        let x = rounded::<D>(&inputs(rows, cols));
        for activation in ALL {
            let want = Matrix::from_fn(rows, cols, |r, c| plain(activation, x.at(r, c)));
            assert_rounded::<D>(&format!("{activation:?}"), &forward::<D>(activation, &x), &want);
        }
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

#[test]
fn single_precision_gelu_is_within_a_millionth() {
    let x = Matrix::from_fn(24, 4096, |r, c| r as f64 - 12.0 + c as f64 / 4096.0);
    let y = forward::<Cpu<f32>>(Activation::Gelu, &x);
    for (&x, &y) in x.values.iter().zip(&y.values) {
        // 1e-6 is one unit in the last place of 12, the largest result.
        assert!((y - plain(Activation::Gelu, x)).abs() <= 1e-6, "gelu({x}) = {y}");
    }
}

#[test]
fn numbers_far_out_saturate() {
    saturates::<Cpu<f32>>();
    saturates::<Cuda>();
}

fn saturates<D: TestDevice + ActivationOp>() {
    let x = Matrix { rows: 1, cols: 4, values: [-1e20, -1e4, 1e4, 1e20].map(D::round).to_vec() };
    for activation in ALL {
        let y = forward::<D>(activation, &x).values;
        assert_eq!(&y[2..], &x.values[2..], "{activation:?}");
        // The approximations of small probabilities stop at e⁻⁸³ = 9e-37 or below; 1e20 times that.
        assert!(y[..2].iter().all(|y| y.abs() < 1e-16), "{activation:?}: {y:?}");
    }
}

#[test]
fn backward_matches_finite_differences() {
    let mut x = inputs(5, 37);
    // Away from zero, where ReLU has no derivative.
    x.values.iter_mut().filter(|x| x.abs() < 1e-3).for_each(|x| *x = 0.5);
    let dy = Random::new(2).matrix(5, 37);
    for activation in ALL {
        let dx = backward::<Cpu<f64>>(activation, &x, &dy);
        assert_gradient(&format!("{activation:?}"), &x, &dx, |x| forward::<Cpu<f64>>(activation, x).dot(&dy));
    }
}

#[test]
fn single_precision_gradients_are_those_of_double_precision() {
    let (x, dy) = (inputs(7, 771), Random::new(3).matrix(7, 771));
    for activation in ALL {
        let want = backward::<Cpu<f64>>(activation, &x, &dy);
        let got = backward::<Cpu<f32>>(activation, &x, &dy);
        assert_close(&format!("{activation:?}"), &got, &want, tolerance::<f32>());
    }
}

#[test]
fn the_gpu_has_the_same_gradients() {
    for (rows, cols) in SHAPES {
        let (x, dy) = (rounded::<Cuda>(&inputs(rows, cols)), Random::new(5).matrix(rows, cols));
        let dy = rounded::<Cuda>(&dy);
        for activation in ALL {
            let got = backward::<Cuda>(activation, &x, &dy);
            let want = backward::<Cpu<f64>>(activation, &x, &dy);
            assert_rounded::<Cuda>(&format!("{activation:?}"), &got, &want);
            assert_eq!(got.bits(), backward::<Cuda>(activation, &x, &dy).bits());
        }
    }
}

#[test]
fn relu_is_exact_on_the_gpu() {
    let x = rounded::<Cuda>(&inputs(7, 72));
    let y = Matrix::from_fn(7, 72, |r, c| x.at(r, c).max(0.0));
    assert_eq!(forward::<Cuda>(Activation::Relu, &x), y);
    let dx = Matrix::from_fn(7, 72, |r, c| if x.at(r, c) > 0.0 { 3.0 } else { 0.0 });
    assert_eq!(backward::<Cuda>(Activation::Relu, &x, &Matrix::filled(7, 72, 3.0)), dx);
}

fn nan_reaches<D: TestDevice + ActivationOp>() {
    // The last has all bits set, as memory filled with ones.
    for nan in [f64::NAN, -f64::NAN, f64::from_bits(u64::MAX)] {
        for (activation, cols) in ALL.into_iter().flat_map(|a| [(a, 70), (a, 72)]) {
            let mut x = rounded::<D>(&inputs(2, cols));
            x.set(1, 33, nan);
            let y = forward::<D>(activation, &x);
            assert!(y.at(1, 33).is_nan(), "{activation:?}");
            assert_eq!(y.values.iter().filter(|y| y.is_nan()).count(), 1, "{activation:?}");
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
    let (x, dy) = (inputs(41, 97), Random::new(4).matrix(41, 97));
    assert_independent_of_threads(|| {
        ALL.iter().flat_map(|&a| [forward::<Cpu<f32>>(a, &x), backward::<Cpu<f32>>(a, &x, &dy)]).collect()
    });
}
