//! A gated activation: y = f(a)·b element by element, where a and b stand side by side, as one product left them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, V};
use crate::error::Result;
use crate::ops::activation::Activation;
use crate::tensor::Shape;

/// Operands of [`GateOp::gate_forward`].
pub struct GateForward<'a, D: Device> {
    /// f
    pub activation: Activation,
    /// [a | b] [rows, 2·F]
    pub x: V<'a, D>,
    /// [rows, F]
    pub y: M<'a, D>,
}

/// Operands of [`GateOp::gate_backward`].
pub struct GateBackward<'a, D: Device> {
    /// f
    pub activation: Activation,
    /// [a | b] [rows, 2·F], the forward's
    pub x: V<'a, D>,
    /// [rows, F]
    pub dy: V<'a, D>,
    /// [da | db] [rows, 2·F], written
    pub dx: M<'a, D>,
}

/// Gated activations.
pub trait GateOp: Device {
    /// y = f(a)·b
    fn gate_forward(&self, args: GateForward<'_, Self>) -> Result<()>;
    /// da = dy·b·f'(a), db = dy·f(a)
    fn gate_backward(&self, args: GateBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> GateForward<'_, D> {
    fn check(&self) {
        let Shape { rows, cols } = self.y.shape();
        assert_eq!(self.x.shape(), Shape::new(rows, 2 * cols), "x [rows, 2·F]");
    }
}

impl<D: Device> GateBackward<'_, D> {
    fn check(&self) {
        let Shape { rows, cols } = self.dy.shape();
        assert_eq!(self.x.shape(), Shape::new(rows, 2 * cols), "x [rows, 2·F]");
        assert_eq!(self.dx.shape(), self.x.shape(), "dx [rows, 2·F]");
    }
}
