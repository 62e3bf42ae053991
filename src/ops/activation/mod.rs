//! Activations, element by element: y = f(x).

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, V};
use crate::error::Result;

pub use crate::config::Activation;

/// Operands of [`ActivationOp::activation_forward`].
pub struct ActivationForward<'a, D: Device> {
    /// f
    pub activation: Activation,
    /// [rows, cols]
    pub x: V<'a, D>,
    /// [rows, cols]
    pub y: M<'a, D>,
}

/// Operands of [`ActivationOp::activation_backward`].
pub struct ActivationBackward<'a, D: Device> {
    /// f
    pub activation: Activation,
    /// [rows, cols], the forward's input
    pub x: V<'a, D>,
    /// [rows, cols]: on entry the gradient of y, on return dx = dy·f'(x)
    pub dy: M<'a, D>,
}

/// Activations; a linear layer's own is fused into its `linear_forward`, and into the `linear_backward` of the layer that
/// reads it.
pub trait ActivationOp: Device {
    /// y = f(x)
    fn activation_forward(&self, args: ActivationForward<'_, Self>) -> Result<()>;
    /// dx = dy·f'(x), in place
    fn activation_backward(&self, args: ActivationBackward<'_, Self>) -> Result<()>;
}
