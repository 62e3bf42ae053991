//! Division of each row by its Euclidean length: y = x / max(‖x‖, 1e-12), as PyTorch's
//! `functional.normalize`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, V};
use crate::error::Result;

/// Lengths below this count as this.
pub const SMALLEST_LENGTH: f64 = 1e-12;

/// Operands of [`NormalizeOp::normalize_forward`].
pub struct NormalizeForward<'a, D: Device> {
    /// [rows, width]
    pub x: V<'a, D>,
    /// [rows, width]
    pub y: M<'a, D>,
}

/// Operands of [`NormalizeOp::normalize_backward`].
pub struct NormalizeBackward<'a, D: Device> {
    /// [rows, width]
    pub x: V<'a, D>,
    /// [rows, width]
    pub dy: V<'a, D>,
    /// [rows, width], written
    pub dx: M<'a, D>,
}

/// L2 normalisation of rows.
pub trait NormalizeOp: Device {
    /// y = x / max(‖x‖, 1e-12)
    fn normalize_forward(&self, args: NormalizeForward<'_, Self>) -> Result<()>;
    /// dx = (dy − y·(y·dy)) / ‖x‖, or dy / 1e-12 where ‖x‖ is smaller than that
    fn normalize_backward(&self, args: NormalizeBackward<'_, Self>) -> Result<()>;
}
