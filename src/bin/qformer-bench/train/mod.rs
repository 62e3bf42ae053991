//! A whole step of stage 1: time by part, operations, memory by purpose.

mod check;
mod flops;
mod inputs;

use crate::measured::{Limits, Measured};
use crate::passes::step::{ADAMW, Inputs, LEARNING_RATE, recipe, step};
use crate::times;
use crate::work::{self, Source};
use qformer::config::Config;
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::train::{Batch, Hardness, Losses, Recompute, Stage1, Stage1Options, StepPart};
use qformer::{Error, Result};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// Steps whose losses are reported.
const REPORTED_STEPS: usize = 3;
/// Steps of which the median's parts are reported.
const OBSERVED_STEPS: usize = 3;

/// Parts in the order in which they are done, with the optimiser last.
const PARTS: [&str; 6] =
    ["first forward", "contrastive", "second forward", "second backward", "first backward", "optimiser"];

/// What is measured.
pub(crate) struct Training<'a, B: Measured> {
    pub(crate) device: B,
    pub(crate) model: Option<&'a Path>,
    /// A file of features and captions; random ones without.
    pub(crate) batch: Option<&'a Path>,
    pub(crate) batch_size: usize,
    pub(crate) recompute: Recompute,
    pub(crate) seconds: f64,
    pub(crate) limits: Limits,
    /// Shows a line of the report.
    pub(crate) tell: &'a dyn Fn(&str) -> Result<()>,
}

/// The recipe without what is random: its losses can be foretold.
fn certain(config: &Config, contrastive_gradient: ContrastiveGradient) -> Stage1Options {
    Stage1Options { dropout: 0.0, hardness: Hardness::Hardest, contrastive_gradient, ..recipe(config) }
}

fn prepared<B: Measured>(
    device: &B,
    config: &Config,
    source: &Source,
    options: Stage1Options,
) -> Result<Stage1<B>> {
    source.with(|source| Stage1::new(device.clone(), config.clone(), options, source))
}

impl<B: Measured> Training<'_, B> {
    /// Checks, then measures; the report.
    pub(crate) fn run(&self) -> Result<Value> {
        let config = work::config(self.model)?;
        let source = Source::open(self.model)?;
        let inputs = match self.batch {
            Some(file) => inputs::read(file)?,
            None => Inputs::random(&config, self.batch_size, config.image_tokens()),
        };
        let batch = inputs.batch(&config)?;
        crate::say("checking a step …");
        let checks = check::check(&self.device, &config, &source)?;
        for (name, error) in &checks {
            (self.tell)(&format!("{name:<28} differs by {error:.1e} from double precision"))?;
        }
        let losses = self.first_losses(&config, &source, &batch)?;
        let options = Stage1Options { recompute: self.recompute, ..recipe(&config) };
        let mut model = prepared(&self.device, &config, &source, options)?;
        // As the trainer does: the negatives of a step decide how much of this it takes.
        model.reserve(inputs.size())?;
        let (parts, steps) = self.times(&mut model, &batch)?;
        let lengths: Vec<usize> = inputs.texts.iter().map(Vec::len).collect();
        let flops = flops::step(&config, inputs.vision_output.shape()[1], &lengths);
        let memory = memory(&model);
        drop(model);

        let images = batch.images() as f64;
        let median = steps.median();
        (self.tell)(&format!(
            "\ntraining, batch {}: {:.3} s a step ({:.3}–{:.3}), {:.2} samples/s",
            batch.images(),
            median,
            steps.minimum(),
            steps.maximum(),
            images / median
        ))?;
        for (name, seconds) in PARTS.iter().zip(&parts) {
            (self.tell)(&format!("  {name:<18} {seconds:>9.4} s {:>5.1}%", 100.0 * seconds / sum(&parts)))?;
        }
        (self.tell)(&format!(
            "  {:.1} GFLOP a sample done, {:.1} as LAVIS does it; {:.0} GFLOP/s, {:.0}% of peak",
            flops.done / images / 1e9,
            flops.of_lavis / images / 1e9,
            flops.done / median / 1e9,
            100.0 * flops.done / median / self.limits.flops
        ))?;
        for (purpose, bytes) in &memory {
            (self.tell)(&format!("  {purpose:<26} {:>9.1} MB", *bytes as f64 / 1e6))?;
        }
        Ok(json!({
            "batch_size": batch.images(), "runs": steps.count(),
            "relative_errors": checks.iter().map(|(name, e)| ((*name).to_owned(), json!(e))).collect::<serde_json::Map<_, _>>(),
            "tolerance": B::TOLERANCE,
            "median_s": median, "min_s": steps.minimum(), "max_s": steps.maximum(),
            "samples_per_second": images / median,
            "parts_s": PARTS.iter().zip(&parts).map(|(name, s)| ((*name).to_owned(), json!(s))).collect::<serde_json::Map<_, _>>(),
            "gflop": flops.done / 1e9, "lavis_gflop": flops.of_lavis / 1e9,
            "gflop_per_second": flops.done / median / 1e9,
            "share_of_peak": flops.done / median / self.limits.flops,
            "memory_bytes": memory.iter().map(|(purpose, b)| ((*purpose).to_owned(), json!(b))).collect::<serde_json::Map<_, _>>(),
            "losses": losses.iter().map(|l| json!([l.total, l.contrastive, l.matching, l.captioning])).collect::<Vec<_>>(),
        }))
    }

    /// Of the first steps, without anything random in them.
    fn first_losses(&self, config: &Config, source: &Source, batch: &Batch) -> Result<Vec<Losses>> {
        let options =
            Stage1Options { recompute: self.recompute, ..certain(config, ContrastiveGradient::OneSided) };
        let mut model = prepared(&self.device, config, source, options)?;
        let device = &self.device;
        let mut losses = Vec::new();
        for number in 1..=REPORTED_STEPS {
            let found = device.enter(|| step(&mut model, batch, number))?;
            if !found.total.is_finite() {
                return Err(Error::device(format!("the losses of step {number} are {found:?}")));
            }
            losses.push(found);
        }
        Ok(losses)
    }

    /// Seconds of the parts of a step, and of whole steps. Only those are replayed where the device can do it:
    /// parts are waited for one by one.
    fn times(&self, model: &mut Stage1<B>, batch: &Batch) -> Result<([f64; PARTS.len()], times::Times)> {
        let device = &self.device;
        let mut number = 0;
        let mut whole = |model: &mut Stage1<B>| {
            number += 1;
            device.enter(|| {
                step(model, batch, number)?;
                device.finish()
            })
        };
        // The first step is done kernel by kernel, the second recorded.
        whole(model)?;
        let times = times::repeat(self.seconds, || whole(model))?;
        let mut runs = Vec::new();
        for _ in 0..OBSERVED_STEPS {
            number += 1;
            let mut parts = [0.0; PARTS.len()];
            device.enter(|| {
                let mut begin = Instant::now();
                let mut lap = |part: usize| {
                    device.finish()?;
                    parts[part] += begin.elapsed().as_secs_f64();
                    begin = Instant::now();
                    Ok(())
                };
                model.differentiate_observed(std::slice::from_ref(batch), number, &mut |part| {
                    lap(match part {
                        StepPart::FirstForward => 0,
                        StepPart::Contrastive => 1,
                        StepPart::SecondForward => 2,
                        StepPart::SecondBackward => 3,
                        StepPart::FirstBackward => 4,
                    })
                })?;
                model.update(ADAMW, LEARNING_RATE, number)?;
                lap(5)
            })?;
            runs.push(parts);
        }
        runs.sort_by(|a, b| sum(a).total_cmp(&sum(b)));
        Ok((runs[runs.len() / 2], times))
    }
}

/// Of the parts of a step.
fn sum(parts: &[f64; PARTS.len()]) -> f64 {
    parts.iter().sum()
}

/// Bytes by purpose.
fn memory<B: Measured>(model: &Stage1<B>) -> Vec<(&'static str, usize)> {
    let mut memory: Vec<_> = model.memory().purposes().into_iter().collect();
    memory.extend(peak_of_process().map(|bytes| ("the process at its peak", bytes)));
    memory
}

/// Bytes of memory that the process has had at most, where the system tells.
fn peak_of_process() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()? * 1024)
}
