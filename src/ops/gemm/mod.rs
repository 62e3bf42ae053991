//! The linear layer: y = f(x·Wᵀ + b) + r, with W [out, in] as checkpoints store it.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, SM, V, W, Write};
use crate::error::Result;
use crate::ops::activation::Activation;

/// Operands of [`GemmOp::gemm_forward`].
pub struct GemmForward<'a, D: Device> {
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

/// Operands of [`GemmOp::gemm_backward`], for y without its activation, whose gradient belongs to the layer that
/// reads y: there it is the input's.
pub struct GemmBackward<'a, D: Device> {
    /// [rows, in]
    pub x: V<'a, D>,
    /// [out, in], by rows
    pub weight: W<'a, D>,
    /// [rows, out]
    pub dy: V<'a, D>,
    /// f and z [rows, in], where x = f(z).
    pub activation: Option<(Activation, V<'a, D>)>,
    /// [rows, in]: dy·W; where x = f(z), that of z in its place, (dy·W)∘f'(z), which is always written
    pub dx: Option<(Write, M<'a, D>)>,
    /// [out, in], added to: dyᵀ·x
    pub dweight: SM<'a, D>,
    /// [1, out], added to: the sum of dy's rows
    pub dbias: Option<SM<'a, D>>,
}

/// Matrix products with what is fused into them.
pub trait GemmOp: Device {
    /// y = f(x·Wᵀ + b) + r
    fn gemm_forward(&self, args: GemmForward<'_, Self>) -> Result<()>;
    /// dx or dz, dW and db from the gradient of x·Wᵀ + b
    fn gemm_backward(&self, args: GemmBackward<'_, Self>) -> Result<()>;
}

impl<D: Device> GemmForward<'_, D> {
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

impl<D: Device> GemmBackward<'_, D> {
    fn check(&self) {
        let (rows, out) = (self.x.rows(), self.weight.rows());
        assert_eq!(self.weight.cols(), self.x.cols(), "weight [out, in] against x [rows, in]");
        assert_eq!((self.dy.rows(), self.dy.cols()), (rows, out), "dy [rows, out]");
        assert_eq!(self.dweight.shape(), self.weight.shape(), "dweight as weight");
        assert!(self.dx.as_ref().is_none_or(|(_, dx)| dx.shape() == self.x.shape()), "dx as x");
        if let Some((_, z)) = &self.activation {
            assert_eq!(z.shape(), self.x.shape(), "z as x");
            assert!(matches!(self.dx, Some((Write::Replace, _))), "the gradient of z is written");
        }
        assert!(self.dbias.as_ref().is_none_or(|b| b.cols() == out), "dbias [1, out]");
    }
}
