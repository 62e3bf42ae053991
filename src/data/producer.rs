//! The thread that makes a loader's batches.

use std::any::Any;
use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;

use rayon::ThreadPool;
use rayon::prelude::*;

use super::batches::{Loaded, LoaderOptions, Order};
use super::draws::{Draws, Purpose, permutation};
use super::{Dataset, Examples, Images, Kind, Position};
use crate::error::{Error, Result};
use crate::models::vision::image::ImageProcessor;
use crate::output::counted;
use crate::tensor::HostTensor;
use crate::tokenizer::Tokenizer;

/// Faults told in the error about too many of them.
const TOLD: usize = 3;

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

/// Runs `prepare` and turns a panic in it into a fault of the sample `name`.
fn contain_panic<T>(
    name: impl FnOnce() -> String,
    prepare: impl FnOnce() -> std::result::Result<T, String>,
) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(prepare))
        .unwrap_or_else(|panic| Err(format!("{}: cannot be prepared: {}", name(), panic_message(&*panic))))
}

/// What examples are made with.
pub(super) struct Preparation {
    pub(super) dataset: Arc<Dataset>,
    pub(super) processor: Option<ImageProcessor>,
    pub(super) tokenizer: Tokenizer,
    pub(super) options: LoaderOptions,
    /// Set when nobody takes batches any more.
    pub(super) stop: Arc<AtomicBool>,
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
        let name = || self.dataset.name(self.image_of(place) as usize);
        contain_panic(name, || self.prepare(place))
    }

    fn image_of(&self, place: Place) -> u32 {
        self.dataset.captions().image(place.caption as usize)
    }

    fn prepare(&self, place: Place) -> std::result::Result<Sample, String> {
        let image = self.image_of(place);
        let text = self.dataset.text(place.caption as usize);
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
            return Ok(self.dataset.features(&[image])?.into_values());
        };
        let Position { epoch, example } = place.position;
        let mut draws = Draws::new(self.options.seed, Purpose::Augmentation, epoch, example as u32);
        self.options.augmentation.pixel_values(&self.dataset.picture(image)?, processor, &mut draws)
    }

    /// The batch of `samples`.
    fn examples(&self, samples: Vec<Sample>) -> Result<Examples> {
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
                Images::Features(HostTensor::new(&[count, tokens, width], values)?)
            }
            (Kind::Pictures, processor) => {
                let (height, width) = processor.as_ref().expect("checked at the start").size();
                Images::Pixels(HostTensor::new(&[count, 3, height, width], values)?)
            }
        };
        Ok(Examples { images, texts, image_ids, names })
    }
}

/// Makes the batches.
pub(super) struct Producer {
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
    pub(super) fn new(
        preparation: Preparation,
        pool: ThreadPool,
        from: Position,
        unreadable: &[String],
    ) -> Self {
        Self {
            preparation,
            pool,
            position: from,
            order: Vec::new(),
            known: unreadable.iter().cloned().collect(),
            told: unreadable.iter().take(TOLD).cloned().collect(),
            barren: 0,
        }
    }

    /// Sends batch after batch, until an error, or until nobody takes them.
    pub(super) fn run(mut self, batches: &SyncSender<Result<Loaded>>) {
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
        Ok(Loaded { examples: self.preparation.examples(samples)?, next: self.position, unreadable })
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
                "{} cannot be read; `max_bad_samples` allows {allowed}: {}",
                counted(bad, "sample"),
                self.told.join("; ")
            ))
            .naming(&["max_bad_samples"]));
        }
        if self.barren >= examples {
            return Err(Error::value(format!(
                "no sample can be read, of {examples}: {}",
                self.told.join("; ")
            )));
        }
        Ok((!known).then_some(fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_fault_of_its_sample() {
        let fault = contain_panic::<()>(|| "cat.png".into(), || panic!("planted {}", 5)).unwrap_err();
        assert_eq!(fault, "cat.png: cannot be prepared: planted 5");
    }
}
