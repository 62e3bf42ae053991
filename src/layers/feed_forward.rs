//! BERT's feed-forward layer with its norm: y = LN(x + W₂·f(W₁·x + b₁) + b₂)

use super::{LayerNorm, Linear};
use crate::arena::Cursor;
use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::activation::Activation;
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
    /// [rows, F]
    pub intermediate: M<'a, B>,
    /// [rows, D]
    pub projected: M<'a, B>,
}

impl<'a, B: Backend> FeedForwardActs<'a, B> {
    /// For streams of `rows` tokens.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, [hidden, intermediate]: [usize; 2]) -> Self {
        Self { intermediate: cursor.take(rows, intermediate), projected: cursor.take(rows, hidden) }
    }
}

impl<B: Backend> FeedForward<V<'_, B>> {
    /// y [rows, D] from x [rows, D]
    pub fn forward(&self, b: &B, x: V<'_, B>, acts: &mut FeedForwardActs<'_, B>, y: M<'_, B>) -> Result<()> {
        self.intermediate.fused_forward(b, x, Some(self.activation), None, acts.intermediate.reborrow())?;
        self.output.forward(b, acts.intermediate.view(), acts.projected.reborrow())?;
        self.norm.forward(b, acts.projected.view(), Some(x), y)
    }
}
