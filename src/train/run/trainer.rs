//! A run: data to steps, steps to a folder.

use super::checkpoint::{self, Frozen, Moments, State, Tensors};
use super::folder::Run;
use super::metrics::{self, Line, Metrics, Record};
use super::model::{Companions, TrainingStart};
use super::objective::{CardFacts, Objective, StepLoss, StepSize};
use super::settings::Settings;
use super::{curves, non_finite};
use crate::config::Config;
use crate::data::{Dataset, Images, Kind, Loader, LoaderOptions, Position};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::memory::PlacedTensor;
use crate::models::vision::encoder::VisionEncoder;
use crate::output::write_atomically;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Name of the file with a run's curves.
const CURVES_FILE_NAME: &str = "curves.svg";
/// Bytes.
const GIB: f64 = (1 << 30) as f64;

/// A run of an objective.
pub struct Trainer<O: Objective> {
    device: O::Device,
    config: Config,
    settings: Settings<O::Settings>,
    objective: O,
    /// Where the data are pictures.
    encoder: Option<VisionEncoder<O::Device>>,
    /// The image encoder's file, if the checkpoints carry it.
    frozen: Option<Frozen>,
    loader: Loader,
    /// Of the data set.
    fingerprint: u32,
    companions: Companions,
    /// Trained tensors that transformers has no place for, and the name of the file for them.
    extra: Option<(&'static str, BTreeSet<String>)>,
    run: Run,
    metrics: Metrics,
    /// What there is to know before the first step.
    warnings: Vec<String>,
    /// Steps done.
    step: usize,
    /// Where the next step's data begin.
    position: Position,
    /// Faults of the samples left out so far.
    unreadable: Vec<String>,
    /// The newest checkpoint's folder, and the step it is of.
    saved: Option<(usize, PathBuf)>,
    /// Steps done, and since when.
    since: (usize, Instant),
}

/// What is told of a step while the run goes on.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its losses and whatever else was measured.
    pub record: Record,
    /// Of the run.
    pub steps: usize,
    /// Where the step's data begin, counted from 0.
    pub epoch: u64,
    /// Examples a second, data included.
    pub samples_per_second: f64,
    /// Until the last step.
    pub left: Duration,
    /// Samples that could not be read, each with its fault.
    pub unreadable: Vec<String>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With its last step.
    Done,
    /// Because it was asked to.
    Stopped,
}

/// What a step learns from, read.
struct Read<B> {
    batches: Vec<B>,
    names: Vec<String>,
    next: Position,
    unreadable: Vec<String>,
}

impl<O: Objective> Trainer<O> {
    /// Gets ready for the first step, or for the one after the checkpoint that `run` goes on from; `model`
    /// then is that checkpoint's.
    ///
    /// # Errors
    /// Fails if a setting is out of bounds, if model and data do not fit each other, if a file cannot be read
    /// or written, and if there is not enough memory.
    pub fn new(
        device: O::Device,
        settings: Settings<O::Settings>,
        model: TrainingStart<'_>,
        dataset: Arc<Dataset>,
        run: Run,
    ) -> Result<Self> {
        settings.validate()?;
        dataset.check_features([model.config.image_tokens(), model.config.vision.width()])?;
        let mut objective = O::open(device.clone(), &settings, &model)?;
        let TrainingStart { config, tokenizer, processor, companions, source, has_encoder } = model;
        let encoder = match dataset.kind() {
            Kind::Features { .. } => None,
            Kind::Pictures => {
                let encoder = VisionEncoder::from_source(device.clone(), &config, source, &mut |_, _| ())?;
                encoder.reserve(settings.batch_size)?;
                Some(encoder)
            }
        };
        let carried = has_encoder || encoder.is_some();
        let frozen = carried.then(|| Frozen::of(run.folder(), run.saved(), &config, source)).transpose()?;
        objective.reserve(StepSize {
            images: settings.batch_size,
            batches: settings.accum_freq,
            image_tokens: config.image_tokens(),
            text_tokens: settings.text_length,
        })?;
        let fingerprint = dataset.fingerprint()?;
        if let Some(saved) = run.saved() {
            saved.check_place(&settings, &dataset, fingerprint)?;
        }
        let state = run.saved().map(|saved| saved.state.clone());
        let State { global_step: step, position, unreadable, .. } = state.unwrap_or_default();
        let options = LoaderOptions {
            batch_size: settings.batch_size,
            order: settings.order,
            seed: settings.seed.into(),
            text_length: settings.text_length,
            max_bad_samples: settings.max_bad_samples,
            augmentation: settings.augment,
        };
        let processor = processor.filter(|_| encoder.is_some());
        let captions = dataset.captions().len();
        let loader = Loader::start(dataset, (processor, tokenizer), options, position, &unreadable)?;
        let extra = objective.extra_file();
        let saved = run.saved().map(|saved| saved.state.global_step);
        let mut warnings = Vec::new();
        let path = run.folder().join(metrics::FILE_NAME);
        let metrics = Metrics::open(path, O::MEASURES, saved, &mut |warning| warnings.push(warning))?;
        let mut trainer = Self {
            device,
            config,
            settings,
            objective,
            encoder,
            frozen,
            loader,
            fingerprint,
            companions,
            extra,
            run,
            metrics,
            warnings,
            step,
            position,
            unreadable,
            saved: None,
            since: (step, Instant::now()),
        };
        if let Some(saved) = trainer.run.saved() {
            let moments = Moments::open(&saved.folder)?;
            trainer.objective.weights_mut().load_moments(&trainer.device, &moments)?;
            trainer.saved = Some((step, saved.folder.clone()));
        }
        let event = if saved.is_some() { "run_resume" } else { "run_start" };
        trainer.metrics.write(&json!({
            "event": event,
            "schema": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "params": trainer.objective.weights().count(),
            "device": trainer.run.device(),
            "world_size": 1,
            "captions": captions,
            "step": step,
            "steps": trainer.settings.steps,
        }))?;
        Ok(trainer)
    }

    /// Does a step and writes its line to `metrics.jsonl`.
    ///
    /// # Errors
    /// Fails if too many samples cannot be read, if a loss or the gradient is not finite (then nothing is
    /// learnt from the step, and its batch is written to a file that the message names), and if the device
    /// fails.
    pub fn step(&mut self) -> Result<Report> {
        let begun = Instant::now();
        let Read { batches, names, next, unreadable } = self.read()?;
        let read = begun.elapsed();
        let step = self.step + 1;
        let found = self.device.enter(|| self.objective.differentiate(&batches, step))?;
        let rate = self.settings.schedule().at(step);
        let mut norm = f64::NAN;
        if found.loss.is_finite() {
            // A gradient that is not finite changes nothing.
            let (device, adamw) = (&self.device, self.settings.adamw());
            let weights = self.objective.weights_mut();
            norm = device.enter(|| weights.update(device, adamw, rate, step))?;
        }
        if !norm.is_finite() {
            let tensors = self.objective.batch_tensors(&batches)?;
            let path = non_finite::write_batch(self.run.folder(), step, tensors, &names)?;
            self.metrics
                .write(&json!({ "event": "non_finite", "step": step, "batch": path.to_string_lossy() }))?;
            self.metrics.synchronise()?;
            return Err(non_finite::error(step, &found, &path, self.saved.as_ref().map(|(_, path)| &**path)));
        }
        let epoch = self.position.epoch;
        (self.step, self.position) = (step, next);
        for fault in &unreadable {
            self.metrics.write(&json!({ "event": "warning", "step": step, "message": fault }))?;
        }
        self.unreadable.extend_from_slice(&unreadable);
        let (examples, took) = (names.len(), begun.elapsed().as_secs_f64());
        let StepLoss { loss, measured } = found;
        let record = Record { step, loss, measured, grad_norm: norm, lr: rate };
        let samples_per_second = examples as f64 / took;
        self.metrics.write(&Line {
            event: "train_step",
            epoch,
            samples_seen: step * examples,
            record: &record,
            samples_per_second,
            data_time_s: read.as_secs_f64(),
            step_time_s: took,
            mem_peak_gib: self.memory().iter().map(|(_, bytes)| *bytes as f64).sum::<f64>() / GIB,
            wall_time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64()),
        })?;
        self.metrics.history.push(record.clone());
        let (first, since) = self.since;
        let left = since.elapsed().mul_f64((self.settings.steps - step) as f64 / (step - first) as f64);
        let steps = self.settings.steps;
        Ok(Report { record, steps, epoch, samples_per_second, left, unreadable })
    }

    fn read(&mut self) -> Result<Read<O::Batch>> {
        let mut read =
            Read { batches: Vec::new(), names: Vec::new(), next: self.position, unreadable: Vec::new() };
        for _ in 0..self.settings.accum_freq {
            let loaded = self.loader.next()?;
            let examples = loaded.examples;
            let vision_output = match (examples.images, &self.encoder) {
                (Images::Features(features), _) => PlacedTensor::Host(features),
                (Images::Pixels(pixels), Some(encoder)) => {
                    PlacedTensor::Device(encoder.encode_on_device(&pixels)?)
                }
                (Images::Pixels(_), None) => unreachable!("pictures come with their encoder"),
            };
            let batch = self.objective.batch(vision_output, examples.texts, examples.image_ids)?;
            read.batches.push(batch);
            read.names.extend(examples.names);
            read.unreadable.extend(loaded.unreadable);
            read.next = loaded.next;
        }
        Ok(read)
    }

    /// Writes a checkpoint and the curves, unless there is one of this step; returns the checkpoint's folder.
    ///
    /// # Errors
    /// Fails if the operating system refuses to write; the earlier checkpoints stay.
    pub fn save(&mut self) -> Result<PathBuf> {
        if let Some((_, path)) = self.saved.as_ref().filter(|(step, _)| *step == self.step) {
            return Ok(path.clone());
        }
        let seed = self.settings.seed;
        let (position, dataset, files) = (self.position, self.fingerprint, BTreeMap::new());
        let unreadable = self.unreadable.clone();
        let state = State { global_step: self.step, position, seed, dataset, unreadable, files };
        let (weights, device) = (self.objective.weights(), &self.device);
        let is_extra = |name: &str| self.extra.as_ref().is_some_and(|(_, names)| names.contains(name));
        let tensors = Tensors {
            model: weights.tensors(device, |name| !is_extra(name)),
            extra: self.extra.as_ref().map(|(file, _)| (*file, weights.tensors(device, is_extra))),
            moments: weights.moments(device),
            frozen: self.frozen.as_ref(),
        };
        self.metrics.synchronise()?;
        let card = O::card(&CardFacts {
            config: &self.config,
            settings: &self.settings,
            step: self.step,
            last: self.metrics.history.last(),
            has_encoder: self.frozen.is_some(),
        });
        let saved = checkpoint::save(
            self.run.folder(),
            state,
            (&self.config, &self.companions, &card),
            tensors,
            self.settings.keep,
        );
        let path = saved.map_err(|error| match &self.saved {
            Some((_, whole)) => error.with(format_args!("the last whole checkpoint is {}", whole.display())),
            None => error,
        })?;
        self.saved = Some((self.step, path.clone()));
        self.metrics
            .write(&json!({ "event": "checkpoint", "step": self.step, "path": path.to_string_lossy() }))?;
        self.draw()?;
        Ok(path)
    }

    fn draw(&self) -> Result<()> {
        let folder = self.run.folder();
        let path = folder.join(CURVES_FILE_NAME);
        let title = folder.file_name().unwrap_or_default().to_string_lossy();
        let svg = curves::svg(&title, self.settings.steps, O::MEASURES, &self.metrics.history);
        write_atomically(&path, |file| {
            file.write_all(svg.as_bytes()).map_err(|error| Error::io(&path, "write", error))
        })
    }

    /// Does all steps that are left, with a checkpoint every so often and after the last; `watch` is shown
    /// every step. Ends early with a checkpoint once `stop` is set. Where nothing is left to do, what
    /// [`Settings::keep`] does not keep is removed.
    ///
    /// # Errors
    /// As [`Self::step`] and [`Self::save`].
    pub fn run(&mut self, stop: &AtomicBool, watch: &mut dyn FnMut(&Report)) -> Result<Ending> {
        self.since = (self.step, Instant::now());
        let ending = loop {
            if self.step == self.settings.steps {
                break Ending::Done;
            }
            if stop.load(Ordering::Relaxed) {
                break Ending::Stopped;
            }
            watch(&self.step()?);
            if self.step.is_multiple_of(self.settings.save_frequency) {
                self.save()?;
            }
        };
        checkpoint::tidy(&self.save()?, self.settings.keep)?;
        let reason = if ending == Ending::Done { "done" } else { "stopped" };
        self.metrics.write(&json!({
            "event": "run_end",
            "step": self.step,
            "reason": reason,
            "bad_samples": self.bad_samples(),
        }))?;
        Ok(ending)
    }

    /// What there is to know before the first step: what was damaged, and is left out.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Bytes of the device's memory by purpose, of which there is no more in any step.
    pub fn memory(&self) -> Vec<(&'static str, usize)> {
        let mut purposes = self.objective.memory();
        if let Some(encoder) = &self.encoder {
            purposes.push(("image encoder", encoder.weight_bytes()));
            purposes.push(("image encoder's activations", encoder.workspace_bytes()));
            let images = self.settings.batch_size * self.settings.accum_freq;
            purposes.push(("image encoder's output", encoder.output_bytes(images)));
        }
        purposes
    }

    /// Steps done.
    pub fn steps_done(&self) -> usize {
        self.step
    }

    /// Samples left out so far because they cannot be read, each counted once.
    pub fn bad_samples(&self) -> usize {
        self.unreadable.len()
    }

    /// The records of all steps.
    pub fn history(&self) -> &[Record] {
        &self.metrics.history
    }

    /// The newest checkpoint's folder.
    pub fn saved(&self) -> Option<&std::path::Path> {
        self.saved.as_ref().map(|(_, path)| &**path)
    }
}
