//! Every operation by itself: what time it takes, and how near that is to what the device can do.
//!
//! The share is that of the time which the bytes of the operands, or the operations where that is longer, take at the
//! device's limits.

use crate::cases::{Case, Cases, Cost, FrontEnd};
use crate::measure;
use crate::measured::{Limits, Measured};
use qformer::Result;
use qformer::config::Config;
use serde_json::{Value, json};

/// Measures the cases one after the other.
pub(crate) struct Kernels<'a, B: Measured> {
    pub(crate) device: &'a B,
    pub(crate) limits: Limits,
    /// Spent on each case.
    pub(crate) seconds: f64,
    /// Shows a line of the table.
    pub(crate) tell: &'a dyn Fn(&str) -> Result<()>,
    pub(crate) results: Vec<Value>,
}

impl<B: Measured> Kernels<'_, B> {
    /// All cases.
    pub(crate) fn run(mut self, config: &Config, batch: usize) -> Result<Vec<Value>> {
        (self.tell)(&format!(
            "\n{:<30} {:<38} {:>11} {:>9} {:>9} {:>9}",
            "operation", "shape", "median µs", "GB/s", "GFLOP/s", "of limit"
        ))?;
        Cases { device: self.device, config, batch, front_end: &mut self }.run()?;
        if self.limits.cache_bytes.is_some() {
            (self.tell)(
                "* the operands fit in the second-level cache, as they may between operations of a pass",
            )?;
        }
        Ok(self.results)
    }
}

impl<B: Measured> FrontEnd for Kernels<'_, B> {
    fn measure(
        &mut self,
        &Case { operation, shape, cost: Cost { flops, bytes } }: &Case<'_>,
        launch: &mut (dyn FnMut() -> Result<()> + Send),
    ) -> Result<()> {
        let times = measure::repeat_launches(self.device, self.seconds, launch)?;
        let median = times.median();
        let least = (flops / self.limits.flops).max(bytes / self.limits.bytes_per_second);
        let cached = self.limits.cache_bytes.is_some_and(|cache| bytes <= cache as f64);
        let gflops = if flops > 0.0 { format!("{:.0}", flops / median / 1e9) } else { String::new() };
        (self.tell)(&format!(
            "{operation:<30} {shape:<38} {:>11.1} {:>9.1} {gflops:>9} {:>8.1}%{}",
            median * 1e6,
            bytes / median / 1e9,
            100.0 * least / median,
            if cached { " *" } else { "" }
        ))?;
        self.results.push(json!({
            "operation": operation, "shape": shape, "runs": times.count(),
            "median_s": median, "min_s": times.minimum(), "max_s": times.maximum(),
            "bytes": bytes, "flop": flops, "gbyte_per_second": bytes / median / 1e9,
            "gflop_per_second": flops / median / 1e9, "share_of_limit": least / median, "in_cache": cached,
        }));
        Ok(())
    }
}
