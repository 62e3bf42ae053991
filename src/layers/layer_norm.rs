//! y = γ·(s − mean)/√(var + ε) + β with s = x + residual

use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::layer_norm::LayerNormForward;
use crate::params::{Spec, Tree};

/// Layer normalisation.
#[derive(Clone, Debug)]
pub struct LayerNorm<T> {
    /// γ [1, width]
    pub weight: T,
    /// β [1, width]
    pub bias: T,
    /// ε
    pub epsilon: f64,
}

impl LayerNorm<Spec> {
    /// `name`.weight and `name`.bias, both `[width]`.
    pub fn spec(name: &str, width: usize, epsilon: f64) -> Self {
        Self {
            weight: Spec::vector([(format!("{name}.weight"), width)]),
            bias: Spec::vector([(format!("{name}.bias"), width)]),
            epsilon,
        }
    }
}

impl<T> Tree<T> for LayerNorm<T> {
    type With<U> = LayerNorm<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> LayerNorm<U> {
        LayerNorm { weight: leaf(&self.weight), bias: leaf(&self.bias), epsilon: self.epsilon }
    }
}

impl<B: Backend> LayerNorm<V<'_, B>> {
    /// y [rows, width] from x and residual [rows, width]
    pub fn forward(&self, b: &B, x: V<'_, B>, residual: Option<V<'_, B>>, y: M<'_, B>) -> Result<()> {
        b.layer_norm_forward(LayerNormForward {
            x,
            dropout: None,
            residual,
            weight: self.weight,
            bias: self.bias,
            epsilon: self.epsilon,
            sum: None,
            statistics: None,
            y,
        })
    }
}
