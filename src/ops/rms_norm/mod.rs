//! Root-mean-square normalisation: y = s·γ·x/√(mean(x²) + ε), without a mean or a bias.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, S, SM, V, Write};
use crate::error::Result;
use crate::tensor::Shape;

/// Operands of [`RmsNormOp::rms_norm_forward`].
pub struct RmsNormForward<'a, D: Device> {
    /// ε
    pub epsilon: f64,
    /// s, a constant factor of y: 1, but where the head of a language model wants its input scaled.
    pub scale: f64,
    /// [rows, width]
    pub x: V<'a, D>,
    /// γ [1, width]
    pub weight: V<'a, D>,
    /// [rows, 1]: 1/√(mean(x²) + ε) of each row, which the backward pass needs.
    pub statistics: Option<SM<'a, D>>,
    /// [rows, width]
    pub y: M<'a, D>,
}

/// Operands of [`RmsNormOp::rms_norm_backward`].
pub struct RmsNormBackward<'a, D: Device> {
    /// The forward's.
    pub scale: f64,
    /// [rows, width], the forward's
    pub x: V<'a, D>,
    /// γ [1, width]
    pub weight: V<'a, D>,
    /// [rows, 1]
    pub statistics: S<'a, D>,
    /// [rows, width]
    pub dy: V<'a, D>,
    /// Of dx: the gradient of a residual may stand there.
    pub write: Write,
    /// [rows, width]: the gradient of x
    pub dx: M<'a, D>,
    /// Absent if γ is frozen.
    pub gradients: Option<RmsNormGradients<'a, D>>,
}

/// Where the gradient of γ goes.
pub struct RmsNormGradients<'a, D: Device> {
    /// [at least `rms_norm_partials(rows)`, width], for sums of part of the rows
    pub partials: SM<'a, D>,
    /// [1, width], added to
    pub dweight: SM<'a, D>,
}

/// Root-mean-square normalisation, over each row.
pub trait RmsNormOp: Device {
    /// Rows of `partials` that the gradients of so many rows need; more rows never need fewer.
    fn rms_norm_partials(&self, rows: usize) -> usize;
    /// y = s·γ·x/√(mean(x²) + ε)
    fn rms_norm_forward(&self, args: RmsNormForward<'_, Self>) -> Result<()>;
    /// dx, and dγ unless it is frozen
    fn rms_norm_backward(&self, args: RmsNormBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> RmsNormForward<'_, D> {
    fn check(&self) {
        let Shape { rows, cols } = self.x.shape();
        assert_eq!(self.y.shape(), self.x.shape(), "y [rows, width]");
        assert!(self.statistics.as_ref().is_none_or(|s| s.shape() == Shape::new(rows, 1)));
        assert_eq!(self.weight.shape(), Shape::new(1, cols), "weight [1, width]");
    }
}

impl<D: RmsNormOp> RmsNormBackward<'_, D> {
    fn check(&self, device: &D) {
        let (shape, row) = (self.x.shape(), Shape::new(1, self.x.cols()));
        assert!(self.dy.shape() == shape && self.dx.shape() == shape, "dy and dx [rows, width]");
        assert_eq!(self.statistics.shape(), Shape::new(shape.rows, 1), "statistics [rows, 1]");
        assert_eq!(self.weight.shape(), row, "weight [1, width]");
        if let Some(RmsNormGradients { partials, dweight }) = &self.gradients {
            assert_eq!(dweight.shape(), row, "dweight [1, width]");
            assert_eq!(partials.cols(), row.cols, "partials [.., width]");
            assert!(partials.rows() >= device.rms_norm_partials(shape.rows), "rows of partials");
        }
    }
}
