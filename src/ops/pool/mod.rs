//! The mean over each group of consecutive rows, such as the queries of one image.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, V};
use crate::error::Result;

/// Operands of [`PoolOp::pool_forward`].
pub struct PoolForward<'a, D: Device> {
    /// [groups·size, width]
    pub x: V<'a, D>,
    /// [groups, width]
    pub y: M<'a, D>,
}

/// Operands of [`PoolOp::pool_backward`].
pub struct PoolBackward<'a, D: Device> {
    /// [groups, width]
    pub dy: V<'a, D>,
    /// [groups·size, width], written
    pub dx: M<'a, D>,
}

/// Means over groups of rows; the size of a group follows from the shapes.
pub trait PoolOp: Device {
    /// `y[g] = mean of x[g·size .. (g + 1)·size]`
    fn pool_forward(&self, args: PoolForward<'_, Self>) -> Result<()>;
    /// `dx[g·size + i] = dy[g] / size`
    fn pool_backward(&self, args: PoolBackward<'_, Self>) -> Result<()>;
}

/// Rows in a group.
fn group_size(rows: usize, groups: usize) -> usize {
    assert!(groups > 0 && rows.is_multiple_of(groups) && rows > 0, "{rows} rows in {groups} groups");
    rows / groups
}
