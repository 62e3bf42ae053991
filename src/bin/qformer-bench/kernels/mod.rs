//! Every operation, forward and backward, at the sizes that it has in the model: what it costs by
//! formula, what time it takes, and how near that is to what the device can do.
//!
//! The bytes of a case are those of its operands, each read or written once. The share is that of the
//! time which these bytes, or the operations where that is longer, take at the device's limits.

mod attention;
mod losses;
mod pairs;
mod parameters;
mod products;
mod rows;
mod tensor;

use crate::measure;
use crate::measured::{Limits, Measured};
use qformer::Result;
use qformer::config::Config;
use serde_json::{Value, json};

/// Tokens of a caption. All but the first are predicted: 2816 rows of logits for 256 captions.
const CAPTION: usize = 12;

/// What a case costs.
#[derive(Clone, Copy)]
struct Cost {
    /// Operations; 0 where only bytes count.
    flops: f64,
    /// Bytes of operands.
    bytes: f64,
}

impl Cost {
    /// Of an operation that does little with its operands.
    fn bytes(bytes: usize) -> Self {
        Self { flops: 0.0, bytes: bytes as f64 }
    }
}

/// Measures the cases one after the other.
pub(crate) struct Kernels<'a, B: Measured> {
    pub(crate) device: &'a B,
    pub(crate) config: &'a Config,
    /// B
    pub(crate) batch: usize,
    pub(crate) limits: Limits,
    /// Spent on each case.
    pub(crate) seconds: f64,
    /// Shows a line of the table.
    pub(crate) tell: &'a dyn Fn(&str) -> Result<()>,
    pub(crate) results: Vec<Value>,
}

impl<B: Measured> Kernels<'_, B> {
    /// All cases.
    pub(crate) fn run(mut self) -> Result<Vec<Value>> {
        (self.tell)(&format!(
            "\n{:<30} {:<38} {:>11} {:>9} {:>9} {:>9}",
            "operation", "shape", "median µs", "GB/s", "GFLOP/s", "of limit"
        ))?;
        products::measure(&mut self)?;
        attention::measure(&mut self)?;
        rows::measure(&mut self)?;
        losses::measure(&mut self)?;
        pairs::measure(&mut self)?;
        parameters::measure(&mut self)?;
        if self.limits.cache_bytes.is_some() {
            (self.tell)(
                "* the operands fit in the second-level cache, as they may between operations of a pass",
            )?;
        }
        Ok(self.results)
    }

    /// Measures one case.
    fn case(
        &mut self,
        operation: &str,
        shape: &str,
        Cost { flops, bytes }: Cost,
        launch: impl FnMut() -> Result<()> + Send,
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

    /// Bytes of so many weights or activations.
    fn elements(&self, count: usize) -> usize {
        count * size_of::<B::Elem>()
    }

    /// Bytes of so many statistics or gradients of parameters.
    fn statistics(&self, count: usize) -> usize {
        count * size_of::<B::Stat>()
    }
}
