use crate::common::{Matrix, Random, assert_close, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, rounded, tolerance};
use qformer::device::{Cpu, Cuda};
use qformer::ops::adamw::{AdamW, AdamWOp, AdamWStep};

const CONSTANTS: AdamW = AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.05, max_norm: None };

/// Parameters, moments, and the rounded parameters.
#[derive(Clone, PartialEq)]
struct State {
    parameters: Matrix,
    first_moment: Matrix,
    second_moment: Matrix,
    weights: Matrix,
}

impl State {
    fn new(size: usize) -> Self {
        let zeros = Matrix::filled(1, size, 0.0);
        Self {
            parameters: Random::new(1).matrix(1, size),
            first_moment: zeros.clone(),
            second_moment: zeros.clone(),
            weights: zeros,
        }
    }

    /// PyTorch's own steps, one by one.
    fn plain(&mut self, constants: AdamW, gradients: &[Matrix], decayed: usize) {
        let AdamW { beta1, beta2, epsilon, weight_decay, max_norm } = constants;
        for (t, gradient) in (1..).zip(gradients) {
            let norm = gradient.dot(gradient).sqrt();
            let clip = max_norm.map_or(1.0, |max_norm| (max_norm / (norm + 1e-6)).min(1.0));
            let (corrected1, corrected2) = (1.0 - beta1.powi(t), 1.0 - beta2.powi(t));
            for (i, g) in gradient.values.iter().map(|g| g * clip).enumerate() {
                let p = &mut self.parameters.values[i];
                let (m, v) = (&mut self.first_moment.values[i], &mut self.second_moment.values[i]);
                if i < decayed {
                    *p *= 1.0 - rate(t) * weight_decay;
                }
                *m += (g - *m) * (1.0 - beta1);
                *v = *v * beta2 + (1.0 - beta2) * g * g;
                *p -= rate(t) / corrected1 * *m / ((*v).sqrt() / corrected2.sqrt() + epsilon);
            }
        }
    }

    fn step<D: TestDevice + AdamWOp>(&mut self, constants: AdamW, t: i32, step: &Gradient, decayed: usize) {
        let schedule = [rate(t), 1.0 - constants.beta1.powi(t), 1.0 - constants.beta2.powi(t)];
        let schedule = Matrix::from_fn(1, 3, |_, c| schedule[c]);
        let mut parameters = Tensor::<D, D::Stat>::pitched(&self.parameters);
        let mut first_moment = Tensor::<D, D::Stat>::pitched(&self.first_moment);
        let mut second_moment = Tensor::<D, D::Stat>::pitched(&self.second_moment);
        let mut weights = Tensor::<D>::pitched(&self.weights);
        D::get()
            .adamw_step(AdamWStep {
                constants,
                schedule: Tensor::<D, D::Stat>::pitched(&schedule).view(),
                gradient: Tensor::<D, D::Stat>::pitched(&step.gradient).view(),
                norm: Tensor::<D, D::Stat>::pitched(&Matrix::filled(1, 1, step.norm)).view(),
                decayed,
                parameters: parameters.view_mut(),
                first_moment: first_moment.view_mut(),
                second_moment: second_moment.view_mut(),
                weights: Some(weights.view_mut()),
            })
            .unwrap();
        self.parameters = parameters.read();
        self.first_moment = first_moment.read();
        self.second_moment = second_moment.read();
        self.weights = weights.read();
    }

    fn steps<D: TestDevice + AdamWOp>(&mut self, constants: AdamW, gradients: &[Matrix], decayed: usize) {
        for (t, gradient) in (1..).zip(gradients) {
            self.step::<D>(constants, t, &Gradient::of(gradient), decayed);
        }
    }
}

struct Gradient {
    gradient: Matrix,
    norm: f64,
}

impl Gradient {
    fn of(gradient: &Matrix) -> Self {
        Self { gradient: gradient.clone(), norm: gradient.dot(gradient).sqrt() }
    }
}

/// A learning rate that changes from step to step.
fn rate(t: i32) -> f64 {
    1e-2 / f64::from(t)
}

fn gradients(steps: usize, size: usize) -> Vec<Matrix> {
    let mut random = Random::new(2);
    (0..steps).map(|_| random.matrix(1, size)).collect()
}

fn matches<D: TestDevice + AdamWOp>(tolerance: f64) {
    // One, less than a quad, a prime with a boundary of decay inside a quad, all and none that decay, and
    // more than all threads of a small GPU have at a time.
    let cases = [(1, 1), (3, 0), (1031, 518), (64, 64), (64, 0), (300_007, 200_001)];
    // An ε that counts beside the root of the second moment, too.
    for (max_norm, epsilon) in [(None, 1e-8), (Some(0.5), 1e-2), (Some(1e9), 1e-8)] {
        let constants = AdamW { max_norm, epsilon, ..CONSTANTS };
        for (size, decayed) in cases {
            let gradients = gradients(if size > 2000 { 1 } else { 5 }, size);
            let (mut got, mut want) = (State::new(size), State::new(size));
            got.steps::<D>(constants, &gradients, decayed);
            want.plain(constants, &gradients, decayed);
            // Steps apart, not parameters: those hardly move.
            let start = State::new(size).parameters;
            let moved = |state: &State| state.parameters.minus(&start);
            assert_close("parameters", &got.parameters, &want.parameters, tolerance);
            // A parameter near 1 is rounded to 2⁻²⁴ of itself five times, and moves by 2e-2: 1e-5 of that.
            assert_close("steps", &moved(&got), &moved(&want), 4.0 * tolerance);
            assert_close("first moment", &got.first_moment, &want.first_moment, tolerance);
            assert_close("second moment", &got.second_moment, &want.second_moment, tolerance);
            assert!(got.weights == rounded::<D>(&got.parameters), "weights are the parameters, rounded");
        }
    }
}

#[test]
fn steps_match_those_of_pytorch() {
    matches::<Cpu<f64>>(tolerance::<f64>());
    matches::<Cpu<f32>>(tolerance::<f32>());
    matches::<Cuda>(tolerance::<f32>());
}

fn decays_up_to<D: TestDevice + AdamWOp>() {
    // Without a gradient nothing but decay moves a parameter.
    let gradient = Gradient { gradient: Matrix::filled(1, 21, 0.0), norm: 0.0 };
    for decayed in 0..=21 {
        let mut state = State::new(21);
        state.parameters = Matrix::filled(1, 21, 1.0);
        state.step::<D>(CONSTANTS, 1, &gradient, decayed);
        let moved: Vec<bool> = state.parameters.values.iter().map(|&p| p != 1.0).collect();
        assert_eq!(moved, (0..21).map(|i| i < decayed).collect::<Vec<_>>());
    }
}

#[test]
fn the_first_parameters_decay_and_the_rest_do_not() {
    decays_up_to::<Cpu<f64>>();
    decays_up_to::<Cpu<f32>>();
    decays_up_to::<Cuda>();
}

fn leaves_everything_alone<D: TestDevice + AdamWOp>() {
    for max_norm in [None, Some(1.0)] {
        for norm in [f64::NAN, f64::INFINITY] {
            let mut state = State::new(13);
            state.steps::<D>(CONSTANTS, &gradients(1, 13), 5);
            let before = state.clone();
            let gradient = Gradient { gradient: Matrix::filled(1, 13, f64::NAN), norm };
            state.step::<D>(AdamW { max_norm, ..CONSTANTS }, 2, &gradient, 5);
            assert!(state == before, "a norm of {norm}");
        }
    }
}

#[test]
fn a_norm_that_is_not_finite_changes_nothing() {
    leaves_everything_alone::<Cpu<f64>>();
    leaves_everything_alone::<Cpu<f32>>();
    leaves_everything_alone::<Cuda>();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let gradients = gradients(2, 50_021);
    assert_independent_of_threads(|| {
        let mut state = State::new(50_021);
        state.steps::<Cpu<f32>>(CONSTANTS, &gradients, 30_011);
        vec![state.parameters, state.first_moment, state.second_moment]
    });
}

#[test]
fn two_runs_on_the_gpu_are_equal() {
    let run = || {
        let mut state = State::new(4099);
        state.steps::<Cuda>(AdamW { max_norm: Some(0.1), ..CONSTANTS }, &gradients(3, 4099), 1000);
        state
    };
    let (first, second) = (run(), run());
    assert!(first == second);
}
