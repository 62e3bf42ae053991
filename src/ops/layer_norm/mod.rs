//! Layer normalisation, with dropout and the residual before it: s = dropout(x) + r,
//! y = γ·(s − mean)/√(var + ε) + β.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, S, SM, V};
use crate::error::Result;
use crate::ops::dropout::Dropout;
use crate::tensor::Shape;

/// Operands of [`LayerNormOp::layer_norm_forward`].
pub struct LayerNormForward<'a, D: Device> {
    /// [rows, width]
    pub x: V<'a, D>,
    /// Applied to x, before r is added.
    pub dropout: Option<Dropout<'a, D>>,
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
    /// The forward's.
    pub dropout: Option<Dropout<'a, D>>,
    /// s [rows, width]
    pub sum: V<'a, D>,
    /// [rows, 2]
    pub statistics: S<'a, D>,
    /// γ [1, width]
    pub weight: V<'a, D>,
    /// [rows, width]
    pub dy: V<'a, D>,
    /// [rows, width], written: the gradient of s, thus of r, and of x if there was no dropout
    pub dsum: M<'a, D>,
    /// [rows, width], written: the gradient of x; with dropout only
    pub dx: Option<M<'a, D>>,
    /// Absent if γ and β are frozen.
    pub parameters: Option<LayerNormGradients<'a, D>>,
}

/// Where the gradients of γ and β go.
pub struct LayerNormGradients<'a, D: Device> {
    /// [at least `layer_norm_partials(rows)`, 2·width], for sums of part of the rows
    pub partials: SM<'a, D>,
    /// [1, width], added to
    pub dweight: SM<'a, D>,
    /// [1, width], added to
    pub dbias: SM<'a, D>,
}

/// Layer normalisation; mean and variance over each row, the variance biased.
pub trait LayerNormOp: Device {
    /// Rows of `partials` that the gradients of so many rows need; more rows never need fewer.
    fn layer_norm_partials(&self, rows: usize) -> usize;
    /// y = γ·(s − mean)/√(var + ε) + β with s = dropout(x) + r
    fn layer_norm_forward(&self, args: LayerNormForward<'_, Self>) -> Result<()>;
    /// ds, dx, and dγ and dβ unless they are frozen
    fn layer_norm_backward(&self, args: LayerNormBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> LayerNormForward<'_, D> {
    fn check(&self) {
        let (shape, width) = (self.x.shape(), self.x.cols());
        assert_eq!(self.y.shape(), shape);
        assert!(self.residual.is_none_or(|r| r.shape() == shape));
        assert!(self.sum.as_ref().is_none_or(|s| s.shape() == shape));
        assert!(self.statistics.as_ref().is_none_or(|s| s.shape() == Shape::new(shape.rows, 2)));
        assert_eq!((self.weight.cols(), self.bias.cols()), (width, width), "weight and bias [1, width]");
    }
}

impl<D: LayerNormOp> LayerNormBackward<'_, D> {
    fn check(&self, device: &D) {
        let (shape, width) = (self.sum.shape(), self.sum.cols());
        assert!(self.dy.shape() == shape && self.dsum.shape() == shape);
        assert_eq!(self.statistics.shape(), Shape::new(shape.rows, 2));
        assert_eq!(self.dx.is_some(), self.dropout.is_some(), "dx is the gradient of x with dropout");
        assert!(self.dx.as_ref().is_none_or(|dx| dx.shape() == shape));
        assert_eq!(self.weight.cols(), width, "weight [1, width]");
        if let Some(LayerNormGradients { partials, dweight, dbias }) = &self.parameters {
            assert_eq!((dweight.cols(), dbias.cols()), (width, width), "dweight and dbias [1, width]");
            assert_eq!(partials.cols(), 2 * width, "partials [.., 2·width]");
            assert!(partials.rows() >= device.layer_norm_partials(shape.rows), "rows of partials");
        }
    }
}
