use crate::common::{Matrix, Random, assert_close, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::norm::{Norm, NormOp, PARTIAL_SUMS};

fn norm<D: TestDevice + NormOp>(x: &Matrix) -> Matrix {
    let mut partial_sums = Tensor::<D, D::Stat>::output(1, PARTIAL_SUMS);
    let mut norm = Tensor::<D, D::Stat>::output(1, 1);
    D::get()
        .norm(Norm {
            x: Tensor::<D, D::Stat>::pitched(x).view(),
            partial_sums: partial_sums.view_mut(),
            norm: norm.view_mut(),
        })
        .unwrap();
    norm.read()
}

fn matches<D: TestDevice + NormOp>(tolerance: f64) {
    // One, less than a quad, as many as there are partial sums, a prime, and several rounds of all threads.
    for size in [1, 3, 1024, 4099, 3_000_001] {
        let x = Random::new(size as u64).matrix(1, size);
        // Not one by one: the error of so many additions would be larger than the tolerance.
        let squares = x.values.chunks(1024).map(|x| x.iter().map(|x| x * x).sum::<f64>()).sum::<f64>();
        assert_close("norm", &norm::<D>(&x), &Matrix::filled(1, 1, squares.sqrt()), tolerance);
    }
}

#[test]
fn norm_matches_a_plain_computation() {
    matches::<Cpu<f64>>(tolerance::<f64>());
    matches::<Cpu<f32>>(tolerance::<f32>());
    matches::<Cuda>(tolerance::<f32>());
}

fn counts_every_element_once<D: TestDevice + NormOp>() {
    // Squares of whole numbers, and their sums, are exact.
    for size in [7, 1030, 8195] {
        for place in [0, size / 2, size - 1] {
            let mut x = Matrix::filled(1, size, 0.0);
            x.set(0, place, 3.0);
            assert_eq!(norm::<D>(&x).values, [3.0], "element {place} of {size}");
        }
    }
    assert_eq!(norm::<D>(&Matrix::filled(1, 65_536, 1.0)).values, [256.0]);
}

#[test]
fn every_element_counts_once() {
    counts_every_element_once::<Cpu<f64>>();
    counts_every_element_once::<Cpu<f32>>();
    counts_every_element_once::<Cuda>();
}

fn shows_what_is_not_finite<D: TestDevice + NormOp>() {
    for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for place in [0, 1029] {
            let mut x = Random::new(2).matrix(1, 1030);
            x.set(0, place, value);
            assert!(!norm::<D>(&x).values[0].is_finite(), "{value} at {place}");
        }
    }
}

#[test]
fn an_element_that_is_not_finite_shows() {
    shows_what_is_not_finite::<Cpu<f64>>();
    shows_what_is_not_finite::<Cpu<f32>>();
    shows_what_is_not_finite::<Cuda>();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let x = Random::new(3).matrix(1, 100_003);
    assert_independent_of_threads(|| vec![norm::<Cpu<f32>>(&x)]);
}

#[test]
fn two_runs_on_the_gpu_are_equal() {
    let x = Random::new(4).matrix(1, 300_007);
    assert_eq!(norm::<Cuda>(&x).bits(), norm::<Cuda>(&x).bits());
}
