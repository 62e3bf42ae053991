//! The memory that tensors live in: arenas, the workspaces of passes, and what was recorded of work in them.

mod arena;
mod device_tensor;
mod recorded;
mod workspace;

pub use arena::{ALIGNMENT, Arena, Cursor};
pub use device_tensor::{DeviceTensor, PlacedTensor, Shaped, TensorInput};
pub(crate) use recorded::{Address, Recorded};
pub(crate) use workspace::{Pass, Workspace};
