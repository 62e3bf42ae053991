mod activation;
mod gpu;
mod stored;

use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::config::Activation;
use qformer::device::{Cpu, Cuda, Write};
use qformer::ops::linear::{LinearBackward, LinearForward, LinearOp};
use qformer::tensor::Packing;

/// A way of storing a weight.
type Store<D> = fn(&Matrix) -> Tensor<D>;

/// One linear layer.
#[derive(Clone)]
struct Linear {
    x: Matrix,
    weight: Matrix,
    bias: Matrix,
}

/// Rows, inputs, outputs: the model's widths at fewer rows, one of each, primes, and both sides of
/// the bounds of a panel (64 outputs) and of a chunk of rows (1 MiB).
const SHAPES: [[usize; 3]; 8] = [
    [257, 1408, 96],
    [32, 768, 130],
    [1, 1, 1],
    [1, 96, 65],
    [13, 7, 63],
    [31, 37, 41],
    [5, 3, 64],
    [401, 704, 70],
];

/// Largest relative distance of a product on AMX. Two bf16 are a number but for 2⁻¹⁷ of it, and lo·lo,
/// which is left out, is up to 2⁻¹⁶ of a product: 3e-5 together at most. They are of either sign and
/// mostly far smaller; 4e-6 is their root mean square.
const SPLIT_TOLERANCE: f64 = 1e-5;

/// Whether there is AMX to test.
fn has_amx() -> bool {
    let has = Cpu::<f32>::new().has_amx();
    if !has {
        eprintln!("skipped: the processor has no AMX, or the system does not permit it");
    }
    has
}

impl Linear {
    fn random([rows, inputs, outputs]: [usize; 3]) -> Self {
        let mut random = Random::new(1);
        Self {
            x: random.matrix(rows, inputs),
            weight: random.matrix(outputs, inputs),
            bias: random.matrix(1, outputs),
        }
    }

    /// The same in numbers that `D` holds.
    fn rounded<D: TestDevice>(&self) -> Self {
        Self { x: rounded::<D>(&self.x), weight: rounded::<D>(&self.weight), bias: rounded::<D>(&self.bias) }
    }

    fn plain(&self) -> Matrix {
        Matrix::from_fn(self.x.rows, self.weight.rows, |r, o| {
            let product: f64 = self.x.row(r).iter().zip(self.weight.row(o)).map(|(x, w)| x * w).sum();
            product + self.bias.at(0, o)
        })
    }

    fn forward<D: TestDevice + LinearOp>(&self, store: Store<D>, bias: Option<&Matrix>) -> Matrix {
        let mut bias = bias.map(Tensor::pitched);
        let mut y = Tensor::<D>::output(self.x.rows, self.weight.rows);
        D::get()
            .linear_forward(LinearForward {
                x: Tensor::pitched(&self.x).view(),
                weight: store(&self.weight).weight(),
                bias: bias.as_mut().map(Tensor::view),
                activation: None,
                residual: None,
                pre_activation: None,
                y: y.view_mut(),
            })
            .unwrap();
        y.read()
    }

    /// x·Wᵀ + b, and its activation plus `residual`.
    fn forward_activated<D: TestDevice + LinearOp>(
        &self,
        store: Store<D>,
        activation: Activation,
        residual: &Matrix,
    ) -> [Matrix; 2] {
        let (rows, outputs) = (self.x.rows, self.weight.rows);
        let (mut y, mut saved) = (Tensor::<D>::output(rows, outputs), Tensor::<D>::output(rows, outputs));
        D::get()
            .linear_forward(LinearForward {
                x: Tensor::pitched(&self.x).view(),
                weight: store(&self.weight).weight(),
                bias: Some(Tensor::pitched(&self.bias).view()),
                activation: Some(activation),
                residual: Some(Tensor::pitched(residual).view()),
                pre_activation: Some(saved.view_mut()),
                y: y.view_mut(),
            })
            .unwrap();
        [saved.read(), y.read()]
    }

    /// dx, dW and db, each on top of what the last three arguments hold.
    fn backward<D: TestDevice + LinearOp>(&self, dy: &Matrix, write: Write, before: &Linear) -> Linear {
        let mut dx = Tensor::<D>::pitched(&before.x);
        let mut dweight = Tensor::<D, D::Stat>::pitched(&before.weight);
        let mut dbias = Tensor::<D, D::Stat>::pitched(&before.bias);
        D::get()
            .linear_backward(LinearBackward {
                x: Tensor::pitched(&self.x).view(),
                weight: Tensor::pitched(&self.weight).weight(),
                dy: Tensor::pitched(dy).view(),
                activation: None,
                dx: Some((write, dx.view_mut())),
                dweight: dweight.view_mut(),
                dbias: Some(dbias.view_mut()),
            })
            .unwrap();
        Linear { x: dx.read(), weight: dweight.read(), bias: dbias.read() }
    }
}

fn forward_matches<D: TestDevice + LinearOp>() {
    for shape in SHAPES {
        let linear = Linear::random(shape).rounded::<D>();
        let want = linear.plain();
        let stores: Vec<Store<D>> = D::weight_stores();
        for store in stores {
            assert_rounded::<D>(&format!("{shape:?}"), &linear.forward(store, Some(&linear.bias)), &want);
        }
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

fn activation_saves_its_input<D: TestDevice + LinearOp>(store: Store<D>, tolerance: f64) {
    let linear = Linear::random([33, 48, 70]);
    let mut random = Random::new(6);
    let residual = random.matrix(33, 70);
    let [saved, y] = linear.forward_activated::<D>(store, Activation::Relu, &residual);
    assert_close("saved", &saved, &linear.plain(), tolerance);
    let want = |r, c| D::round(D::round(saved.at(r, c).max(0.0)) + D::round(residual.at(r, c)));
    assert_eq!(y, Matrix::from_fn(y.rows, y.cols, want));
}

#[test]
fn a_fused_activation_saves_what_it_is_applied_to() {
    activation_saves_its_input::<Cpu<f64>>(Tensor::panels, tolerance::<f64>());
    if has_amx() {
        activation_saves_its_input::<Cpu<f32>>(Tensor::split_panels, SPLIT_TOLERANCE);
    }
}

fn a_part_is_a_layer<D: TestDevice + LinearOp>(store: Store<D>, tolerance: f64) {
    let linear = Linear::random([9, 20, 200]);
    let mut y = Tensor::<D>::output(9, 100);
    D::get()
        .linear_forward(LinearForward {
            x: Tensor::rows(&linear.x).view(),
            weight: store(&linear.weight).weight().row_range(64..164),
            bias: Some(Tensor::rows(&linear.bias).view().columns(64..164)),
            activation: None,
            residual: None,
            pre_activation: None,
            y: y.view_mut(),
        })
        .unwrap();
    let whole = linear.plain();
    let want = Matrix::from_fn(9, 100, |r, c| whole.at(r, 64 + c));
    assert_close("part", &y.read(), &want, tolerance);
}

#[test]
fn a_part_of_the_panels_is_the_layer_of_those_outputs() {
    a_part_is_a_layer::<Cpu<f64>>(Tensor::panels, tolerance::<f64>());
    if has_amx() {
        a_part_is_a_layer::<Cpu<f32>>(Tensor::split_panels, SPLIT_TOLERANCE);
    }
}

#[test]
fn split_panels_match_a_plain_computation() {
    if !has_amx() {
        return;
    }
    for shape in SHAPES.into_iter().chain([[70, 3072, 96], [64, 64, 32]]) {
        let linear = Linear::random(shape);
        let y = linear.forward::<Cpu<f32>>(Tensor::split_panels, Some(&linear.bias));
        assert_close(&format!("{shape:?}"), &y, &linear.plain(), SPLIT_TOLERANCE);
    }
}

fn whole_numbers_are_exact<D: TestDevice + LinearOp>() {
    let mut random = Random::new(2);
    // Sums stay below 257·8·8 < 2²⁴, so no precision rounds them.
    let mut whole = |rows, cols| Matrix::from_fn(rows, cols, |_, _| random.below(17) as f64 - 8.0);
    let linear = Linear { x: whole(43, 257), weight: whole(131, 257), bias: whole(1, 131) };
    let want = Matrix::from_fn(43, 131, |r, o| {
        let pairs = linear.x.row(r).iter().zip(linear.weight.row(o));
        pairs.map(|(&x, &w)| x as i64 * w as i64).sum::<i64>() as f64
    });
    for store in D::weight_stores() {
        assert_eq!(linear.forward(store, None), rounded::<D>(&want));
    }
}

#[test]
fn products_of_whole_numbers_are_exact() {
    whole_numbers_are_exact::<Cpu<f64>>();
    whole_numbers_are_exact::<Cpu<f32>>();
    whole_numbers_are_exact::<Cuda>();
}

#[test]
fn backward_matches_finite_differences() {
    for shape in [[5, 7, 6], [1, 1, 1], [3, 70, 2], [2, 3, 67]] {
        let linear = Linear::random(shape);
        let mut random = Random::new(3);
        let dy = random.matrix(shape[0], shape[2]);
        let zeros = |m: &Matrix| Matrix::filled(m.rows, m.cols, 0.0);
        let before = Linear {
            x: Matrix::filled(shape[0], shape[1], f64::NAN),
            weight: zeros(&linear.weight),
            bias: zeros(&linear.bias),
        };
        let gradient = linear.backward::<Cpu<f64>>(&dy, Write::Replace, &before);
        let loss = |linear: &Linear| linear.forward::<Cpu<f64>>(Tensor::rows, Some(&linear.bias)).dot(&dy);
        assert_gradient("dx", &linear.x, &gradient.x, |x| loss(&Linear { x: x.clone(), ..linear.clone() }));
        assert_gradient("dweight", &linear.weight, &gradient.weight, |weight| {
            loss(&Linear { weight: weight.clone(), ..linear.clone() })
        });
        assert_gradient("dbias", &linear.bias, &gradient.bias, |bias| {
            loss(&Linear { bias: bias.clone(), ..linear.clone() })
        });
    }
}

/// The plain gradients at the model's widths, where blocks and chunks meet.
fn backward_matches<D: TestDevice + LinearOp>() {
    let [rows, inputs, outputs] = [401, 140, 770];
    let linear = Linear::random([rows, inputs, outputs]);
    let mut random = Random::new(4);
    let dy = random.matrix(rows, outputs);
    let before = Linear {
        x: random.matrix(rows, inputs),
        weight: random.matrix(outputs, inputs),
        bias: random.matrix(1, outputs),
    };
    let after = linear.backward::<D>(&dy, Write::Add, &before);
    let sum = |n: usize, each: &dyn Fn(usize) -> f64| (0..n).map(each).sum::<f64>();
    let dx = Matrix::from_fn(rows, inputs, |r, i| {
        before.x.at(r, i) + sum(outputs, &|o| dy.at(r, o) * linear.weight.at(o, i))
    });
    let dweight = Matrix::from_fn(outputs, inputs, |o, i| {
        before.weight.at(o, i) + sum(rows, &|r| dy.at(r, o) * linear.x.at(r, i))
    });
    let dbias = Matrix::from_fn(1, outputs, |_, o| before.bias.at(0, o) + sum(rows, &|r| dy.at(r, o)));
    assert_rounded::<D>("dx", &after.x, &dx);
    assert_rounded::<D>("dweight", &after.weight, &dweight);
    assert_rounded::<D>("dbias", &after.bias, &dbias);
}

#[test]
fn gradients_are_added_to_what_was_there() {
    backward_matches::<Cpu<f64>>();
    backward_matches::<Cpu<f32>>();
}

/// The bits must be split exactly: 17 of x, 8 of w, so no part of a product is left out.
#[test]
fn split_products_of_whole_numbers_are_exact() {
    if !has_amx() {
        return;
    }
    let mut random = Random::new(7);
    let mut whole = |rows, cols, bound: usize| {
        Matrix::from_fn(rows, cols, |_, _| random.below(2 * bound + 1) as f64 - bound as f64)
    };
    // Sums stay below 63·2¹⁶·4 < 2²⁴, so that `f32` holds every one of them, in any order.
    let (wide, narrow) = (whole(43, 63, 1 << 16), whole(70, 63, 4));
    for (x, weight) in [(&wide, &narrow), (&narrow, &wide)] {
        let linear = Linear { x: x.clone(), weight: weight.clone(), bias: Matrix::filled(1, 1, 0.0) };
        let want = Matrix::from_fn(x.rows, weight.rows, |r, o| {
            let pairs = x.row(r).iter().zip(weight.row(o));
            pairs.map(|(&x, &w)| x as i64 * w as i64).sum::<i64>() as f64
        });
        assert_eq!(linear.forward::<Cpu<f32>>(Tensor::split_panels, None), want);
    }
}

#[test]
fn a_weight_may_be_written_in_any_parts() {
    if !has_amx() {
        return;
    }
    let linear = Linear::random([3, 75, 70]);
    let at_once = linear.forward::<Cpu<f32>>(|w| Tensor::frozen(w, Packing::SplitPanels, usize::MAX), None);
    assert_close("at once", &at_once, &linear.forward::<Cpu<f32>>(Tensor::panels, None), SPLIT_TOLERANCE);
    let in_parts: [Store<Cpu<f32>>; 4] = [
        |w| Tensor::frozen(w, Packing::SplitPanels, 1),
        |w| Tensor::frozen(w, Packing::SplitPanels, 7),
        |w| Tensor::frozen(w, Packing::SplitPanels, 75),
        |w| Tensor::frozen(w, Packing::SplitPanels, 1001),
    ];
    for store in in_parts {
        assert_eq!(linear.forward(store, None), at_once);
    }
}

#[test]
#[should_panic(expected = "for a device that has AMX")]
fn a_split_weight_is_refused_without_amx() {
    Linear::random([2, 3, 4]).forward::<Cpu<f64>>(Tensor::split_panels, None);
}

fn nan_marks_its_row<D: TestDevice + LinearOp>(store: Store<D>, not_finite: f64) {
    let mut linear = Linear::random([40, 33, 70]);
    linear.x.set(2, 5, not_finite);
    let y = linear.forward(store, None);
    assert!((0..40).all(|r| y.row(r).iter().all(|y| y.is_nan() == (r == 2))));
}

#[test]
fn nan_reaches_the_output() {
    nan_marks_its_row::<Cuda>(Tensor::pitched, f64::NAN);
    nan_marks_its_row::<Cpu<f32>>(Tensor::panels, f64::NAN);
    if has_amx() {
        nan_marks_its_row::<Cpu<f32>>(Tensor::split_panels, f64::NAN);
        nan_marks_its_row::<Cpu<f32>>(Tensor::split_panels, -f64::NAN);
        nan_marks_its_row::<Cpu<f32>>(Tensor::split_panels, f64::INFINITY);
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let linear = Linear::random([401, 704, 130]);
    let dy = Random::new(5).matrix(401, 130);
    assert_independent_of_threads(|| {
        let [saved, y] =
            linear.forward_activated::<Cpu<f32>>(Tensor::panels, Activation::Gelu, &linear.plain());
        let gradient = linear.backward::<Cpu<f32>>(&dy, Write::Replace, &linear);
        vec![saved, y, gradient.x, gradient.weight, gradient.bias]
    });
    if has_amx() {
        assert_independent_of_threads(|| {
            linear
                .forward_activated::<Cpu<f32>>(Tensor::split_panels, Activation::Gelu, &linear.plain())
                .into()
        });
    }
}

#[test]
#[should_panic(expected = "weight [out, in] against x [rows, in]")]
fn a_weight_of_another_width_is_refused() {
    let mut linear = Linear::random([2, 3, 4]);
    linear.weight = Matrix::filled(4, 5, 1.0);
    linear.forward::<Cpu<f32>>(Tensor::rows, None);
}
