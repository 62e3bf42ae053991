//! Timing.

use crate::measured::Measured;
use qformer::Result;
use rayon::prelude::*;
use std::time::Instant;

/// Fewest runs that a median is taken of.
const FEWEST_RUNS: usize = 5;
/// Seconds that several launches take together before they are waited for: long beside the waiting.
const BETWEEN_WAITS: f64 = 5e-3;
/// Most launches between two waits.
const MOST_LAUNCHES: f64 = 200.0;

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

/// The same for one operation of a device that runs behind: so many launches between two waits, started
/// as a pass starts them, that neither the start nor the wait counts. Times are those of one launch.
pub(crate) fn repeat_launches<B: Measured>(
    device: &B,
    seconds: f64,
    mut launch: impl FnMut() -> Result<()> + Send,
) -> Result<Times> {
    // The first launch loads the kernel.
    launch()?;
    device.finish()?;
    let begin = Instant::now();
    launch()?;
    device.finish()?;
    let once = begin.elapsed().as_secs_f64();
    let launches = (BETWEEN_WAITS / once).clamp(1.0, MOST_LAUNCHES).ceil();
    let mut replay = B::Replay::default();
    let mut batch = || {
        let work = || (0..launches as usize).try_for_each(|_| launch());
        // SAFETY: the same launches each time, on memory that is there as long as they can be launched.
        device.enter(|| unsafe { device.replay(&mut replay, work) })?;
        device.finish()
    };
    // Recorded the second time.
    batch()?;
    let mut times = repeat(seconds, batch)?;
    times.0.iter_mut().for_each(|time| *time /= launches);
    Ok(times)
}

/// Operations per second of a square f32 product, the best of some runs: what the machine can do.
pub(crate) fn product_flops(seconds: f64) -> f64 {
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
    2.0 * (N as f64).powi(3) / best
}

/// Bytes per second, read and written, of copying more than caches hold, the best of some runs.
pub(crate) fn copied_bytes_per_second(seconds: f64) -> f64 {
    const WORDS: usize = 1 << 26;
    let (from, mut to) = (vec![1u32; WORDS], vec![0u32; WORDS]);
    let times = repeat(seconds.min(1.0), || {
        let pieces = to.par_chunks_mut(1 << 20).zip(from.par_chunks(1 << 20));
        pieces.for_each(|(to, from)| to.copy_from_slice(from));
        Ok(())
    });
    2.0 * size_of_val(&from[..]) as f64 / times.expect("a copy does not fail").minimum()
}
