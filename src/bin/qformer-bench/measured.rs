//! The devices as the benchmark sees them: how precise, how fast at best, and when they are done.

use crate::peak;
use qformer::ops::Backend;
use qformer::{Cpu, Cuda, Result};

/// The most that a device can do: what a measurement is a share of.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Operations per second in products.
    pub(crate) flops: f64,
    /// Bytes of memory per second, read and written together.
    pub(crate) bytes_per_second: f64,
    /// Bytes of the largest cache; unknown on the CPU.
    pub(crate) cache_bytes: Option<usize>,
}

/// A device that can be measured.
pub(crate) trait Measured: Backend + Clone {
    /// Largest relative error of an answer against double precision that passes.
    const TOLERANCE: f64;
    /// How far a step of the optimiser is to bring the loss down.
    const FALL: f64;
    /// Largest relative error of that.
    const FALL_TOLERANCE: f64;

    /// What it is, with its software.
    fn description(&self) -> Result<String>;
    /// Its limits, and where they are from; measuring them takes some `seconds`.
    fn limits(&self, seconds: f64) -> Result<(Limits, &'static str)>;
    /// Bytes of its largest cache, if it is known.
    fn cache_bytes(&self) -> Result<Option<usize>>;
    /// Waits until everything asked for is done.
    fn finish(&self) -> Result<()>;
}

impl Measured for Cpu {
    /// `f32` has a relative precision of 6e-8, a product on AMX one of 4e-6; twelve layers of some six
    /// products each leave both far below this, and nothing that is wrong is as little wrong.
    const TOLERANCE: f64 = 1e-4;
    /// A hundred times the rounding of the loss.
    const FALL: f64 = 0.004;
    /// The curvature of the loss bends it by 5 % with random weights.
    const FALL_TOLERANCE: f64 = 0.15;

    fn description(&self) -> Result<String> {
        let amx = if self.has_amx() { ", AMX" } else { "" };
        Ok(format!("CPU, {} threads{amx}", rayon::current_num_threads()))
    }

    fn limits(&self, seconds: f64) -> Result<(Limits, &'static str)> {
        let limits = Limits {
            flops: peak::product_flops(seconds),
            bytes_per_second: peak::copied_bytes_per_second(seconds),
            cache_bytes: None,
        };
        Ok((
            limits,
            "measured: the gemm crate's f32 product (2048³), which this crate's can pass, and a copy of 256 MB",
        ))
    }

    fn cache_bytes(&self) -> Result<Option<usize>> {
        Ok(None)
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

impl Measured for Cuda {
    /// Weights and every stored activation are rounded to bf16, a relative error of at most 2⁻⁹ and of
    /// 1.1e-3 in the mean square. A layer stores some eight on the way to its output, which twelve
    /// layers add up like a random walk: 1.1e-3·√96 ≈ 1.1e-2; at BLIP-2's size 1.7e-2 is seen. Weights
    /// that are larger make more of it: transformers in bf16 is off by 3e-2 on the tests' checkpoint.
    /// Allowed is twice that.
    const TOLERANCE: f64 = 6e-2;
    /// Weights of bf16 hardly move in a smaller step.
    const FALL: f64 = 0.3;
    /// So large a step is bent by the loss's curvature: that it leads down, and about so far, is told.
    const FALL_TOLERANCE: f64 = 0.9;

    fn description(&self) -> Result<String> {
        let (major, minor) = self.driver_version()?;
        Ok(format!("{self:?}, driver for CUDA {major}.{minor}"))
    }

    fn limits(&self, _: f64) -> Result<(Limits, &'static str)> {
        let limits = Cuda::limits(self)?;
        let limits = Limits {
            flops: limits.bf16_flops,
            bytes_per_second: limits.bytes_per_second,
            cache_bytes: Some(limits.cache_bytes),
        };
        Ok((limits, "dense bf16 at the highest clock, and the memory's bus, by the device's attributes"))
    }

    fn cache_bytes(&self) -> Result<Option<usize>> {
        Ok(Some(Cuda::limits(self)?.cache_bytes))
    }

    fn finish(&self) -> Result<()> {
        self.synchronize()
    }
}
