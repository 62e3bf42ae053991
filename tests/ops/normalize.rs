use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::normalize::{NormalizeBackward, NormalizeForward, NormalizeOp};

fn forward<D: TestDevice + NormalizeOp>(x: &Matrix) -> Matrix {
    let mut y = Tensor::<D>::output(x.rows, x.cols);
    D::get().normalize_forward(NormalizeForward { x: Tensor::pitched(x).view(), y: y.view_mut() }).unwrap();
    y.read()
}

fn backward<D: TestDevice + NormalizeOp>(x: &Matrix, dy: &Matrix) -> Matrix {
    let mut dx = Tensor::<D>::output(x.rows, x.cols);
    D::get()
        .normalize_backward(NormalizeBackward {
            x: Tensor::pitched(x).view(),
            dy: Tensor::pitched(dy).view(),
            dx: dx.view_mut(),
        })
        .unwrap();
    dx.read()
}

/// Rows, width: the model's, one, primes, and the shortest vectors.
const SHAPES: [(usize, usize); 6] = [(64, 256), (1, 1), (17, 31), (3, 97), (5, 768), (2, 8)];

fn forward_matches<D: TestDevice + NormalizeOp>() {
    for (rows, width) in SHAPES {
        let x = rounded::<D>(&Random::new(1).matrix(rows, width));
        let want = Matrix::from_fn(rows, width, |r, c| {
            x.at(r, c) / x.row(r).iter().map(|x| x * x).sum::<f64>().sqrt()
        });
        assert_rounded::<D>("y", &forward::<D>(&x), &want);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

#[test]
fn a_row_of_zeros_stays_zero() {
    let mut x = Random::new(2).matrix(3, 8);
    (0..8).for_each(|c| x.set(1, c, 0.0));
    for y in [forward::<Cpu<f32>>(&x), forward::<Cuda>(&x)] {
        assert_eq!(y.row(1), [0.0; 8]);
        assert!(y.row(0).iter().chain(y.row(2)).all(|y| *y != 0.0));
    }
}

#[test]
fn backward_matches_finite_differences() {
    for (rows, width) in [(3, 7), (2, 33), (17, 2)] {
        let mut random = Random::new(3);
        let (x, dy) = (random.matrix(rows, width), random.matrix(rows, width));
        let dx = backward::<Cpu<f64>>(&x, &dy);
        assert_gradient("dx", &x, &dx, |x| forward::<Cpu<f64>>(x).dot(&dy));
    }
}

#[test]
fn a_row_shorter_than_the_smallest_length_is_only_scaled() {
    let mut random = Random::new(4);
    let (mut x, dy) = (random.matrix(2, 5), random.matrix(2, 5));
    (0..5).for_each(|c| {
        x.set(0, c, x.at(0, c) * 1e-13);
        x.set(1, c, 0.0);
    });
    let scaled = |m: &Matrix| Matrix::from_fn(2, 5, |r, c| m.at(r, c) * 1e12);
    assert_close("y", &forward::<Cpu<f64>>(&x), &scaled(&x), tolerance::<f64>());
    assert_close("dx", &backward::<Cpu<f64>>(&x, &dy), &scaled(&dy), tolerance::<f64>());
    let (x, dy) = (rounded::<Cuda>(&x), rounded::<Cuda>(&dy));
    assert_rounded::<Cuda>("y", &forward::<Cuda>(&x), &scaled(&x));
    assert_rounded::<Cuda>("dx", &backward::<Cuda>(&x, &dy), &scaled(&dy));
}

#[test]
fn single_precision_gradients_are_those_of_double_precision() {
    let mut random = Random::new(5);
    let (x, dy) = (random.matrix(19, 256), random.matrix(19, 256));
    assert_close("dx", &backward::<Cpu<f32>>(&x, &dy), &backward::<Cpu<f64>>(&x, &dy), tolerance::<f32>());
}

#[test]
fn the_gpu_has_the_same_gradients() {
    for (rows, width) in SHAPES.into_iter().filter(|&(_, width)| width > 1) {
        let mut random = Random::new(8);
        let x = rounded::<Cuda>(&random.matrix(rows, width));
        let dy = rounded::<Cuda>(&random.matrix(rows, width));
        let got = backward::<Cuda>(&x, &dy);
        assert_rounded::<Cuda>("dx", &got, &backward::<Cpu<f64>>(&x, &dy));
        assert_eq!(got.bits(), backward::<Cuda>(&x, &dy).bits());
    }
}

#[test]
fn whole_numbers_are_normalised_exactly() {
    // 16 numbers ±1 have a length of 4 and 256 one of 16: the results are exact.
    for (width, length) in [(16, 4.0), (256, 16.0)] {
        let x = Matrix::from_fn(3, width, |r, c| if (r + c) % 3 == 0 { -1.0 } else { 1.0 });
        assert_eq!(forward::<Cuda>(&x), Matrix::from_fn(3, width, |r, c| x.at(r, c) / length));
    }
}

#[test]
fn nan_reaches_the_output() {
    for width in [40, 41] {
        let mut x = Random::new(6).matrix(3, width);
        x.set(1, 7, f64::NAN);
        let dy = Matrix::filled(3, width, 1.0);
        for y in [forward::<Cpu<f32>>(&x), forward::<Cuda>(&x), backward::<Cuda>(&x, &dy)] {
            assert!((0..3).all(|r| y.row(r).iter().all(|y| y.is_nan() == (r == 1))));
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(7);
    let (x, dy) = (random.matrix(131, 97), random.matrix(131, 97));
    assert_independent_of_threads(|| vec![forward::<Cpu<f32>>(&x), backward::<Cpu<f32>>(&x, &dy)]);
}
