//! y = γ·(s − mean)/√(var + ε) + β with s = dropout(x) + residual

use super::Keep;
use crate::device::{M, SM, V, W};
use crate::error::Result;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::dropout::Dropout;
use crate::ops::layer_norm::{LayerNormBackward, LayerNormForward, LayerNormGradients};
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

/// What the backward pass needs.
pub struct LayerNormActs<'a, B: Backend> {
    /// s [rows, width]
    pub sum: M<'a, B>,
    /// [rows, 2]: mean and 1/√(var + ε)
    pub statistics: SM<'a, B>,
}

impl<'a, B: Backend> LayerNormActs<'a, B> {
    /// For `rows` rows of `width`; none in inference.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, width: usize, keep: Keep) -> Option<Self> {
        (keep == Keep::ForBackward)
            .then(|| Self { sum: cursor.take(rows, width), statistics: cursor.take(rows, 2) })
    }
}

impl<B: Backend> LayerNorm<W<'_, B>> {
    /// y [rows, width] from x and residual [rows, width], in inference
    pub fn forward(&self, b: &B, x: V<'_, B>, residual: Option<V<'_, B>>, y: M<'_, B>) -> Result<()> {
        self.training_forward(b, x, residual, None, None, y)
    }

    /// The same with dropout of x, and with what the backward pass needs.
    pub fn training_forward(
        &self,
        b: &B,
        x: V<'_, B>,
        residual: Option<V<'_, B>>,
        dropout: Option<Dropout<'_, B>>,
        acts: Option<&mut LayerNormActs<'_, B>>,
        y: M<'_, B>,
    ) -> Result<()> {
        let (sum, statistics) = acts.map(|acts| (acts.sum.reborrow(), acts.statistics.reborrow())).unzip();
        b.layer_norm_forward(LayerNormForward {
            x,
            residual,
            dropout,
            weight: self.weight.matrix(),
            bias: self.bias.matrix(),
            epsilon: self.epsilon,
            sum,
            statistics,
            y,
        })
    }

    /// dsum [rows, width], the gradient of the residual, and dx [rows, width], that of what was dropped
    /// out of (absent without dropout: then it is dsum), from dy [rows, width]; `partials` to work in
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn backward(
        &self,
        b: &B,
        acts: &LayerNormActs<'_, B>,
        dropout: Option<Dropout<'_, B>>,
        dy: V<'_, B>,
        gradients: &mut LayerNorm<SM<'_, B>>,
        partials: &mut SM<'_, B>,
        (dsum, dx): (M<'_, B>, Option<M<'_, B>>),
    ) -> Result<()> {
        b.layer_norm_backward(LayerNormBackward {
            sum: acts.sum.view(),
            statistics: acts.statistics.view(),
            weight: self.weight.matrix(),
            dropout,
            dy,
            dsum,
            dx,
            parameters: Some(LayerNormGradients {
                partials: partials.reborrow(),
                dweight: gradients.weight.reborrow(),
                dbias: gradients.bias.reborrow(),
            }),
        })
    }
}
