//! Settings of a run.

use super::schedule::{LrScheduler, Schedule};
use crate::config::Config;
use crate::data::{Augmentation, Order};
use crate::error::{Error, Result};
use crate::models::qformer::Matching;
use crate::ops::adamw::AdamW;
use crate::ops::contrastive::ContrastiveGradient;
use crate::output::counted;
use crate::train::{Hardness, Recompute, Stage1Options};
use serde::{Deserialize, Serialize};

/// Settings of a run of stage 1, by the names of the command line's flags.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Settings {
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
    /// p of all dropout.
    pub dropout: f64,
    /// Label smoothing of ITC and ITG.
    pub label_smoothing: f64,
    /// Weights of ITC, ITM and ITG in the whole loss.
    pub loss_weights: [f64; 3],
    /// Whether hard negatives are drawn, or the hardest.
    pub negatives: Hardness,
    /// What the contrastive loss is differentiated by.
    pub itc_gradient: ContrastiveGradient,
    /// What ITM tells pairs by.
    pub matching: Matching,
    /// What is computed again in the backward pass rather than kept.
    pub grad_checkpointing: Recompute,
    /// Order of an epoch's examples.
    pub order: Order,
    /// What becomes of pictures.
    pub augment: Augmentation,
    /// Samples that may be unreadable before it is an error.
    pub max_bad_samples: usize,
    /// Most tokens of a text, with `[CLS]` and `[SEP]`.
    pub text_length: usize,
    /// Of the order of examples, dropout and the negatives' draw.
    pub seed: u32,
    /// Steps from one checkpoint to the next.
    pub save_frequency: usize,
    /// Steps from one line of progress to the next.
    pub log_every_n_steps: usize,
    /// Checkpoints that are kept.
    pub keep: usize,
}

/// Samples of a data set that may be unreadable if nothing else is said.
pub const MAX_BAD_SAMPLES: usize = 100;
/// Steps of LAVIS's warm-up.
const WARMUP: usize = 5000;

impl Settings {
    /// Those of LAVIS's first stage, for `steps` steps of `batch_size` examples; in a run of fewer than
    /// 50 000 steps, the warm-up is a tenth of it.
    pub fn new(steps: usize, batch_size: usize) -> Self {
        Self {
            steps,
            batch_size,
            accum_freq: 1,
            lr: 1e-4,
            lr_min: 1e-5,
            lr_scheduler: LrScheduler::Cosine,
            warmup: WARMUP.min(steps / 10),
            wd: 0.05,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-8,
            grad_clip_norm: None,
            dropout: 0.1,
            label_smoothing: 0.1,
            loss_weights: [1.0; 3],
            negatives: Hardness::Sampled,
            itc_gradient: ContrastiveGradient::OneSided,
            matching: Matching::Classifier,
            grad_checkpointing: Recompute::None,
            order: Order::Shuffled,
            augment: Augmentation::Blip2Train,
            max_bad_samples: MAX_BAD_SAMPLES,
            text_length: 32,
            seed: 42,
            save_frequency: 1000,
            log_every_n_steps: 10,
            keep: 2,
        }
    }

    /// Checks every setting, for a model of this configuration.
    ///
    /// # Errors
    /// Fails, naming the flag and what is allowed.
    pub fn validate(&self, config: &Config) -> Result<()> {
        let fail = |flag: &str, value: &dyn std::fmt::Display, allowed: &str| {
            Err(Error::usage(format!("--{flag} is {value}; {allowed}")))
        };
        let counts = [
            ("steps", self.steps),
            ("batch-size", self.batch_size),
            ("accum-freq", self.accum_freq),
            ("save-frequency", self.save_frequency),
            ("log-every-n-steps", self.log_every_n_steps),
            ("keep", self.keep),
        ];
        if let Some((flag, value)) = counts.iter().find(|(_, value)| *value == 0) {
            return fail(flag, value, "it has to be 1 or more");
        }
        if self.batch_size.saturating_mul(self.accum_freq) < 2 {
            let allowed = "ITC and ITM compare examples, so a step takes 2 or more";
            return fail("batch-size", &self.batch_size, allowed);
        }
        if self.warmup > self.steps {
            return fail("warmup", &self.warmup, &format!("the run has {}", counted(self.steps, "step")));
        }
        let positive =
            [("lr", self.lr), ("eps", self.eps), ("grad-clip-norm", self.grad_clip_norm.unwrap_or(1.0))];
        if let Some((flag, value)) = positive.iter().find(|(_, x)| !(x.is_finite() && *x > 0.0)) {
            return fail(flag, value, "it has to be above 0");
        }
        let mut not_negative = vec![("wd", self.wd), ("lr-min", self.lr_min)];
        not_negative.extend(self.loss_weights.map(|weight| ("loss-weights", weight)));
        if let Some((flag, value)) = not_negative.iter().find(|(_, x)| !(x.is_finite() && *x >= 0.0)) {
            return fail(flag, value, "it has to be 0 or more");
        }
        if self.lr_min > self.lr {
            return fail("lr-min", &self.lr_min, &format!("it has to be at most --lr, {}", self.lr));
        }
        if self.loss_weights == [0.0; 3] {
            return fail("loss-weights", &"0,0,0", "one of them has to be above 0");
        }
        let shares = [
            ("beta1", self.beta1),
            ("beta2", self.beta2),
            ("dropout", self.dropout),
            ("label-smoothing", self.label_smoothing),
        ];
        if let Some((flag, value)) = shares.iter().find(|(_, x)| !(0.0..1.0).contains(x)) {
            return fail(flag, value, "it has to be from 0 to below 1");
        }
        let longest = config.qformer.max_position_embeddings;
        if !(3..=longest).contains(&self.text_length) {
            return fail(
                "text-length",
                &self.text_length,
                &format!("the model reads texts of 3 to {longest} tokens"),
            );
        }
        Ok(())
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

    /// How a step is done.
    pub(super) fn stage1(&self, start_token: u32) -> Stage1Options {
        Stage1Options {
            weights: self.loss_weights,
            smoothing: self.label_smoothing,
            dropout: self.dropout,
            hardness: self.negatives,
            contrastive_gradient: self.itc_gradient,
            matching: self.matching,
            recompute: self.grad_checkpointing,
            start_token,
            seed: self.seed,
        }
    }
}
