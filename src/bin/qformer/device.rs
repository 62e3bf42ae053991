//! Where to compute.

use crate::Remarks;
use clap::ValueEnum;
use qformer::{Cpu, Cuda, Result};

/// A device by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Device {
    /// A GPU, or the processor's cores if there is none
    Auto,
    /// The processor's cores
    Cpu,
    /// An NVIDIA GPU
    Cuda,
}

/// A device, ready to compute.
pub(crate) enum Opened {
    Cpu(Cpu),
    Cuda(Cuda),
}

impl Device {
    /// Opens the device.
    pub(crate) fn open(self, remarks: Remarks) -> Result<Opened> {
        match self {
            Self::Cpu => Ok(Opened::Cpu(Cpu::new())),
            Self::Cuda => Ok(Opened::Cuda(Cuda::open(0)?)),
            // Nothing is missing on a machine without a GPU.
            Self::Auto if !Cuda::has_driver() => Ok(Opened::Cpu(Cpu::new())),
            Self::Auto => Ok(match Cuda::open(0) {
                Ok(cuda) => Opened::Cuda(cuda),
                Err(why) => {
                    remarks.note(format_args!("computing on the CPU, since {why}"));
                    Opened::Cpu(Cpu::new())
                }
            }),
        }
    }
}
