//! In place of the GPU, of a crate built without the feature `cuda`.

use crate::device::Cpu;
use crate::error::{Error, Result};

pub(super) fn open(_: usize) -> Result<Cpu> {
    Err(Error::usage(
        "this qformer was built without the feature \"cuda\"; build it with it, or compute on the CPU",
    ))
}

pub(super) fn has_driver() -> bool {
    false
}
