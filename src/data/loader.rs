//! Batches, prepared by threads of their own ahead of the step that learns from them.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::draws::{Draws, Purpose, permutation};
use super::{Augmentation, Dataset, Examples, Images, Kind, Position, clean_caption};
use crate::error::{Error, Result};
use crate::tensor::HostTensor;
use crate::tokenizer::Tokenizer;
use crate::vision::image::ImageProcessor;

/// Batches that wait for the step.
const AHEAD: usize = 2;
/// Faults told in the error about too many of them.
const TOLD: usize = 3;

/// How batches are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoaderOptions {
    /// Examples in every batch.
    pub batch_size: usize,
    /// Order of an epoch's examples.
    pub order: Order,
    /// Of the order and the augmentation.
    pub seed: u64,
    /// Most tokens of a text, `[CLS]` and `[SEP]` among them; 3 or more.
    pub text_length: usize,
    /// Samples that may be unreadable, each counted once, before it is an error.
    pub max_bad_samples: usize,
    /// What becomes of pictures; features are taken as they are.
    pub augmentation: Augmentation,
}

/// Order of an epoch's examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Another in every epoch.
    Shuffled,
    /// The data set's.
    Given,
}

/// A batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// As many as were asked for.
    pub examples: Examples,
    /// Where the next batch starts: a loader started there goes on as this one does.
    pub next: Position,
    /// Samples left out because they cannot be read, each named with its fault; those that this loader
    /// met before are not told again.
    pub unreadable: Vec<String>,
}

/// An endless sequence of batches, epoch after epoch; a batch may have examples of two.
///
/// Which examples a batch has, and what they look like, is a function of the data set, the options and
/// the position alone. Captions are cleaned as LAVIS does ([`clean_caption`]) and tokenized. An example
/// that cannot be read is left out, and the next takes its place. The threads end with this value.
#[derive(Debug)]
pub struct Loader {
    /// None only while the value is dropped.
    batches: Option<Receiver<Result<Loaded>>>,
    thread: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
}

impl Loader {
    /// Starts the threads. Pictures take an image processor, features none.
    ///
    /// # Errors
    /// Fails if the data set has no caption, if `from` is not a place in it, if there is no processor
    /// for pictures, if an option is out of its range, and if no thread can be started.
    pub fn start(
        dataset: Arc<Dataset>,
        preparation: (Option<ImageProcessor>, Tokenizer),
        options: LoaderOptions,
        from: Position,
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
        if options.batch_size == 0 || options.text_length < 3 {
            return Err(Error::usage("a batch has 1 example or more, and a text takes 3 tokens or more"));
        }
        let (processor, tokenizer) = preparation;
        if dataset.kind() == Kind::Pictures && processor.is_none() {
            return Err(Error::usage("pictures take an image processor, and none is given"));
        }
        let cannot_start = |error: &dyn std::fmt::Display| {
            Error::device(format!("cannot start the threads that read the data: {error}"))
        };
        let pool = ThreadPoolBuilder::new()
            .num_threads(rayon::current_num_threads())
            .thread_name(|index| format!("data-{index}"))
            .build()
            .map_err(|error| cannot_start(&error))?;
        let stop = Arc::new(AtomicBool::new(false));
        let preparation = Preparation { dataset, processor, tokenizer, options, stop: stop.clone() };
        let producer = Producer {
            preparation,
            pool,
            position: from,
            order: Vec::new(),
            known: HashSet::new(),
            told: Vec::new(),
            barren: 0,
        };
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

/// What a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

/// What examples are made with.
struct Preparation {
    dataset: Arc<Dataset>,
    processor: Option<ImageProcessor>,
    tokenizer: Tokenizer,
    options: LoaderOptions,
    stop: Arc<AtomicBool>,
}

/// An example's place in the stream.
#[derive(Clone, Copy)]
struct Place {
    position: Position,
    /// Index of its caption.
    caption: u32,
}

/// An example, ready.
struct Sample {
    /// [3, S, S] or [N, W]
    values: Vec<f32>,
    tokens: Vec<u32>,
    image: u32,
}

impl Preparation {
    /// The example at `place`, or what is wrong with it.
    fn sample(&self, place: Place) -> std::result::Result<Sample, String> {
        if self.stop.load(Ordering::Relaxed) {
            return Err("stopped".into());
        }
        catch_unwind(AssertUnwindSafe(|| self.prepare(place))).unwrap_or_else(|panic| {
            let name = self.dataset.name(self.image_of(place) as usize);
            Err(format!("{name}: cannot be prepared: {}", panic_message(&*panic)))
        })
    }

    fn image_of(&self, place: Place) -> u32 {
        self.dataset.captions()[place.caption as usize].image
    }

    fn prepare(&self, place: Place) -> std::result::Result<Sample, String> {
        let image = self.image_of(place);
        let text = clean_caption(&self.dataset.captions()[place.caption as usize].text);
        let tokens = self.tokenizer.encode(&text, self.options.text_length).map_err(|error| {
            format!("{}: caption {}: {error}", self.dataset.name(image as usize), place.caption)
        })?;
        let values = self.values(place, image as usize).map_err(|error| error.to_string())?;
        Ok(Sample { values, tokens, image })
    }

    /// What the model reads of the image.
    fn values(&self, place: Place, image: usize) -> Result<Vec<f32>> {
        let Some(processor) = self.processor.as_ref().filter(|_| self.dataset.kind() == Kind::Pictures)
        else {
            return Ok(self.dataset.features(&[image])?.values);
        };
        let Position { epoch, example } = place.position;
        let mut draws = Draws::new(self.options.seed, Purpose::Augmentation, epoch, example as u32);
        self.options.augmentation.pixel_values(&self.dataset.picture(image)?, processor, &mut draws)
    }

    /// The batch of `samples`.
    fn examples(&self, samples: Vec<Sample>) -> Examples {
        let image_ids: Vec<u32> = samples.iter().map(|sample| sample.image).collect();
        let names = image_ids.iter().map(|&image| self.dataset.name(image as usize)).collect();
        let count = samples.len();
        let (mut values, mut texts) = (Vec::new(), Vec::new());
        for sample in samples {
            if values.is_empty() {
                values.reserve_exact(count * sample.values.len());
            }
            values.extend_from_slice(&sample.values);
            texts.push(sample.tokens);
        }
        let images = match (self.dataset.kind(), &self.processor) {
            (Kind::Features { tokens, width }, _) => {
                Images::Features(HostTensor::new(&[count, tokens, width], values))
            }
            (Kind::Pictures, processor) => {
                let (height, width) = processor.as_ref().expect("checked at the start").size();
                Images::Pixels(HostTensor::new(&[count, 3, height, width], values))
            }
        };
        Examples { images, texts, image_ids, names }
    }
}

/// Makes the batches.
struct Producer {
    preparation: Preparation,
    pool: ThreadPool,
    /// Of the next example.
    position: Position,
    /// Captions in the order of the position's epoch; empty until it is needed.
    order: Vec<u32>,
    /// All faults met.
    known: HashSet<String>,
    /// The first of them.
    told: Vec<String>,
    /// Examples since the last one that could be read.
    barren: usize,
}

impl Producer {
    /// Sends batch after batch, until an error, or until nobody takes them.
    fn run(mut self, batches: &SyncSender<Result<Loaded>>) {
        loop {
            let batch = self.batch();
            let last = batch.is_err() || self.preparation.stop.load(Ordering::Relaxed);
            if batches.send(batch).is_err() || last {
                return;
            }
        }
    }

    fn batch(&mut self) -> Result<Loaded> {
        let batch_size = self.preparation.options.batch_size;
        let (mut samples, mut unreadable) = (Vec::with_capacity(batch_size), Vec::new());
        while samples.len() < batch_size {
            let places: Vec<Place> = (samples.len()..batch_size).map(|_| self.advance()).collect();
            let preparation = &self.preparation;
            let prepared: Vec<_> =
                self.pool.install(|| places.into_par_iter().map(|place| preparation.sample(place)).collect());
            if self.preparation.stop.load(Ordering::Relaxed) {
                return Err(Error::value("the loader was stopped"));
            }
            for sample in prepared {
                match sample {
                    Ok(sample) => {
                        samples.push(sample);
                        self.barren = 0;
                    }
                    Err(fault) => unreadable.extend(self.count(fault)?),
                }
            }
        }
        Ok(Loaded { examples: self.preparation.examples(samples), next: self.position, unreadable })
    }

    /// The next example's place.
    fn advance(&mut self) -> Place {
        let LoaderOptions { order, seed, .. } = self.preparation.options;
        let count = self.preparation.dataset.captions().len() as u64;
        let position = self.position;
        let caption = match order {
            Order::Given => position.example as u32,
            Order::Shuffled => {
                if self.order.is_empty() {
                    self.order = permutation(seed, position.epoch, count as u32);
                }
                self.order[position.example as usize]
            }
        };
        self.position.example += 1;
        if self.position.example == count {
            self.position = Position { epoch: position.epoch + 1, example: 0 };
            self.order.clear();
        }
        Place { position, caption }
    }

    /// Counts an example that cannot be read; returns its fault if it is new.
    fn count(&mut self, fault: String) -> Result<Option<String>> {
        let examples = self.preparation.dataset.captions().len();
        self.barren += 1;
        let known = !self.known.insert(fault.clone());
        if !known && self.told.len() < TOLD {
            self.told.push(fault.clone());
        }
        let (bad, allowed) = (self.known.len(), self.preparation.options.max_bad_samples);
        if bad > allowed {
            return Err(Error::value(format!(
                "{bad} samples cannot be read, and {allowed} are allowed (--max-bad-samples): {}",
                self.told.join("; ")
            )));
        }
        if self.barren >= examples {
            return Err(Error::value(format!(
                "none of the {examples} samples can be read: {}",
                self.told.join("; ")
            )));
        }
        Ok((!known).then_some(fault))
    }
}
