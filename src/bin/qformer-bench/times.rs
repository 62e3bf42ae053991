//! Times of work that is done again and again.

use qformer::Result;
use std::time::Instant;

/// Fewest runs that a median is taken of.
const FEWEST_RUNS: usize = 5;

/// Seconds of each run, sorted.
pub(crate) struct Times(pub(crate) Vec<f64>);

impl Times {
    pub(crate) fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    pub(crate) fn minimum(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn maximum(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }
}

/// Runs `work` once unmeasured, then for `seconds`, but at least a few times.
pub(crate) fn repeat(seconds: f64, mut work: impl FnMut() -> Result<()>) -> Result<Times> {
    work()?;
    let mut times = Vec::new();
    let start = Instant::now();
    while times.len() < FEWEST_RUNS || start.elapsed().as_secs_f64() < seconds {
        let begin = Instant::now();
        work()?;
        times.push(begin.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    Ok(Times(times))
}
