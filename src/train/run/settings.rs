//! Settings that every run has.

use super::schedule::{LrScheduler, Schedule};
use crate::data::{Augmentation, Order};
use crate::error::{Error, Result};
use crate::ops::adamw::AdamW;
use crate::output::counted;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use toml::Table;

/// Settings of a run: those that every run has, and its objective's own. [`Self::to_table`] has them all in one
/// table, by their names with hyphens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Settings<S> {
    /// Steps of the optimiser.
    pub steps: usize,
    /// Examples that are computed at a time.
    pub batch_size: usize,
    /// Batches of a step.
    pub accum_freq: usize,
    /// The highest learning rate.
    pub lr: f64,
    /// The learning rate at which the cosine ends.
    pub lr_min: f64,
    /// How the learning rate goes on after the warm-up.
    pub lr_scheduler: LrScheduler,
    /// Steps in which the learning rate rises.
    pub warmup: usize,
    /// λ of AdamW, for matrices and tables alone.
    pub wd: f64,
    /// β1 of AdamW.
    pub beta1: f64,
    /// β2 of AdamW.
    pub beta2: f64,
    /// ε of AdamW.
    pub eps: f64,
    /// The gradient's norm beyond which it is scaled down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grad_clip_norm: Option<f64>,
    /// Order of an epoch's examples.
    pub order: Order,
    /// What becomes of pictures.
    pub augment: Augmentation,
    /// Samples that may be unreadable before it is an error.
    pub max_bad_samples: usize,
    /// Most tokens of a text, with those that the tokenizer adds.
    pub text_length: usize,
    /// Of everything random.
    pub seed: u32,
    /// Steps from one checkpoint to the next.
    pub save_frequency: usize,
    /// Steps from one line of progress to the next.
    pub log_every_n_steps: usize,
    /// Checkpoints that are kept.
    pub keep: usize,
    /// The objective's own.
    #[serde(flatten)]
    pub objective: S,
}

/// Samples of a data set that may be unreadable if nothing else is said.
pub const MAX_BAD_SAMPLES: usize = 100;

impl<S> Settings<S> {
    /// Those of LAVIS's pre-training, for `steps` steps of `batch_size` examples; in a run of fewer than ten times
    /// `warmup` steps, the warm-up is a tenth of it.
    pub fn new(steps: usize, batch_size: usize, warmup: usize, objective: S) -> Self {
        Self {
            steps,
            batch_size,
            accum_freq: 1,
            lr: 1e-4,
            lr_min: 1e-5,
            lr_scheduler: LrScheduler::Cosine,
            warmup: warmup.min(steps / 10),
            wd: 0.05,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            grad_clip_norm: None,
            order: Order::Shuffled,
            augment: Augmentation::Blip2Train,
            max_bad_samples: MAX_BAD_SAMPLES,
            text_length: 32,
            seed: 42,
            save_frequency: 1000,
            log_every_n_steps: 10,
            keep: 2,
            objective,
        }
    }

    /// Checks every setting but the objective's own.
    ///
    /// # Errors
    /// Fails, naming the field and what is allowed.
    pub fn validate(&self) -> Result<()> {
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size),
            ("accum_freq", self.accum_freq),
            ("save_frequency", self.save_frequency),
            ("log_every_n_steps", self.log_every_n_steps),
            ("keep", self.keep),
        ];
        if let Some((name, value)) = counts.iter().find(|(_, value)| *value == 0) {
            return Err(out_of_bounds(name, value, "it has to be 1 or more"));
        }
        if self.warmup > self.steps {
            let allowed = format_args!("the run has {}", counted(self.steps, "step"));
            return Err(out_of_bounds("warmup", self.warmup, allowed));
        }
        let positive =
            [("lr", self.lr), ("eps", self.eps), ("grad_clip_norm", self.grad_clip_norm.unwrap_or(1.0))];
        if let Some((name, value)) = positive.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            return Err(out_of_bounds(name, value, "it has to be above 0"));
        }
        let not_negative = [("wd", self.wd), ("lr_min", self.lr_min)];
        if let Some((name, value)) = not_negative.iter().find(|(_, x)| !(x.is_finite() && *x >= 0.0)) {
            return Err(out_of_bounds(name, value, "it has to be 0 or more"));
        }
        if self.lr_min > self.lr {
            let what = format!("`lr_min` is {}; it has to be at most `lr`, {}", self.lr_min, self.lr);
            return Err(Error::usage(what).naming(&["lr_min", "lr"]));
        }
        let shares = [("beta1", self.beta1), ("beta2", self.beta2)];
        shares.into_iter().try_for_each(|(name, share)| check_share(name, share))
    }

    /// The learning rate over the run.
    pub fn schedule(&self) -> Schedule {
        let Self { lr_scheduler: scheduler, lr: peak, lr_min: least, warmup, steps, .. } = *self;
        Schedule { scheduler, peak, least, warmup, steps }
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> AdamW {
        AdamW {
            beta1: self.beta1,
            beta2: self.beta2,
            epsilon: self.eps,
            weight_decay: self.wd,
            max_norm: self.grad_clip_norm,
        }
    }
}

impl<S: Serialize + DeserializeOwned> Settings<S> {
    /// All settings, as a run's `config.toml` keeps them.
    ///
    /// # Errors
    /// Fails if TOML has no way to write one.
    pub fn to_table(&self) -> Result<Table> {
        Table::try_from(self)
            .map_err(|error| Error::usage(format!("the run's settings cannot be written: {error}")))
    }

    /// The settings of such a table.
    ///
    /// # Errors
    /// Fails if a setting is missing, not of its type, or unknown.
    pub fn from_table(table: Table) -> Result<Self> {
        let names: Vec<String> = table.keys().cloned().collect();
        let settings: Self =
            table.try_into().map_err(|error: toml::de::Error| Error::usage(error.message()))?;
        let known = settings.to_table()?;
        match names.iter().find(|name| !known.contains_key(*name)) {
            Some(name) => Err(Error::usage(format!("unknown setting `{name}`"))),
            None => Ok(settings),
        }
    }
}

/// Says that the setting `name` cannot be `value`, and what is allowed.
pub(in crate::train) fn out_of_bounds(
    name: &'static str,
    value: impl Display,
    allowed: impl Display,
) -> Error {
    Error::usage(format!("`{name}` is {value}; {allowed}")).naming(&[name])
}

/// Checks that a share is one that leaves something of the whole.
pub(in crate::train) fn check_share(name: &'static str, share: f64) -> Result<()> {
    match (0.0..1.0).contains(&share) {
        true => Ok(()),
        false => Err(out_of_bounds(name, share, "it has to be from 0 to below 1")),
    }
}
