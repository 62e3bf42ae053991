//! The linear layer: y = f(x·Wᵀ + b) + r, with W [out, in] as checkpoints store it.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, SM, V, W, Write};
use crate::error::Result;
use crate::ops::activation::Activation;

/// Operands of [`LinearOp::linear_forward`].
pub struct LinearForward<'a, D: Device> {
    /// [rows, in]
    pub x: V<'a, D>,
    /// [out, in]
    pub weight: W<'a, D>,
    /// [1, out]
    pub bias: Option<V<'a, D>>,
    /// f; absent for the identity.
    pub activation: Option<Activation>,
    /// r [rows, out]
    pub residual: Option<V<'a, D>>,
    /// x·Wᵀ + b [rows, out], which the activation's gradient needs; absent in inference.
    pub pre_activation: Option<M<'a, D>>,
    /// [rows, out]
    pub y: M<'a, D>,
}

/// Operands of [`LinearOp::linear_input_backward`], for y without its activation, whose gradient belongs to the layer
/// that reads y: there it is the input's.
pub struct LinearInputBackward<'a, D: Device> {
    /// [out, in], by rows
    pub weight: W<'a, D>,
    /// [rows, out]
    pub dy: V<'a, D>,
    /// f and z [rows, in], where x = f(z).
    pub activation: Option<(Activation, V<'a, D>)>,
    /// What becomes of `dx`; where x = f(z), it is replaced.
    pub write: Write,
    /// [rows, in]: dy·W; where x = f(z), that of z in its place, (dy·W)∘f'(z)
    pub dx: M<'a, D>,
}

/// Operands of [`LinearOp::linear_backward`], for y likewise.
pub struct LinearBackward<'a, D: Device> {
    /// [rows, in]
    pub x: V<'a, D>,
    /// [out, in], by rows
    pub weight: W<'a, D>,
    /// [rows, out]
    pub dy: V<'a, D>,
    /// f and z [rows, in], where x = f(z).
    pub activation: Option<(Activation, V<'a, D>)>,
    /// [rows, in]: as [`LinearInputBackward::dx`], with what becomes of it
    pub dx: Option<(Write, M<'a, D>)>,
    /// [out, in], added to: dyᵀ·x
    pub dweight: SM<'a, D>,
    /// [1, out], added to: the sum of dy's rows
    pub dbias: Option<SM<'a, D>>,
}

/// Operands of the gradients of a linear layer's parameters, which are added to.
struct ParameterBackward<'a, D: Device> {
    /// [rows, in]
    x: V<'a, D>,
    /// [rows, out]
    dy: V<'a, D>,
    /// [out, in]
    dweight: SM<'a, D>,
    /// [1, out]
    dbias: Option<SM<'a, D>>,
}

/// Matrix products with what is fused into them.
pub trait LinearOp: Device {
    /// y = f(x·Wᵀ + b) + r
    fn linear_forward(&self, args: LinearForward<'_, Self>) -> Result<()>;
    /// dx or dz from the gradient of x·Wᵀ + b, of a layer that is frozen: its input is not needed.
    fn linear_input_backward(&self, args: LinearInputBackward<'_, Self>) -> Result<()>;
    /// dx or dz, dW and db from the gradient of x·Wᵀ + b
    fn linear_backward(&self, args: LinearBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> LinearForward<'_, D> {
    fn check(&self) {
        let (rows, out) = (self.x.rows(), self.weight.rows());
        assert_eq!(self.weight.cols(), self.x.cols(), "weight [out, in] against x [rows, in]");
        assert_eq!((self.y.rows(), self.y.cols()), (rows, out), "y [rows, out]");
        assert!(self.bias.is_none_or(|b| b.cols() == out), "bias [1, out]");
        assert!(
            self.pre_activation.as_ref().is_none_or(|p| p.shape() == self.y.shape()),
            "pre_activation as y"
        );
    }
}

impl<D: Device> LinearInputBackward<'_, D> {
    fn check(&self) {
        let Self { weight, dy, activation, write, dx } = self;
        assert_eq!(dy.cols(), weight.rows(), "dy [rows, out]");
        assert_eq!((dx.rows(), dx.cols()), (dy.rows(), weight.cols()), "dx [rows, in]");
        if let Some((_, z)) = activation {
            assert_eq!(z.shape(), dx.shape(), "z as x");
            assert_eq!(*write, Write::Replace, "the gradient of z is written");
        }
    }
}

impl<'a, D: LinearOp> LinearBackward<'a, D> {
    /// Its two parts.
    fn parts(self) -> (Option<LinearInputBackward<'a, D>>, ParameterBackward<'a, D>) {
        let Self { x, weight, dy, activation, dx, dweight, dbias } = self;
        assert_eq!(weight.cols(), x.cols(), "weight [out, in] against x [rows, in]");
        assert_eq!((dy.rows(), dy.cols()), (x.rows(), weight.rows()), "dy [rows, out]");
        assert_eq!(dweight.shape(), weight.shape(), "dweight as weight");
        assert!(dbias.as_ref().is_none_or(|b| b.cols() == weight.rows()), "dbias [1, out]");
        assert!(activation.is_none() || dx.is_some(), "an activation is the input's");
        let input = dx.map(|(write, dx)| LinearInputBackward { weight, dy, activation, write, dx });
        (input, ParameterBackward { x, dy, dweight, dbias })
    }
}
