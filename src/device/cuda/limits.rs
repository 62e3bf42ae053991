//! What a GPU could do at best, from what its driver says of it.

use super::{Cuda, failure};
use crate::error::Result;
use cudarc::driver::sys;

/// The most that a GPU can do: what a measurement is a share of.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes per second between the multiprocessors and the memory, read and written together.
    pub bytes_per_second: f64,
    /// Operations per second in products of dense bf16 matrices summed in `f32`, at the highest clock.
    pub bf16_flops: f64,
    /// Bytes that the second-level cache holds.
    pub cache_bytes: usize,
}

impl Cuda {
    /// The limits by the GPU's clocks, the width of its memory's bus and its number of multiprocessors.
    ///
    /// # Errors
    /// Fails if the driver does not tell.
    pub fn limits(&self) -> Result<Limits> {
        use sys::CUdevice_attribute as Attribute;
        let attribute = |which| {
            let value = self.0.context.attribute(which);
            value.map(f64::from).map_err(|error| failure(error, "tell its clocks"))
        };
        // Clocks are in kHz.
        let clock = 1e3 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?;
        let memory_clock = 1e3 * attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?;
        let bus_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)? / 8.0;
        let cache_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize;
        Ok(Limits {
            // Twice in a clock: at its rise and its fall.
            bytes_per_second: 2.0 * memory_clock * bus_bytes,
            bf16_flops: clock * f64::from(self.multiprocessors() * bf16_flops_per_clock(self.capability())),
            cache_bytes,
        })
    }

    /// The newest CUDA that the driver supports, such as (12, 9).
    ///
    /// # Errors
    /// Fails if the driver does.
    pub fn driver_version(&self) -> Result<(i32, i32)> {
        self.bind()?;
        let mut version = 0;
        // SAFETY: writes one number.
        unsafe { sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(|error| failure(error, "tell its driver's version"))?;
        Ok((version / 1000, version % 1000 / 10))
    }
}

/// bf16 operations of one multiprocessor's tensor cores in a clock, by compute capability, from the
/// architectures' white papers. GeForce cards do half of it where they sum in `f32`.
fn bf16_flops_per_clock(capability: (u32, u32)) -> u32 {
    match capability {
        (8, 0) => 2048,
        (9, _) => 4096,
        (10, _) => 8192,
        _ => 1024,
    }
}
