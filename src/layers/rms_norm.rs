//! y = s·γ·x/√(mean(x²) + ε)

use super::Keep;
use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::rms_norm::{RmsNormBackward, RmsNormForward, RmsNormGradients};
use crate::params::{Spec, Tree};

/// Root-mean-square normalisation.
#[derive(Clone, Debug)]
pub struct RmsNorm<T> {
    /// γ [1, width]
    pub weight: T,
    /// ε
    pub epsilon: f64,
    /// s, a constant factor of y
    pub scale: f64,
}

impl RmsNorm<Spec> {
    /// `name`.weight `[width]`; y is not scaled.
    pub fn spec(name: &str, width: usize, epsilon: f64) -> Self {
        Self { weight: Spec::vector([(format!("{name}.weight"), width)]), epsilon, scale: 1.0 }
    }
}

impl<T> Tree<T> for RmsNorm<T> {
    type With<U> = RmsNorm<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> RmsNorm<U> {
        RmsNorm { weight: leaf(&self.weight), epsilon: self.epsilon, scale: self.scale }
    }
}

/// What the backward pass needs, beside x.
pub struct RmsNormActs<'a, B: Backend> {
    /// [rows, 1]: 1/√(mean(x²) + ε)
    pub statistics: SM<'a, B>,
}

impl<'a, B: Backend> RmsNormActs<'a, B> {
    /// For `rows` rows; none in inference.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, keep: Keep) -> Option<Self> {
        (keep == Keep::ForBackward).then(|| Self { statistics: cursor.take(rows, 1) })
    }
}

impl<B: Backend> RmsNorm<W<'_, B>> {
    /// y [rows, width] from x [rows, width], in inference
    pub fn forward(&self, b: &B, x: V<'_, B>, y: M<'_, B>) -> Result<()> {
        self.training_forward(b, x, None, y)
    }

    /// The same with what the backward pass needs.
    pub fn training_forward(
        &self,
        b: &B,
        x: V<'_, B>,
        acts: Option<&mut RmsNormActs<'_, B>>,
        y: M<'_, B>,
    ) -> Result<()> {
        b.rms_norm_forward(RmsNormForward {
            epsilon: self.epsilon,
            scale: self.scale,
            x,
            weight: self.weight.matrix(),
            statistics: acts.map(|acts| acts.statistics.reborrow()),
            y,
        })
    }

    /// dx [rows, width] from dy [rows, width] and the forward's x [rows, width] where γ is frozen
    pub fn input_backward(
        &self,
        b: &B,
        x: V<'_, B>,
        acts: &RmsNormActs<'_, B>,
        dy: V<'_, B>,
        to: (Write, M<'_, B>),
    ) -> Result<()> {
        self.backward_to(b, x, acts, dy, None, to)
    }

    /// The same with γ's gradient; `partials` [at least `rms_norm_partials(rows)`, width] to work in
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn backward(
        &self,
        b: &B,
        x: V<'_, B>,
        acts: &RmsNormActs<'_, B>,
        dy: V<'_, B>,
        gradients: &mut RmsNorm<SM<'_, B>>,
        partials: &mut SM<'_, B>,
        to: (Write, M<'_, B>),
    ) -> Result<()> {
        let (partials, dweight) = (partials.reborrow(), gradients.weight.reborrow());
        self.backward_to(b, x, acts, dy, Some(RmsNormGradients { partials, dweight }), to)
    }

    fn backward_to(
        &self,
        b: &B,
        x: V<'_, B>,
        acts: &RmsNormActs<'_, B>,
        dy: V<'_, B>,
        gradients: Option<RmsNormGradients<'_, B>>,
        (write, dx): (Write, M<'_, B>),
    ) -> Result<()> {
        b.rms_norm_backward(RmsNormBackward {
            scale: self.scale,
            x,
            weight: self.weight.matrix(),
            statistics: acts.statistics.view(),
            dy,
            write,
            dx,
            gradients,
        })
    }
}
