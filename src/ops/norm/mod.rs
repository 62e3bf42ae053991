//! The Euclidean length of a flat vector, such as the gradient of all parameters.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, S, SM};
use crate::error::Result;

/// Partial sums of squares that are summed in the end. The number is fixed so that the result does not
/// depend on how many processors a device has.
pub const PARTIAL_SUMS: usize = 1024;

/// Operands of [`NormOp::norm`].
pub struct Norm<'a, D: Device> {
    /// [1, n]
    pub x: S<'a, D>,
    /// [1, PARTIAL_SUMS], written: memory to work in
    pub partial_sums: SM<'a, D>,
    /// [1, 1], written
    pub norm: SM<'a, D>,
}

/// Length of a vector.
pub trait NormOp: Device {
    /// ‖x‖ = √(Σ x²); not finite if an element, or the sum of the squares, is not.
    fn norm(&self, args: Norm<'_, Self>) -> Result<()>;
}

impl<D: Device> Norm<'_, D> {
    /// Asserts the shapes.
    fn check(&self) {
        assert_eq!(self.x.rows(), 1, "x [1, n]");
        assert_eq!((self.partial_sums.rows(), self.partial_sums.cols()), (1, PARTIAL_SUMS), "partial sums");
        assert_eq!((self.norm.rows(), self.norm.cols()), (1, 1), "norm [1, 1]");
    }
}
