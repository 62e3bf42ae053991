//! Weights of 16 bits, which the CPU multiplies by as they are stored.

use super::{Linear, SPLIT_TOLERANCE};
use crate::common::{Matrix, Random, assert_close, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, rounded_to, tolerance};
use half::{bf16, f16};
use qformer::config::Activation;
use qformer::device::{Cpu, Real, Write};
use qformer::ops::linear::{LinearForward, LinearInputBackward, LinearOp};
use qformer::tensor::Number;

/// Inputs and outputs: widths of models, one of each, primes, and both sides of a vector.
const WIDTHS: [[usize; 2]; 9] =
    [[1408, 96], [768, 130], [1, 1], [7, 63], [37, 41], [3, 5], [63, 33], [65, 16], [96, 131]];

/// Those that are decoded together, as far as weights are streamed, and those of a prompt.
fn counts_of_rows() -> impl Iterator<Item = usize> {
    (1..=17).chain([40])
}

/// What a product of so many rows may be off by: on AMX, many rows are multiplied in halves.
fn allowed<E: Real>() -> f64
where
    Cpu<E>: TestDevice,
{
    if Cpu::<E>::get().has_amx() { SPLIT_TOLERANCE } else { tolerance::<E>() }
}

/// y = f(x·Wᵀ + b) + r and x·Wᵀ + b, of a weight that is stored as `N`.
fn forward<E: Real, N: Number>(
    linear: &Linear,
    activation: Option<Activation>,
    residual: Option<&Matrix>,
) -> [Matrix; 2]
where
    Cpu<E>: TestDevice<Elem = E>,
{
    let (rows, outputs) = (linear.x.rows, linear.weight.rows);
    let (mut y, mut saved) =
        (Tensor::<Cpu<E>>::output(rows, outputs), Tensor::<Cpu<E>>::output(rows, outputs));
    let mut residual = residual.map(Tensor::<Cpu<E>>::pitched);
    Cpu::<E>::get()
        .linear_forward(LinearForward {
            x: Tensor::pitched(&linear.x).view(),
            weight: Tensor::<Cpu<E>, N>::pitched(&linear.weight).view().into(),
            bias: Some(Tensor::pitched(&linear.bias).view()),
            activation,
            residual: residual.as_mut().map(Tensor::view),
            pre_activation: Some(saved.view_mut()),
            y: y.view_mut(),
        })
        .unwrap();
    [y.read(), saved.read()]
}

fn forward_matches<E: Real, N: Number>()
where
    Cpu<E>: TestDevice<Elem = E>,
{
    for [inputs, outputs] in WIDTHS {
        for rows in counts_of_rows() {
            let linear = Linear::random([rows, inputs, outputs]);
            let linear = Linear { weight: rounded_to::<N>(&linear.weight), ..linear };
            let [y, saved] = forward::<E, N>(&linear, None, None);
            let what = format!("{rows} rows, {inputs} to {outputs}");
            assert_close(&what, &y, &linear.plain(), allowed::<E>());
            assert!(y == saved, "{what}");
        }
    }
}

#[test]
fn forward_matches_a_plain_computation_with_the_rounded_weight() {
    forward_matches::<f32, bf16>();
    forward_matches::<f32, f16>();
    forward_matches::<f64, bf16>();
    forward_matches::<f64, f16>();
}

fn is_finished<N: Number>() {
    for rows in [1, 5, 16, 40] {
        let linear = Linear::random([rows, 48, 70]);
        let residual = Random::new(6).matrix(rows, 70);
        let [y, saved] = forward::<f32, N>(&linear, Some(Activation::Relu), Some(&residual));
        let [plain, _] = forward::<f32, N>(&linear, None, None);
        assert!(saved == plain, "{rows} rows");
        let want = |r, c| f64::from((saved.at(r, c).max(0.0) + residual.at(r, c)) as f32);
        assert!(y == Matrix::from_fn(rows, 70, want), "{rows} rows");
    }
}

#[test]
fn bias_activation_and_residual_are_as_with_any_weight() {
    is_finished::<bf16>();
    is_finished::<f16>();
}

/// Numbers of `N`, whole multiples of `unit` up to 64 of them, with x whole: sums stay below 257·8·64 < 2²⁴ units, so
/// that no order of summation rounds them.
fn whole_numbers_are_exact<N: Number>(unit: f64) {
    for rows in counts_of_rows() {
        let mut random = Random::new(2);
        let (x, whole) = (random.whole(rows, 257, 8), random.whole(75, 257, 64));
        let weight = Matrix::from_fn(75, 257, |r, c| whole.at(r, c) * unit);
        assert!(weight == rounded_to::<N>(&weight), "the weights are numbers of this type");
        let linear = Linear { x, weight, bias: Matrix::filled(1, 75, 0.0) };
        assert!(forward::<f32, N>(&linear, None, None)[0] == linear.plain(), "{rows} rows");
    }
}

#[test]
fn subnormal_numbers_of_16_bits_count() {
    // The smallest f16, and up to 64 of it; bf16 has no such numbers, for its exponent is that of f32.
    whole_numbers_are_exact::<f16>(f64::from(1 << 24).recip());
}

#[test]
fn products_of_whole_numbers_are_exact() {
    whole_numbers_are_exact::<bf16>(1.0);
    whole_numbers_are_exact::<f16>(1.0);
    // The largest f16 is 65504.
    whole_numbers_are_exact::<f16>(512.0);
    whole_numbers_are_exact::<bf16>(2.0_f64.powi(100));
}

fn not_finite_marks_its_column<N: Number>() {
    for rows in [1, 6, 40] {
        for not_finite in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut linear = Linear::random([rows, 65, 33]);
            linear.weight.set(7, 40, not_finite);
            let [y, _] = forward::<f32, N>(&linear, None, None);
            assert!((0..rows).all(|r| (0..33).all(|c| y.at(r, c).is_finite() == (c != 7))));
            let mut linear = Linear::random([rows, 65, 33]);
            linear.x.set(rows - 1, 64, not_finite);
            let [y, _] = forward::<f32, N>(&linear, None, None);
            assert!((0..rows).all(|r| y.row(r).iter().all(|y| y.is_finite() == (r + 1 != rows))));
        }
    }
}

#[test]
fn what_is_not_finite_reaches_the_output() {
    not_finite_marks_its_column::<bf16>();
    not_finite_marks_its_column::<f16>();
}

fn input_backward<E: Real, N: Number>(dy: &Matrix, weight: &Matrix, before: &Matrix) -> Matrix
where
    Cpu<E>: TestDevice<Elem = E>,
{
    let mut dx = Tensor::<Cpu<E>>::pitched(before);
    Cpu::<E>::get()
        .linear_input_backward(LinearInputBackward {
            weight: Tensor::<Cpu<E>, N>::pitched(weight).view().into(),
            dy: Tensor::pitched(dy).view(),
            activation: None,
            write: Write::Add,
            dx: dx.view_mut(),
        })
        .unwrap();
    dx.read()
}

fn input_backward_matches<E: Real, N: Number>()
where
    Cpu<E>: TestDevice<Elem = E>,
{
    for [inputs, outputs] in WIDTHS {
        for rows in [1, 5, 17, 40] {
            let mut random = Random::new(3);
            let weight = rounded_to::<N>(&random.matrix(outputs, inputs));
            let (dy, before) = (random.matrix(rows, outputs), random.matrix(rows, inputs));
            let want = Matrix::from_fn(rows, inputs, |r, i| {
                before.at(r, i) + (0..outputs).map(|o| dy.at(r, o) * weight.at(o, i)).sum::<f64>()
            });
            let dx = input_backward::<E, N>(&dy, &weight, &before);
            assert_close(&format!("{rows} rows, {inputs} to {outputs}"), &dx, &want, allowed::<E>());
        }
    }
}

#[test]
fn the_gradient_of_the_input_matches_a_plain_computation() {
    input_backward_matches::<f32, bf16>();
    input_backward_matches::<f32, f16>();
    input_backward_matches::<f64, bf16>();
    input_backward_matches::<f64, f16>();
}

#[test]
fn a_part_of_the_rows_is_the_layer_of_those_outputs() {
    let linear = Linear::random([3, 20, 90]);
    let mut y = Tensor::<Cpu<f32>>::output(3, 41);
    let mut weight = Tensor::<Cpu<f32>, bf16>::pitched(&linear.weight);
    Cpu::<f32>::get()
        .linear_forward(LinearForward {
            x: Tensor::rows(&linear.x).view(),
            weight: qformer::tensor::Weight::from(weight.view()).row_range(33..74),
            bias: Some(Tensor::rows(&linear.bias).view().columns(33..74)),
            activation: None,
            residual: None,
            pre_activation: None,
            y: y.view_mut(),
        })
        .unwrap();
    let whole = forward::<f32, bf16>(&linear, None, None)[0].clone();
    assert_eq!(y.read(), Matrix::from_fn(3, 41, |r, c| whole.at(r, 33 + c)));
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for rows in [1, 5, 10, 16, 40] {
        let linear = Linear::random([rows, 704, 259]);
        let dy = Random::new(5).matrix(rows, 259);
        assert_independent_of_threads(|| {
            let [y, saved] = forward::<f32, f16>(&linear, Some(Activation::Gelu), None);
            let [of_bf16, _] = forward::<f32, bf16>(&linear, None, None);
            let dx = input_backward::<f32, bf16>(&dy, &linear.weight, &linear.x);
            vec![y, saved, of_bf16, dx]
        });
    }
}
