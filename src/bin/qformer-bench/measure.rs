//! Timing of operations on a device.

use crate::measured::Measured;
use crate::times::{Times, repeat};
use qformer::Result;
use std::time::Instant;

/// Seconds that several launches take together before they are waited for: long beside the waiting.
const BETWEEN_WAITS: f64 = 5e-3;
/// Most launches between two waits.
const MOST_LAUNCHES: f64 = 200.0;

/// [`repeat`] for one operation of a device that runs behind: so many launches between two waits, started
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
