use crate::common::{Matrix, Random, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::pool::{PoolBackward, PoolForward, PoolOp};

/// Groups, size of a group, width: the model's, one of each, primes, a vector's width, and more columns than a
/// block has, in whole vectors and not.
const SHAPES: [[usize; 3]; 6] = [[8, 32, 768], [1, 1, 1], [5, 7, 13], [3, 1, 64], [2, 3, 1032], [2, 3, 131]];

fn forward<D: TestDevice + PoolOp>(x: &Matrix, groups: usize) -> Matrix {
    let mut y = Tensor::<D>::output(groups, x.cols);
    D::get().pool_forward(PoolForward { x: Tensor::pitched(x).view(), y: y.view_mut() }).unwrap();
    y.read()
}

fn backward<D: TestDevice + PoolOp>(dy: &Matrix, rows: usize) -> Matrix {
    let mut dx = Tensor::<D>::output(rows, dy.cols);
    D::get().pool_backward(PoolBackward { dy: Tensor::pitched(dy).view(), dx: dx.view_mut() }).unwrap();
    dx.read()
}

fn forward_matches<D: TestDevice + PoolOp>() {
    for [groups, size, width] in SHAPES {
        let x = rounded::<D>(&Random::new(1).matrix(groups * size, width));
        let want = Matrix::from_fn(groups, width, |g, c| {
            (0..size).map(|i| x.at(g * size + i, c)).sum::<f64>() / size as f64
        });
        assert_rounded::<D>("y", &forward::<D>(&x, groups), &want);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

fn whole_numbers_are_exact<D: TestDevice + PoolOp>() {
    for (size, width) in [(32, 768), (4, 13)] {
        let mut random = Random::new(6);
        let (x, dy) = (random.whole(3 * size, width, 4), random.whole(3, width, 4));
        let sum = |g: usize, c| (0..size).map(|i| x.at(g * size + i, c)).sum::<f64>();
        // Of 32 numbers up to 4 the sum is 128 at most, which has eight bits, as its quotients by powers of two.
        assert_eq!(forward::<D>(&x, 3), Matrix::from_fn(3, width, |g, c| sum(g, c) / size as f64));
        let want = Matrix::from_fn(3 * size, width, |r, c| dy.at(r / size, c) / size as f64);
        assert_eq!(backward::<D>(&dy, 3 * size), want);
    }
}

#[test]
fn means_of_whole_numbers_in_groups_of_a_power_of_two_are_exact() {
    whole_numbers_are_exact::<Cpu<f64>>();
    whole_numbers_are_exact::<Cpu<f32>>();
    whole_numbers_are_exact::<Cuda>();
}

#[test]
fn backward_matches_finite_differences() {
    for (groups, size, width) in [(2, 5, 3), (1, 1, 1), (3, 1, 7)] {
        let mut random = Random::new(2);
        let (x, dy) = (random.matrix(groups * size, width), random.matrix(groups, width));
        let dx = backward::<Cpu<f64>>(&dy, groups * size);
        assert_gradient("dx", &x, &dx, |x| forward::<Cpu<f64>>(x, groups).dot(&dy));
    }
}

#[test]
fn the_gpu_has_the_same_gradient() {
    for [groups, size, width] in SHAPES {
        let dy = rounded::<Cuda>(&Random::new(5).matrix(groups, width));
        let want = backward::<Cpu<f64>>(&dy, groups * size);
        assert_rounded::<Cuda>("dx", &backward::<Cuda>(&dy, groups * size), &want);
    }
}

#[test]
fn nan_reaches_the_output() {
    let mut x = Random::new(3).matrix(6, 4);
    x.set(4, 1, f64::NAN);
    for y in [forward::<Cpu<f32>>(&x, 2), forward::<Cuda>(&x, 2)] {
        let nan: Vec<usize> = (0..8).filter(|&i| y.values[i].is_nan()).collect();
        assert_eq!(nan, [5]);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(4);
    let (x, dy) = (random.matrix(35, 9), random.matrix(5, 9));
    assert_independent_of_threads(|| vec![forward::<Cpu<f32>>(&x, 5), backward::<Cpu<f32>>(&dy, 35)]);
}
