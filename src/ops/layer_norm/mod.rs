//! Layer normalisation with the residual added first: s = x + r, y = γ·(s − mean)/√(var + ε) + β.

mod cpu;

use crate::device::{Device, M, S, SM, V};
use crate::error::Result;

/// Operands of [`LayerNormOp::layer_norm_forward`].
pub struct LayerNormForward<'a, D: Device> {
    /// [rows, width]
    pub x: V<'a, D>,
    /// r [rows, width]
    pub residual: Option<V<'a, D>>,
    /// γ [1, width]
    pub weight: V<'a, D>,
    /// β [1, width]
    pub bias: V<'a, D>,
    /// ε
    pub epsilon: f64,
    /// s [rows, width]: what the backward pass, or the next residual, needs.
    pub sum: Option<M<'a, D>>,
    /// [rows, 2]: mean and 1/√(var + ε) of each row, which the backward pass needs.
    pub statistics: Option<SM<'a, D>>,
    /// [rows, width]
    pub y: M<'a, D>,
}

/// Operands of [`LayerNormOp::layer_norm_backward`].
pub struct LayerNormBackward<'a, D: Device> {
    /// s [rows, width]
    pub sum: V<'a, D>,
    /// [rows, 2]
    pub statistics: S<'a, D>,
    /// γ [1, width]
    pub weight: V<'a, D>,
    /// [rows, width]
    pub dy: V<'a, D>,
    /// [rows, width], written: the gradient of s, thus of x and of r
    pub dsum: M<'a, D>,
    /// [1, width], added to
    pub dweight: SM<'a, D>,
    /// [1, width], added to
    pub dbias: SM<'a, D>,
}

/// Layer normalisation; mean and variance over each row, the variance biased.
pub trait LayerNormOp: Device {
    /// y = γ·(s − mean)/√(var + ε) + β with s = x + r
    fn layer_norm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()>;
    /// ds, dγ and dβ
    fn layer_norm_backward(&self, args: LayerNormBackward<'_, Self>) -> Result<()>;
}
