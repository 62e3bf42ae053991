//! BERT's feed-forward layer with its norm: y = LN(x + W₂·f(W₁·x + b₁) + b₂)

use super::layer_norm::LayerNormActs;
use super::linear::Fused;
use super::{Keep, LayerNorm, Linear, Scratch, first_rows};
use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::activation::Activation;
use crate::ops::dropout::Dropout;
use crate::params::{Spec, Tree};

/// Two linear layers with an activation between them.
#[derive(Clone, Debug)]
pub struct FeedForward<T> {
    /// W₁ [F, D]
    pub intermediate: Linear<T>,
    /// W₂ [D, F]
    pub output: Linear<T>,
    /// [1, D]
    pub norm: LayerNorm<T>,
    /// f
    pub activation: Activation,
}

impl FeedForward<Spec> {
    /// `block`.intermediate`suffix`.dense, `block`.output`suffix`.{dense,LayerNorm}
    pub fn spec(
        block: &str,
        suffix: &str,
        [hidden, intermediate]: [usize; 2],
        activation: Activation,
        epsilon: f64,
    ) -> Self {
        Self {
            intermediate: Linear::spec(&format!("{block}.intermediate{suffix}.dense"), intermediate, hidden),
            output: Linear::spec(&format!("{block}.output{suffix}.dense"), hidden, intermediate),
            norm: LayerNorm::spec(&format!("{block}.output{suffix}.LayerNorm"), hidden, epsilon),
            activation,
        }
    }
}

impl<T> Tree<T> for FeedForward<T> {
    type With<U> = FeedForward<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> FeedForward<U> {
        FeedForward {
            intermediate: self.intermediate.map(leaf),
            output: self.output.map(leaf),
            norm: self.norm.map(leaf),
            activation: self.activation,
        }
    }
}

/// What the layer works in.
pub struct FeedForwardActs<'a, B: Backend> {
    /// W₁·x + b₁ [rows, F]
    pub pre_activation: Option<M<'a, B>>,
    /// [rows, F]
    pub intermediate: M<'a, B>,
    /// [rows, D]
    pub projected: M<'a, B>,
    /// Of the norm.
    pub norm: Option<LayerNormActs<'a, B>>,
}

impl<'a, B: Backend> FeedForwardActs<'a, B> {
    /// For streams of `rows` tokens.
    pub fn carve(
        cursor: &mut Cursor<'a, B>,
        rows: usize,
        [hidden, intermediate]: [usize; 2],
        keep: Keep,
    ) -> Self {
        Self {
            pre_activation: (keep == Keep::ForBackward).then(|| cursor.take(rows, intermediate)),
            intermediate: cursor.take(rows, intermediate),
            projected: cursor.take(rows, hidden),
            norm: LayerNormActs::carve(cursor, rows, hidden, keep),
        }
    }
}

impl<B: Backend> FeedForward<W<'_, B>> {
    /// y [rows, D] from x [rows, D]
    pub fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        dropout: Option<Dropout<'_, B>>,
        acts: &mut FeedForwardActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        let pre_activation = acts.pre_activation.as_mut().map(M::<B>::reborrow);
        let fused = Fused { activation: Some(self.activation), residual: None, pre_activation };
        self.intermediate.fused_forward(b, x, fused, acts.intermediate.reborrow())?;
        self.output.forward(b, acts.intermediate.view(), acts.projected.reborrow())?;
        self.norm.training_forward(b, acts.projected.view(), Some(x), dropout, acts.norm.as_mut(), y)
    }

    /// dx [rows, D] from dy [rows, D]
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one operation here")]
    pub fn backward(
        &self,
        b: &B,
        x: V<'_, B>,
        dropout: Option<Dropout<'_, B>>,
        acts: &FeedForwardActs<'_, B>,
        dy: V<'_, B>,
        gradients: &mut FeedForward<SM<'_, B>>,
        scratch: &mut Scratch<'_, B>,
        mut dx: M<'_, B>,
    ) -> Result<()> {
        let rows = x.rows();
        let norm = acts.norm.as_ref().expect("kept for the backward pass");
        let pre_activation = acts.pre_activation.as_ref().expect("kept for the backward pass");
        let Scratch { projected, intermediate, partials, .. } = scratch;
        let mut dprojected = first_rows::<B>(projected, rows);
        let mut dintermediate = first_rows::<B>(intermediate, rows);
        let dropped = dropout.map(|_| dprojected.reborrow());
        let to = (dx.reborrow(), dropped);
        self.norm.backward(b, norm, dropout, dy, &mut gradients.norm, partials, to)?;
        let dprojected = if dropout.is_some() { dprojected.view() } else { dx.view() };
        let activation = Some((self.activation, pre_activation.view()));
        let (output, to) = (&mut gradients.output, Some((Write::Replace, dintermediate.reborrow())));
        self.output.fused_backward(b, acts.intermediate.view(), activation, dprojected, output, to)?;
        let to = Some((Write::Add, dx));
        self.intermediate.backward(b, x, dintermediate.view(), &mut gradients.intermediate, to)
    }
}
