//! The GPU, of a crate built with the feature `cuda`.

use crate::device::Cuda;
use crate::error::Result;

pub(super) fn open(number: usize) -> Result<Cuda> {
    Cuda::open(number)
}

pub(super) fn has_driver() -> bool {
    Cuda::has_driver()
}
