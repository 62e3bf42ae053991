//! Rows to where an index says: `y[ids[i]] = x[i]`, as the keys and values of new tokens go to a cache.
//!
//! It belongs to inference and has no backward pass.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, V};
use crate::error::Result;
use crate::ops::embedding::Ids;

/// Operands of [`ScatterOp::scatter`].
pub struct Scatter<'a, D: Device> {
    /// Row of y for each row of x [1, count]; less than the rows of y, and none of them twice.
    pub ids: Ids<'a, D>,
    /// [count, width]
    pub x: V<'a, D>,
    /// [rows, width]; rows that no index names stay as they are
    pub y: M<'a, D>,
}

/// Rows written where indices say.
pub trait ScatterOp: Device {
    /// `y[ids[i]] = x[i]`
    fn scatter(&self, args: Scatter<'_, Self>) -> Result<()>;
}
