use crate::common::{Matrix, Random, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, assert_rounded, rounded, tolerance};
use qformer::device::{Cpu, Cuda, Write};
use qformer::layers::Keep;
use qformer::layers::rms_norm::{RmsNorm, RmsNormActs};
use qformer::memory::Arena;
use qformer::ops::rms_norm::{RmsNormBackward, RmsNormForward, RmsNormGradients, RmsNormOp};

const EPSILON: f64 = 1e-6;

/// Rows, width: language models' widths, one vector, fewer and more columns than registers hold, one, primes.
const SHAPES: [[usize; 2]; 8] =
    [[5, 2048], [3, 4096], [19, 512], [3, 6152], [1, 2], [7, 31], [131, 97], [1, 8]];

#[derive(Clone)]
struct Norm {
    epsilon: f64,
    scale: f64,
    x: Matrix,
    weight: Matrix,
}

struct Output {
    /// 1/√(mean(x²) + ε) of each row [rows, 1]
    statistics: Matrix,
    y: Matrix,
}

struct Gradient {
    x: Matrix,
    weight: Matrix,
}

#[derive(Clone, Copy, PartialEq)]
enum Weight {
    Trained,
    Frozen,
}

impl Norm {
    /// Numbers that `D` holds.
    fn random<D: TestDevice>([rows, width]: [usize; 2]) -> Self {
        let mut random = Random::new(1);
        let mut matrix = |rows| rounded::<D>(&random.matrix(rows, width));
        Self { epsilon: EPSILON, scale: 1.0, x: matrix(rows), weight: matrix(1) }
    }

    fn plain(&self) -> Output {
        let (rows, width) = (self.x.rows, self.x.cols);
        let statistics = Matrix::from_fn(rows, 1, |r, _| {
            let mean = self.x.row(r).iter().map(|x| x * x).sum::<f64>() / width as f64;
            (mean + self.epsilon).sqrt().recip()
        });
        let y = Matrix::from_fn(rows, width, |r, c| {
            self.scale * self.weight.at(0, c) * self.x.at(r, c) * statistics.at(r, 0)
        });
        Output { statistics, y }
    }

    fn forward<D: TestDevice + RmsNormOp>(&self) -> Output {
        let mut statistics = Tensor::<D, D::Stat>::output(self.x.rows, 1);
        let y = self.forward_to::<D>(Some(&mut statistics));
        Output { statistics: statistics.read(), y }
    }

    fn forward_to<D: TestDevice + RmsNormOp>(&self, statistics: Option<&mut Tensor<D, D::Stat>>) -> Matrix {
        let mut y = Tensor::<D>::output(self.x.rows, self.x.cols);
        D::get()
            .rms_norm_forward(RmsNormForward {
                epsilon: self.epsilon,
                scale: self.scale,
                x: Tensor::pitched(&self.x).view(),
                weight: Tensor::pitched(&self.weight).view(),
                statistics: statistics.map(Tensor::view_mut),
                y: y.view_mut(),
            })
            .unwrap();
        y.read()
    }

    /// Gradients at what a forward pass saved: dx in the place of `dx`, and dγ on top of `before`, a row of numbers.
    fn backward_from<D: TestDevice + RmsNormOp>(
        &self,
        statistics: &Matrix,
        dy: &Matrix,
        (write, dx): (Write, &Matrix),
        (weight, before): (Weight, &Matrix),
    ) -> Gradient {
        let (rows, width) = (dy.rows, dy.cols);
        let mut dx = Tensor::<D>::pitched(dx);
        let mut dweight = Tensor::<D, D::Stat>::pitched(before);
        let mut partials = Tensor::<D, D::Stat>::output(D::get().rms_norm_partials(rows), width);
        D::get()
            .rms_norm_backward(RmsNormBackward {
                scale: self.scale,
                x: Tensor::pitched(&self.x).view(),
                weight: Tensor::pitched(&self.weight).view(),
                statistics: Tensor::<D, D::Stat>::pitched(statistics).view(),
                dy: Tensor::pitched(dy).view(),
                write,
                dx: dx.view_mut(),
                gradients: (weight == Weight::Trained)
                    .then(|| RmsNormGradients { partials: partials.view_mut(), dweight: dweight.view_mut() }),
            })
            .unwrap();
        Gradient { x: dx.read(), weight: dweight.read() }
    }

    /// dx written over what is no number, and dγ on top of `before`.
    fn backward<D: TestDevice + RmsNormOp>(&self, dy: &Matrix, before: &Matrix) -> Gradient {
        let nan = Matrix::filled(dy.rows, dy.cols, f64::NAN);
        let statistics = self.forward::<D>().statistics;
        self.backward_from::<D>(&statistics, dy, (Write::Replace, &nan), (Weight::Trained, before))
    }
}

fn forward_matches<D: TestDevice + RmsNormOp>() {
    for shape in SHAPES {
        let norm = Norm { scale: 0.75, ..Norm::random::<D>(shape) };
        let (got, want) = (norm.forward::<D>(), norm.plain());
        // Statistics are in single precision on all devices.
        assert_close("statistics", &got.statistics, &want.statistics, tolerance::<f32>());
        assert_rounded::<D>("y", &got.y, &want.y);
        assert_eq!(norm.forward_to::<D>(None).bits(), got.y.bits(), "nothing saved, {shape:?}");
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

fn epsilon_counts_on<D: TestDevice + RmsNormOp>() {
    for width in [8, 31, 2048, 6152] {
        let mut norm = Norm { epsilon: 0.01, ..Norm::random::<D>([3, width]) };
        // A row of zeros, whose inverse is that of ε alone, and one of a root mean square near ε's root.
        for c in 0..width {
            norm.x.set(0, c, 0.0);
            norm.x.set(1, c, norm.x.at(1, c) / 8.0);
        }
        let (got, want) = (norm.forward::<D>(), norm.plain());
        assert_close("inverse", &got.statistics, &want.statistics, tolerance::<f32>());
        assert_rounded::<D>("y", &got.y, &want.y);
    }
}

#[test]
fn epsilon_is_added_to_the_mean_of_squares() {
    epsilon_counts_on::<Cpu<f64>>();
    epsilon_counts_on::<Cpu<f32>>();
    epsilon_counts_on::<Cuda>();
}

#[test]
fn whole_numbers_are_normalised_exactly_on_the_gpu() {
    // All of a row are 4 or −4: the inverse is 1/4, but for what ε adds, which rounds away.
    for width in [2048, 6152, 62] {
        let sign = |r: usize, c: usize| if (r + c).is_multiple_of(3) { 1.0 } else { -1.0 };
        let norm = Norm {
            epsilon: 1e-12,
            scale: 0.5,
            x: Matrix::from_fn(5, width, |r, c| 4.0 * sign(r, c)),
            weight: Matrix::filled(1, width, 6.0),
        };
        let Output { statistics, y } = norm.forward::<Cuda>();
        assert_eq!(statistics, Matrix::filled(5, 1, 0.25));
        assert_eq!(y, Matrix::from_fn(5, width, |r, c| 3.0 * sign(r, c)));
    }
}

#[test]
fn backward_matches_finite_differences() {
    for shape in [[3, 7], [1, 2], [19, 5], [2, 33]] {
        let norm = Norm { epsilon: 0.1, scale: 1.5, ..Norm::random::<Cpu<f64>>(shape) };
        let dy = Random::new(2).matrix(shape[0], shape[1]);
        let gradient = norm.backward::<Cpu<f64>>(&dy, &Matrix::filled(1, shape[1], 0.0));
        let loss = |norm: &Norm| norm.forward::<Cpu<f64>>().y.dot(&dy);
        assert_gradient("dx", &norm.x, &gradient.x, |x| loss(&Norm { x: x.clone(), ..norm.clone() }));
        assert_gradient("dweight", &norm.weight, &gradient.weight, |weight| {
            loss(&Norm { weight: weight.clone(), ..norm.clone() })
        });
    }
}

#[test]
fn single_precision_gradients_are_those_of_double_precision() {
    let norm = Norm { scale: 0.75, ..Norm::random::<Cpu<f32>>([37, 768]) };
    let mut random = Random::new(3);
    let (dy, before) = (random.matrix(37, 768), random.matrix(1, 768));
    let (got, want) = (norm.backward::<Cpu<f32>>(&dy, &before), norm.backward::<Cpu<f64>>(&dy, &before));
    assert_close("dx", &got.x, &want.x, tolerance::<f32>());
    assert_close("dweight", &got.weight, &want.weight, tolerance::<f32>());
}

#[test]
fn the_gpu_has_the_same_gradients() {
    // More rows than a simulated GPU has blocks.
    for shape @ [rows, width] in SHAPES.into_iter().chain([[301, 16], [301, 6152]]) {
        let norm = Norm { scale: 0.75, ..Norm::random::<Cuda>(shape) };
        let mut random = Random::new(6);
        let (dy, dx) =
            (rounded::<Cuda>(&random.matrix(rows, width)), rounded::<Cuda>(&random.matrix(rows, width)));
        let before = random.matrix(1, width);
        let statistics = norm.forward::<Cuda>().statistics;
        for write in [Write::Replace, Write::Add] {
            let (to, weight) = ((write, &dx), (Weight::Trained, &before));
            let got = norm.backward_from::<Cuda>(&statistics, &dy, to, weight);
            let want = norm.backward_from::<Cpu<f64>>(&statistics, &dy, to, weight);
            assert_rounded::<Cuda>("dx", &got.x, &want.x);
            assert_close("dweight", &got.weight, &want.weight, tolerance::<f32>());
            let again = norm.backward_from::<Cuda>(&statistics, &dy, to, weight);
            let bits = |g: &Gradient| [&g.x, &g.weight].map(Matrix::bits);
            assert_eq!(bits(&got), bits(&again), "{shape:?}");
        }
    }
}

fn frozen_weights_leave_no_gradient<D: TestDevice + RmsNormOp>() {
    for shape @ [rows, width] in SHAPES {
        let norm = Norm::random::<D>(shape);
        let mut random = Random::new(8);
        let (dy, before) = (rounded::<D>(&random.matrix(rows, width)), random.matrix(1, width));
        let statistics = norm.forward::<D>().statistics;
        let nan = Matrix::filled(rows, width, f64::NAN);
        let [trained, frozen] = [Weight::Trained, Weight::Frozen].map(|weight| {
            norm.backward_from::<D>(&statistics, &dy, (Write::Replace, &nan), (weight, &before))
        });
        assert_eq!(trained.x.bits(), frozen.x.bits(), "{shape:?}");
        let untouched = Matrix::from_fn(1, width, |r, c| f64::from(before.at(r, c) as f32));
        assert_close("dweight", &frozen.weight, &untouched, 0.0);
    }
}

#[test]
fn the_input_s_gradient_is_the_same_where_the_weight_is_frozen() {
    frozen_weights_leave_no_gradient::<Cpu<f32>>();
    frozen_weights_leave_no_gradient::<Cuda>();
}

#[test]
fn gradients_are_added_to_what_was_there() {
    let norm = Norm::random::<Cpu<f64>>([6, 11]);
    let mut random = Random::new(4);
    let (dy, dx, before) = (random.matrix(6, 11), random.matrix(6, 11), random.matrix(1, 11));
    let fresh = norm.backward::<Cpu<f64>>(&dy, &Matrix::filled(1, 11, 0.0));
    let statistics = norm.forward::<Cpu<f64>>().statistics;
    let added =
        norm.backward_from::<Cpu<f64>>(&statistics, &dy, (Write::Add, &dx), (Weight::Trained, &before));
    assert_close("dx", &added.x.minus(&dx), &fresh.x, tolerance::<f64>());
    assert_close("dweight", &added.weight.minus(&before), &fresh.weight, tolerance::<f64>());
}

fn nan_reaches<D: TestDevice + RmsNormOp>() {
    for width in [40, 2048, 33, 6152] {
        let mut norm = Norm::random::<D>([3, width]);
        norm.x.set(1, 7, f64::NAN);
        let y = norm.forward::<D>().y;
        assert!((0..3).all(|r| y.row(r).iter().all(|y| y.is_nan() == (r == 1))));
        let mut dy = rounded::<D>(&Random::new(7).matrix(3, width));
        dy.set(2, 5, f64::NAN);
        let gradient = Norm::random::<D>([3, width]).backward::<D>(&dy, &Matrix::filled(1, width, 0.0));
        assert!((0..3).all(|r| gradient.x.row(r).iter().all(|d| d.is_nan() == (r == 2))));
        assert!((0..width).all(|c| gradient.weight.at(0, c).is_nan() == (c == 5)));
    }
}

#[test]
fn nan_reaches_the_output() {
    nan_reaches::<Cpu<f32>>();
    nan_reaches::<Cuda>();
}

#[test]
fn a_layer_s_weight_has_the_norm_s_name() {
    let RmsNorm { weight, epsilon, scale } = RmsNorm::spec("model.norm", 31, 1e-5);
    let names: Vec<_> = weight.parts.iter().map(|part| (part.name.as_str(), &part.shape[..])).collect();
    assert_eq!(names, [("model.norm.weight", &[31][..])]);
    assert_eq!((epsilon, scale), (1e-5, 1.0));
}

#[test]
fn a_layer_is_its_operation() {
    let (norm, cpu) = (Norm { scale: 0.75, ..Norm::random::<Cpu<f32>>([7, 31]) }, Cpu::<f32>::get());
    let mut random = Random::new(9);
    let (dy, dx, before) = (random.matrix(7, 31), random.matrix(7, 31), random.matrix(1, 31));
    let Norm { epsilon, scale, .. } = norm;
    let (mut x, mut dy_tensor) = (Tensor::pitched(&norm.x), Tensor::pitched(&dy));
    let mut weight = Tensor::pitched(&norm.weight);
    let layer = RmsNorm { weight: weight.weight(), epsilon, scale };
    let want = norm.forward::<Cpu<f32>>();

    let mut y = Tensor::output(7, 31);
    layer.forward(cpu, x.view(), y.view_mut()).unwrap();
    assert_eq!(y.read(), want.y);
    let mut arena = Arena::planned(cpu, "a test", |cursor| {
        RmsNormActs::carve(cursor, 7, Keep::ForBackward);
    })
    .unwrap();
    assert!(RmsNormActs::carve(&mut arena.cursor(), 7, Keep::Nothing).is_none());
    let mut acts = RmsNormActs::carve(&mut arena.cursor(), 7, Keep::ForBackward).unwrap();
    let mut y = Tensor::output(7, 31);
    layer.training_forward(cpu, x.view(), Some(&mut acts), y.view_mut()).unwrap();
    assert_eq!(y.read(), want.y);

    let to = (Write::Add, &dx);
    let want = norm.backward_from::<Cpu<f32>>(&want.statistics, &dy, to, (Weight::Trained, &before));
    let mut frozen = Tensor::pitched(&dx);
    let to = (Write::Add, frozen.view_mut());
    layer.input_backward(cpu, x.view(), &acts, dy_tensor.view(), to).unwrap();
    assert_eq!(frozen.read(), want.x);
    let (mut trained, mut dweight) = (Tensor::pitched(&dx), Tensor::pitched(&before));
    let mut partials = Tensor::output(cpu.rms_norm_partials(7), 31);
    let mut gradients = RmsNorm { weight: dweight.view_mut(), epsilon, scale };
    let to = (Write::Add, trained.view_mut());
    let dy = dy_tensor.view();
    layer.backward(cpu, x.view(), &acts, dy, &mut gradients, &mut partials.view_mut(), to).unwrap();
    assert_eq!(trained.read(), want.x);
    assert_eq!(dweight.read(), want.weight);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    // More rows than 64 tasks of 16.
    let norm = Norm::random::<Cpu<f32>>([1103, 97]);
    let dy = Random::new(5).matrix(1103, 97);
    assert_independent_of_threads(|| {
        let Output { statistics, y } = norm.forward::<Cpu<f32>>();
        let gradient = norm.backward::<Cpu<f32>>(&dy, &norm.weight);
        vec![statistics, y, gradient.x, gradient.weight]
    });
}
