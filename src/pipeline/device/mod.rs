//! Where to compute, chosen when the program runs.

#[cfg(feature = "cuda")]
mod gpu;
#[cfg(not(feature = "cuda"))]
mod no_gpu;

#[cfg(feature = "cuda")]
use gpu as cuda;
#[cfg(not(feature = "cuda"))]
use no_gpu as cuda;

use crate::device::Cpu;
use crate::error::{Error, Result};
use crate::ops::Backend;
use std::fmt;
use std::str::FromStr;

/// A device by its name: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// ```
/// use qformer::DeviceName;
///
/// assert_eq!("cuda:1".parse::<DeviceName>().unwrap(), DeviceName::Cuda(1));
/// assert!("tpu".parse::<DeviceName>().is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceName {
    /// The first GPU, or the processor's cores if there is none that can be used.
    #[default]
    Auto,
    /// The processor's cores.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(0) => f.write_str("cuda"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => name
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    Error::usage(format!("{name:?} is no device; the devices are auto, cpu, cuda and cuda:N"))
                }),
        }
    }
}

/// Work that can be done on any device.
pub trait OnDevice {
    /// What comes of it.
    type Output;

    /// Does it on this device. `fallback` says why that is the CPU though there is a GPU's driver, where the choice was
    /// left to [`DeviceName::Auto`].
    fn run<B: Backend + Clone>(self, device: B, fallback: Option<Error>) -> Self::Output;
}

impl DeviceName {
    /// Opens the device and does the work on it.
    ///
    /// # Errors
    /// Fails if the device is not there or cannot be used.
    pub fn run<W: OnDevice>(self, work: W) -> Result<W::Output> {
        match self {
            Self::Cpu => Ok(work.run(Cpu::<f32>::new(), None)),
            Self::Cuda(number) => Ok(work.run(cuda::open(number)?, None)),
            // Nothing is missing on a machine without a GPU.
            Self::Auto if !cuda::has_driver() => Ok(work.run(Cpu::<f32>::new(), None)),
            Self::Auto => Ok(match cuda::open(0) {
                Ok(gpu) => work.run(gpu, None),
                Err(why) => work.run(Cpu::<f32>::new(), Some(why)),
            }),
        }
    }
}
