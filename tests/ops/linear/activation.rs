//! Gradients through the activation that a layer's input is the output of.

use super::Linear;
use crate::common::{Matrix, Random, assert_gradient};
use crate::device::{Tensor, TestDevice, rounded};
use qformer::device::{Cpu, Cuda, Write};
use qformer::ops::activation::{Activation, ActivationBackward, ActivationForward, ActivationOp};
use qformer::ops::linear::{LinearBackward, LinearInputBackward, LinearOp};

impl Linear {
    /// dz, where x = f(z).
    pub(super) fn backward_activated<D: TestDevice + LinearOp>(
        &self,
        activation: Activation,
        z: &Matrix,
        dy: &Matrix,
    ) -> Matrix {
        let mut dz = Tensor::<D>::output(z.rows, z.cols);
        let zeros = Matrix::filled(self.weight.rows, self.weight.cols, 0.0);
        D::get()
            .linear_backward(LinearBackward {
                x: Tensor::pitched(&self.x).view(),
                weight: Tensor::pitched(&self.weight).weight(),
                dy: Tensor::pitched(dy).view(),
                activation: Some((activation, Tensor::pitched(z).view())),
                dx: Some((Write::Replace, dz.view_mut())),
                dweight: Tensor::<D, D::Stat>::pitched(&zeros).view_mut(),
                dbias: None,
            })
            .unwrap();
        dz.read()
    }

    /// dx, or dz where x = f(z), of a layer that is frozen.
    fn input_backward<D: TestDevice + LinearOp>(
        &self,
        activation: Option<(Activation, &Matrix)>,
        dy: &Matrix,
        (write, before): (Write, &Matrix),
    ) -> Matrix {
        let mut dx = Tensor::<D>::pitched(before);
        let mut z = activation.map(|(_, z)| Tensor::pitched(z));
        D::get()
            .linear_input_backward(LinearInputBackward {
                weight: Tensor::pitched(&self.weight).weight(),
                dy: Tensor::pitched(dy).view(),
                activation: activation.map(|(f, _)| f).zip(z.as_mut().map(Tensor::view)),
                write,
                dx: dx.view_mut(),
            })
            .unwrap();
        dx.read()
    }
}

const ACTIVATIONS: [Activation; 4] =
    [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu];

/// f of every element.
pub(super) fn activated<D: TestDevice + ActivationOp>(activation: Activation, z: &Matrix) -> Matrix {
    let mut x = Tensor::<D>::output(z.rows, z.cols);
    let mut z = Tensor::<D>::pitched(z);
    D::get().activation_forward(ActivationForward { activation, x: z.view(), y: x.view_mut() }).unwrap();
    x.read()
}

/// dx·f'(z), element by element.
fn differentiated<D: TestDevice + ActivationOp>(activation: Activation, z: &Matrix, dx: &Matrix) -> Matrix {
    let mut dz = Tensor::<D>::pitched(dx);
    let mut z = Tensor::<D>::pitched(z);
    D::get().activation_backward(ActivationBackward { activation, x: z.view(), dy: dz.view_mut() }).unwrap();
    dz.read()
}

#[test]
fn backward_through_an_activation_matches_finite_differences() {
    for [rows, inputs, outputs] in [[5, 7, 6], [1, 1, 1], [2, 67, 3]] {
        let mut random = Random::new(8);
        let (mut z, dy) = (random.matrix(rows, inputs), random.matrix(rows, outputs));
        // Away from zero, where ReLU has no derivative.
        z.values.iter_mut().filter(|z| z.abs() < 1e-3).for_each(|z| *z = 0.5);
        let linear = Linear::random([rows, inputs, outputs]);
        for activation in ACTIVATIONS {
            let at = |z: &Matrix| Linear { x: activated::<Cpu<f64>>(activation, z), ..linear.clone() };
            let dz = at(&z).backward_activated::<Cpu<f64>>(activation, &z, &dy);
            assert_gradient(&format!("{activation:?}"), &z, &dz, |z| {
                at(z).forward::<Cpu<f64>>(Tensor::rows, None).dot(&dy)
            });
        }
    }
}

/// What is fused into the product is what follows it otherwise: at most twice as far off as product and derivative
/// that are rounded each.
fn fused_derivatives_match<D: TestDevice + LinearOp>() {
    for [rows, inputs, outputs] in [[300, 264, 96], [40, 72, 96], [9, 24, 40], [13, 17, 11], [1, 1, 1]] {
        let linear = Linear::random([rows, inputs, outputs]).rounded::<D>();
        let mut random = Random::new(9);
        let mut z = random.matrix(rows, inputs);
        z.values.iter_mut().for_each(|z| *z *= 6.0);
        let (z, dy) = (rounded::<D>(&z), rounded::<D>(&random.matrix(rows, outputs)));
        let dx = Matrix::from_fn(rows, inputs, |r, i| {
            (0..outputs).map(|o| dy.at(r, o) * linear.weight.at(o, i)).sum()
        });
        for activation in ACTIVATIONS {
            let want = differentiated::<Cpu<f64>>(activation, &z, &dx);
            let reference = rounded::<D>(&differentiated::<Cpu<f64>>(activation, &z, &rounded::<D>(&dx)));
            let got = linear.backward_activated::<D>(activation, &z, &dy);
            D::assert_near(&format!("dz of {activation:?}, {rows}×{inputs}"), &got, &want, &reference);
            let frozen = linear.input_backward::<D>(Some((activation, &z)), &dy, (Write::Replace, &z));
            assert_eq!(frozen.bits(), got.bits(), "of a frozen layer: {activation:?}, {rows}×{inputs}");
        }
    }
}

#[test]
fn backward_through_an_activation_matches_product_and_derivative() {
    fused_derivatives_match::<Cpu<f64>>();
    fused_derivatives_match::<Cpu<f32>>();
    fused_derivatives_match::<Cuda>();
}

fn frozen_layers_have_the_same_gradient<D: TestDevice + LinearOp>() {
    for sizes in [[300, 264, 96], [13, 17, 11], [1, 1, 1]] {
        let linear = Linear::random(sizes).rounded::<D>();
        let mut random = Random::new(10);
        let dy = rounded::<D>(&random.matrix(sizes[0], sizes[2]));
        for write in [Write::Replace, Write::Add] {
            let trained = linear.backward::<D>(&dy, write, &linear);
            let frozen = linear.input_backward::<D>(None, &dy, (write, &linear.x));
            assert_eq!(frozen.bits(), trained.x.bits(), "{sizes:?} {write:?}");
        }
    }
}

#[test]
fn the_input_s_gradient_is_the_same_where_the_layer_is_frozen() {
    frozen_layers_have_the_same_gradient::<Cpu<f64>>();
    frozen_layers_have_the_same_gradient::<Cpu<f32>>();
    frozen_layers_have_the_same_gradient::<Cuda>();
}

#[test]
#[should_panic(expected = "the gradient of z is written")]
fn a_gradient_through_an_activation_is_not_added() {
    let linear = Linear::random([2, 3, 4]);
    let mut dz = Tensor::<Cpu<f32>>::pitched(&linear.x);
    let _ = Cpu::<f32>::get().linear_backward(LinearBackward {
        x: Tensor::pitched(&linear.x).view(),
        weight: Tensor::pitched(&linear.weight).weight(),
        dy: Tensor::pitched(&linear.plain()).view(),
        activation: Some((Activation::Gelu, Tensor::pitched(&linear.x).view())),
        dx: Some((Write::Add, dz.view_mut())),
        dweight: Tensor::pitched(&linear.weight).view_mut(),
        dbias: None,
    });
}
