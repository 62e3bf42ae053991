//! Batches, prepared by threads of their own ahead of the step that learns from them.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};

use rayon::ThreadPoolBuilder;

use super::batches::{Loaded, LoaderOptions};
use super::producer::{Preparation, Producer, panic_message};
use super::{Dataset, Kind, Position};
use crate::error::{Error, Result};
use crate::models::vision::image::ImageProcessor;
use crate::tokenizer::Tokenizer;

/// Batches that wait for the step.
const AHEAD: usize = 2;

/// The last epoch that a run can begin in; from there on, sums of epochs and examples are still in range.
const MAX_EPOCH: u64 = u32::MAX as u64;

/// An endless sequence of batches, epoch after epoch; a batch may have examples of two.
///
/// Which examples a batch has, and what they look like, is a function of the data set, the options and
/// the position alone. An example that cannot be read is left out, and the next takes its place. The
/// threads end with this value.
#[derive(Debug)]
pub struct Loader {
    /// None only while the value is dropped.
    batches: Option<Receiver<Result<Loaded>>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Loader {
    /// Starts the threads. Pictures take an image processor, features none. `unreadable` are the faults of
    /// samples left out before `from`: they count as if this loader had met them.
    ///
    /// # Errors
    /// Fails if the data set has no caption, if `from` is not a place in it, if there is no processor
    /// for pictures, if an option is out of its range, and if no thread can be started.
    pub fn start(
        dataset: Arc<Dataset>,
        preparation: (Option<ImageProcessor>, Tokenizer),
        options: LoaderOptions,
        from: Position,
        unreadable: &[String],
    ) -> Result<Self> {
        let count = dataset.captions().len();
        if count == 0 {
            return Err(Error::value("the data set has no caption to learn from"));
        }
        if from.example >= count as u64 {
            return Err(Error::value(format!(
                "the run stands at example {} of an epoch, but the data set has {count}; it is another",
                from.example
            )));
        }
        if from.epoch > MAX_EPOCH {
            return Err(Error::value(format!(
                "the run stands in epoch {}; none gets beyond {MAX_EPOCH}",
                from.epoch
            )));
        }
        if options.batch_size == 0 || options.text_length < 3 {
            return Err(Error::usage("a batch has 1 example or more, and a text takes 3 tokens or more"));
        }
        let (processor, tokenizer) = preparation;
        if dataset.kind() == Kind::Pictures && processor.is_none() {
            return Err(Error::usage("pictures take an image processor, and none is given"));
        }
        let cannot_start = |error: &dyn Display| {
            Error::device(format!("cannot start the threads that read the data: {error}"))
        };
        let pool = ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|index| format!("data-{index}"))
            .build()
            .map_err(|error| cannot_start(&error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let preparation = Preparation { dataset, processor, tokenizer, options, stop: stop.clone() };
        let producer = Producer::new(preparation, pool, from, unreadable);
        let (sender, batches) = sync_channel(AHEAD);
        let thread = thread::Builder::new()
            .name("data".into())
            .spawn(move || producer.run(&sender))
            .map_err(|error| cannot_start(&error))?;
        Ok(Self { batches: Some(batches), thread: Some(thread), stop })
    }

    /// The next batch, waited for if need be.
    ///
    /// # Errors
    /// Fails if more samples than allowed cannot be read, naming the first of them, and if a thread
    /// has failed. After an error there is no further batch.
    #[expect(clippy::should_implement_trait, reason = "there is always a next batch, or an error")]
    pub fn next(&mut self) -> Result<Loaded> {
        let batches = self.batches.as_ref().expect("there until the value is dropped");
        batches.recv().unwrap_or_else(|_| {
            let panic = self.thread.take().and_then(|thread| thread.join().err());
            let why = panic.as_deref().map_or("it was stopped by an earlier error", panic_message);
            Err(Error::value(format!("the thread that reads the data has ended: {why}")))
        })
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // A thread that waits to hand over a batch wakes up.
        drop(self.batches.take());
        if let Some(thread) = self.thread.take() {
            // Whatever it ended with, nobody asks for it any more.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_of_the_thread_is_an_error() {
        let (sender, batches) = sync_channel(1);
        let thread = thread::spawn(move || {
            let _nothing_is_sent = sender;
            panic!("planted");
        });
        let stop = Arc::new(AtomicBool::new(false));
        let mut loader = Loader { batches: Some(batches), thread: Some(thread), stop };
        let error = loader.next().unwrap_err().to_string();
        assert!(error.ends_with("has ended: planted"), "{error}");
    }
}
