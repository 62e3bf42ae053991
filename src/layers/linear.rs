//! y = x·Wᵀ + b

use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::activation::Activation;
use crate::ops::gemm::GemmForward;
use crate::params::{Spec, Tree};

/// A linear layer, or several side by side.
#[derive(Clone, Debug)]
pub struct Linear<T> {
    /// [out, in]
    pub weight: T,
    /// [1, out]
    pub bias: T,
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
            bias: Spec::vector(names.iter().map(|n| (format!("{n}.bias"), out))),
        }
    }
}

impl<T> Tree<T> for Linear<T> {
    type With<U> = Linear<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Linear<U> {
        Linear { weight: leaf(&self.weight), bias: leaf(&self.bias) }
    }
}

impl<B: Backend> Linear<V<'_, B>> {
    /// y [rows, out] from x [rows, in]
    pub fn forward(&self, b: &B, x: V<'_, B>, y: M<'_, B>) -> Result<()> {
        self.fused_forward(b, x, None, None, y)
    }

    /// y = f(x·Wᵀ + b) + residual
    pub fn fused_forward(
        &self,
        b: &B,
        x: V<'_, B>,
        activation: Option<Activation>,
        residual: Option<V<'_, B>>,
        y: M<'_, B>,
    ) -> Result<()> {
        let (weight, bias) = (self.weight, Some(self.bias));
        b.gemm_forward(GemmForward { x, weight, bias, activation, residual, pre_activation: None, y })
    }
}
