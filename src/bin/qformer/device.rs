//! Where to compute.

use clap::ValueEnum;
use qformer::{Cpu, Error, Result};

/// A device by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// The fastest there is.
    Auto,
    /// The processor's cores.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Device {
    /// Opens the device.
    pub(crate) fn open(self) -> Result<Cpu> {
        match self {
            Self::Auto | Self::Cpu => Ok(Cpu::new()),
            Self::Cuda => Err(Error::device(
                "this build of qformer has no CUDA backend; use --device cpu, or auto, which takes what there is",
            )),
        }
    }
}
