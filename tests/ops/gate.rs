use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::activation::{Activation, ActivationForward, ActivationOp};
use qformer::ops::gate::{GateBackward, GateForward, GateOp};

const ALL: [Activation; 4] =
    [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];

/// Rows, columns of y: a language model's, one, primes, whole vectors, more than a block of threads has.
const SHAPES: [(usize, usize); 5] = [(3, 5120), (1, 1), (13, 7), (3, 129), (5, 1032)];

fn forward<D: TestDevice + GateOp>(activation: Activation, x: &Matrix) -> Matrix {
    let mut y = Tensor::<D>::output(x.rows, x.cols / 2);
    let x = &mut Tensor::pitched(x);
    D::get().gate_forward(GateForward { activation, x: x.view(), y: y.view_mut() }).unwrap();
    y.read()
}

fn backward<D: TestDevice + GateOp>(activation: Activation, x: &Matrix, dy: &Matrix) -> Matrix {
    let mut dx = Tensor::<D>::output(x.rows, x.cols);
    let (x, dy) = (&mut Tensor::pitched(x), &mut Tensor::pitched(dy));
    let args = GateBackward { activation, x: x.view(), dy: dy.view(), dx: dx.view_mut() };
    D::get().gate_backward(args).unwrap();
    dx.read()
}

/// f(a), which the operation `activation` has, compared there with a plain computation.
fn activated(activation: Activation, a: &Matrix) -> Matrix {
    let mut y = Tensor::<Cpu<f64>>::output(a.rows, a.cols);
    let x = &mut Tensor::pitched(a);
    let args = ActivationForward { activation, x: x.view(), y: y.view_mut() };
    Cpu::<f64>::new().activation_forward(args).unwrap();
    y.read()
}

/// The left or the right half of the columns.
fn half(x: &Matrix, which: usize) -> Matrix {
    let width = x.cols / 2;
    Matrix::from_fn(x.rows, width, |r, c| x.at(r, which * width + c))
}

/// Random numbers in [-6, 6), where all activations bend, for y of so many columns.
fn inputs<D: TestDevice>(rows: usize, cols: usize) -> Matrix {
    let mut x = Random::new(1).matrix(rows, 2 * cols);
    x.values.iter_mut().for_each(|x| *x *= 6.0);
    rounded::<D>(&x)
}

fn forward_matches<D: TestDevice + GateOp>() {
    for (rows, cols) in SHAPES {
        let x = inputs::<D>(rows, cols);
        let b = half(&x, 1);
        for activation in ALL {
            let gate = activated(activation, &half(&x, 0));
            let want = Matrix::from_fn(rows, cols, |r, c| gate.at(r, c) * b.at(r, c));
            assert_rounded::<D>(&format!("{activation:?}"), &forward::<D>(activation, &x), &want);
        }
    }
}

#[test]
fn forward_is_the_activation_of_the_left_half_times_the_right_half() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

#[test]
fn backward_matches_finite_differences() {
    let mut x = inputs::<Cpu<f64>>(5, 37);
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
    let (x, dy) = (inputs::<Cpu<f32>>(7, 771), Random::new(3).matrix(7, 771));
    for activation in ALL {
        let want = backward::<Cpu<f64>>(activation, &x, &dy);
        let got = backward::<Cpu<f32>>(activation, &x, &dy);
        assert_close(&format!("{activation:?}"), &got, &want, tolerance::<f32>());
    }
}

#[test]
fn the_gpu_has_the_same_gradients() {
    for (rows, cols) in SHAPES {
        let (x, dy) = (inputs::<Cuda>(rows, cols), Random::new(5).matrix(rows, cols));
        let dy = rounded::<Cuda>(&dy);
        for activation in ALL {
            let got = backward::<Cuda>(activation, &x, &dy);
            let want = backward::<Cpu<f64>>(activation, &x, &dy);
            for which in [0, 1] {
                assert_rounded::<Cuda>(&format!("{activation:?}"), &half(&got, which), &half(&want, which));
            }
            assert_eq!(got.bits(), backward::<Cuda>(activation, &x, &dy).bits());
        }
    }
}

#[test]
fn whole_numbers_pass_a_relu_exactly_on_the_gpu() {
    let (rows, cols) = (7, 72);
    let mut random = Random::new(6);
    let (x, dy) = (random.whole(rows, 2 * cols, 15), random.whole(rows, cols, 15));
    let (a, b) = (half(&x, 0), half(&x, 1));
    let y = Matrix::from_fn(rows, cols, |r, c| a.at(r, c).max(0.0) * b.at(r, c));
    assert_eq!(forward::<Cuda>(Activation::Relu, &x), y);
    let dx = backward::<Cuda>(Activation::Relu, &x, &dy);
    let open = |r, c| if a.at(r, c) > 0.0 { 1.0 } else { 0.0 };
    assert_eq!(half(&dx, 0), Matrix::from_fn(rows, cols, |r, c| open(r, c) * b.at(r, c) * dy.at(r, c)));
    assert_eq!(half(&dx, 1), Matrix::from_fn(rows, cols, |r, c| a.at(r, c).max(0.0) * dy.at(r, c)));
}

fn nan_reaches<D: TestDevice + GateOp>() {
    for (activation, cols) in ALL.into_iter().flat_map(|a| [(a, 35), (a, 40)]) {
        for place in [33, cols + 33] {
            let mut x = inputs::<D>(2, cols);
            x.set(1, place, f64::NAN);
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
    let (x, dy) = (inputs::<Cpu<f32>>(41, 97), Random::new(4).matrix(41, 97));
    assert_independent_of_threads(|| {
        ALL.iter().flat_map(|&a| [forward::<Cpu<f32>>(a, &x), backward::<Cpu<f32>>(a, &x, &dy)]).collect()
    });
}
