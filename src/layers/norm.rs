//! The norm that a model has: layer norm or root mean square.

use super::{LayerNorm, RmsNorm};
use crate::device::{M, V, W};
use crate::error::Result;
use crate::ops::Backend;
use crate::params::Tree;

/// A norm of one kind or the other.
#[derive(Clone, Debug)]
pub enum Norm<T> {
    /// By mean and variance: OPT's.
    Layer(LayerNorm<T>),
    /// By the mean square: T5's.
    RootMeanSquare(RmsNorm<T>),
}

impl<T> Tree<T> for Norm<T> {
    type With<U> = Norm<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Norm<U> {
        match self {
            Self::Layer(norm) => Norm::Layer(norm.map(leaf)),
            Self::RootMeanSquare(norm) => Norm::RootMeanSquare(norm.map(leaf)),
        }
    }
}

impl<B: Backend> Norm<W<'_, B>> {
    /// y [rows, width] from x [rows, width], in inference
    pub fn forward(&self, b: &B, x: V<'_, B>, y: M<'_, B>) -> Result<()> {
        match self {
            Self::Layer(norm) => norm.forward(b, x, None, y),
            Self::RootMeanSquare(norm) => norm.forward(b, x, y),
        }
    }
}
