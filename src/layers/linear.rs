//! y = x·Wᵀ + b

use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::activation::Activation;
use crate::ops::linear::{LinearBackward, LinearForward, LinearInputBackward};
use crate::params::{Spec, Tree};

/// A linear layer, or several side by side.
#[derive(Clone, Debug)]
pub struct Linear<T> {
    /// [out, in]
    pub weight: T,
    /// [1, out]; absent in models whose layers have none
    pub bias: Option<T>,
}

impl Linear<Spec> {
    /// `name`.weight [out, in] and `name`.bias `[out]`.
    pub fn spec(name: &str, out: usize, inputs: usize) -> Self {
        Self::fused(&[name.to_owned()], out, inputs)
    }

    /// Layers of the same sizes, whose outputs stand side by side.
    pub fn fused(names: &[String], out: usize, inputs: usize) -> Self {
        Self {
            weight: Spec::weight(names.iter().map(|n| (format!("{n}.weight"), out)), inputs),
            bias: Some(Spec::vector(names.iter().map(|n| (format!("{n}.bias"), out)))),
        }
    }
}

impl<T> Linear<T> {
    /// The same without a bias.
    pub fn without_bias(self) -> Self {
        Self { bias: None, ..self }
    }
}

impl<T> Tree<T> for Linear<T> {
    type With<U> = Linear<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Linear<U> {
        Linear { weight: leaf(&self.weight), bias: self.bias.as_ref().map(leaf) }
    }
}

impl<T> Linear<T> {
    /// The bias of a layer that has one.
    ///
    /// # Panics
    /// Panics if it has none.
    pub fn own_bias(&self) -> &T {
        self.bias.as_ref().expect("a layer with a bias")
    }
}

/// What is fused into a linear layer: y = f(x·Wᵀ + b) + residual.
pub struct Fused<'a, B: Backend> {
    /// f; absent for the identity.
    pub activation: Option<Activation>,
    /// [rows, out]
    pub residual: Option<V<'a, B>>,
    /// x·Wᵀ + b [rows, out], for the activation's gradient
    pub pre_activation: Option<M<'a, B>>,
}

impl<B: Backend> Linear<W<'_, B>> {
    /// y [rows, out] from x [rows, in]
    pub fn forward(&self, b: &B, x: V<'_, B>, y: M<'_, B>) -> Result<()> {
        self.fused_forward(b, x, Fused { activation: None, residual: None, pre_activation: None }, y)
    }

    /// y = f(x·Wᵀ + b) + residual
    pub fn fused_forward(&self, b: &B, x: V<'_, B>, fused: Fused<'_, B>, y: M<'_, B>) -> Result<()> {
        let Fused { activation, residual, pre_activation } = fused;
        let (weight, bias) = (self.weight, self.bias.map(W::<B>::matrix));
        b.linear_forward(LinearForward { x, weight, bias, activation, residual, pre_activation, y })
    }

    /// dx [rows, in] from dy [rows, out] of a frozen layer; where x = f(z) is another layer's activation, dx is the
    /// gradient of z.
    pub fn input_backward(
        &self,
        b: &B,
        activation: Option<(Activation, V<'_, B>)>,
        dy: V<'_, B>,
        (write, dx): (Write, M<'_, B>),
    ) -> Result<()> {
        b.linear_input_backward(LinearInputBackward { weight: self.weight, dy, activation, write, dx })
    }

    /// dx [rows, in] from x and dy [rows, out], without an activation; gradients are added to.
    pub fn backward(
        &self,
        b: &B,
        x: V<'_, B>,
        dy: V<'_, B>,
        gradients: &mut Linear<SM<'_, B>>,
        dx: Option<(Write, M<'_, B>)>,
    ) -> Result<()> {
        self.fused_backward(b, x, None, dy, gradients, dx)
    }

    /// The same where x = f(z) is another layer's activation, and dx is the gradient of z [rows, in].
    pub fn fused_backward(
        &self,
        b: &B,
        x: V<'_, B>,
        activation: Option<(Activation, V<'_, B>)>,
        dy: V<'_, B>,
        gradients: &mut Linear<SM<'_, B>>,
        dx: Option<(Write, M<'_, B>)>,
    ) -> Result<()> {
        b.linear_backward(LinearBackward {
            x,
            weight: self.weight,
            dy,
            activation,
            dx,
            dweight: gradients.weight.reborrow(),
            dbias: gradients.bias.as_mut().map(SM::<B>::reborrow),
        })
    }
}
