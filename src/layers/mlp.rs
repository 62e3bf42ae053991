//! A feed-forward layer without its norm, plain or gated: y = W₂·h + b₂ + x with h = f(W₁·n + b₁) or
//! h = f(W₁·n)∘(W₃·n), where n is what the norm made of x, or x itself.

use super::Linear;
use super::linear::Fused;
use crate::device::{M, V, W};
use crate::error::Result;
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::activation::Activation;
use crate::ops::gate::GateForward;
use crate::params::{Spec, Tree};

/// Whether the activation gates a second linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// h = f(W₁·n + b₁)
    Plain,
    /// h = f(W₁·n)∘(W₃·n)
    Gated,
}

/// Two linear layers, or three, with an activation.
#[derive(Clone, Debug)]
pub struct Mlp<T> {
    /// W₁ [F, D], or [W₁; W₃] [2·F, D]
    pub input: Linear<T>,
    /// W₂ [D, F]
    pub output: Linear<T>,
    /// f
    pub activation: Activation,
    /// Whether there is a W₃.
    pub gating: Gating,
}

impl Mlp<Spec> {
    /// `input` are the names of W₁ and, if it is gated, W₃; biases are those that `biased` adds or leaves out.
    pub fn spec(
        input: &[String],
        output: &str,
        [hidden, intermediate]: [usize; 2],
        activation: Activation,
        biased: impl Fn(Linear<Spec>) -> Linear<Spec>,
    ) -> Self {
        let gating = if input.len() == 2 { Gating::Gated } else { Gating::Plain };
        Self {
            input: biased(Linear::fused(input, intermediate, hidden)),
            output: biased(Linear::spec(output, hidden, intermediate)),
            activation,
            gating,
        }
    }
}

impl<T> Tree<T> for Mlp<T> {
    type With<U> = Mlp<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Mlp<U> {
        Mlp {
            input: self.input.map(leaf),
            output: self.output.map(leaf),
            activation: self.activation,
            gating: self.gating,
        }
    }
}

/// What the layer works in.
pub struct MlpActs<'a, B: Backend> {
    /// [W₁·n | W₃·n] [rows, 2·F]; no columns where it is plain
    gate: M<'a, B>,
    /// h [rows, F]
    intermediate: M<'a, B>,
}

impl<'a, B: Backend> MlpActs<'a, B> {
    /// For `rows` rows and F columns.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, intermediate: usize, gating: Gating) -> Self {
        let gated = if gating == Gating::Gated { 2 * intermediate } else { 0 };
        Self { gate: cursor.take(rows, gated), intermediate: cursor.take(rows, intermediate) }
    }
}

impl<B: Backend> Mlp<W<'_, B>> {
    /// y [rows, D] from n and x [rows, D], in inference
    pub fn forward(
        &self,
        b: &B,
        n: V<'_, B>,
        x: V<'_, B>,
        acts: &mut MlpActs<'_, B>,
        y: M<'_, B>,
    ) -> Result<()> {
        match self.gating {
            Gating::Plain => {
                let fused = Fused { activation: Some(self.activation), residual: None, pre_activation: None };
                self.input.fused_forward(b, n, fused, acts.intermediate.reborrow())?;
            }
            Gating::Gated => {
                self.input.forward(b, n, acts.gate.reborrow())?;
                let (x, y) = (acts.gate.view(), acts.intermediate.reborrow());
                b.gate_forward(GateForward { activation: self.activation, x, y })?;
            }
        }
        let fused = Fused { activation: None, residual: Some(x), pre_activation: None };
        self.output.fused_forward(b, acts.intermediate.view(), fused, y)
    }
}
