//! Timing.

use qformer::Result;
use std::time::Instant;

/// Fewest runs that a median is taken of.
const FEWEST_RUNS: usize = 5;

/// Seconds of each run, sorted.
pub(crate) struct Times(Vec<f64>);

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

/// GFLOP/s of a square f32 product, the best of some runs: what the machine can do.
pub(crate) fn gemm_peak(seconds: f64) -> f64 {
    const N: usize = 2048;
    let (a, b, mut c) = (vec![0.5f32; N * N], vec![0.25f32; N * N], vec![0.0f32; N * N]);
    let times = repeat(seconds.min(1.0), || {
        let threads = gemm::Parallelism::Rayon(0);
        let (row, col) = (N as isize, 1);
        // SAFETY: three matrices of N·N elements, c exclusive.
        unsafe {
            gemm::gemm(
                N,
                N,
                N,
                c.as_mut_ptr(),
                col,
                row,
                false,
                a.as_ptr(),
                col,
                row,
                b.as_ptr(),
                col,
                row,
                0.0,
                1.0,
                false,
                false,
                false,
                threads,
            );
        }
        Ok(())
    });
    let best = times.expect("a product does not fail").minimum();
    2.0 * (N as f64).powi(3) / best / 1e9
}
