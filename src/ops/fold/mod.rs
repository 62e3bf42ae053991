//! A layer norm's scale and shift folded into the linear layer that reads it: with x̂ the normalised
//! features, (γ∘x̂ + β)·Wᵀ + b = x̂·(W∘γ)ᵀ + (b + W·β).
//!
//! x̂ is a constant where the features are frozen, so that no gradient of the features is ever formed,
//! and yet γ, β, W and b get theirs, from those of the folded weight dW' and bias db':
//! dW = dW'∘γ + db'⊗β, db = db', dγ = Σ over rows of W∘dW', dβ = Wᵀ·db'.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, S, SM, V};
use crate::error::Result;

/// Operands of [`FoldOp::fold_forward`].
pub struct FoldForward<'a, D: Device> {
    /// W [out, in]
    pub weight: V<'a, D>,
    /// b [1, out]
    pub bias: V<'a, D>,
    /// γ [1, in]
    pub norm_weight: V<'a, D>,
    /// β [1, in]
    pub norm_bias: V<'a, D>,
    /// W∘γ [out, in]
    pub folded_weight: M<'a, D>,
    /// b + W·β [1, out]
    pub folded_bias: M<'a, D>,
}

/// Operands of [`FoldOp::fold_backward`].
pub struct FoldBackward<'a, D: Device> {
    /// W [out, in]
    pub weight: V<'a, D>,
    /// γ [1, in]
    pub norm_weight: V<'a, D>,
    /// β [1, in]
    pub norm_bias: V<'a, D>,
    /// dW' [out, in]
    pub dfolded_weight: S<'a, D>,
    /// db' [1, out]
    pub dfolded_bias: S<'a, D>,
    /// [out, in], added to
    pub dweight: SM<'a, D>,
    /// [1, out], added to
    pub dbias: SM<'a, D>,
    /// dγ [1, in], added to
    pub dnorm_weight: SM<'a, D>,
    /// dβ [1, in], added to
    pub dnorm_bias: SM<'a, D>,
}

/// Folding, once a step.
pub trait FoldOp: Device {
    /// W∘γ and b + W·β
    fn fold_forward(&self, args: FoldForward<'_, Self>) -> Result<()>;
    /// The gradients of W, b, γ and β
    fn fold_backward(&self, args: FoldBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> FoldForward<'_, D> {
    fn check(&self) {
        let (out, inputs) = (self.weight.rows(), self.weight.cols());
        assert_eq!(self.folded_weight.shape(), self.weight.shape(), "folded weight as weight");
        assert!(self.bias.cols() == out && self.folded_bias.cols() == out, "biases [1, out]");
        assert!(self.norm_weight.cols() == inputs && self.norm_bias.cols() == inputs, "norm [1, in]");
    }
}

impl<D: Device> FoldBackward<'_, D> {
    fn check(&self) {
        let (out, inputs) = (self.weight.rows(), self.weight.cols());
        let shape = self.weight.shape();
        assert!(self.dfolded_weight.shape() == shape && self.dweight.shape() == shape, "as weight");
        assert!(self.dfolded_bias.cols() == out && self.dbias.cols() == out, "biases [1, out]");
        assert!(self.norm_weight.cols() == inputs && self.norm_bias.cols() == inputs, "norm [1, in]");
        assert!(self.dnorm_weight.cols() == inputs && self.dnorm_bias.cols() == inputs, "norm [1, in]");
    }
}
