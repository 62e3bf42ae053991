//! Settings of a run of stage 1 that other runs do not have.

use super::{Hardness, Recompute, Stage1Options};
use crate::config::Config;
use crate::error::Result;
use crate::models::qformer::Matching;
use crate::ops::contrastive::ContrastiveGradient;
use crate::train::Settings;
use crate::train::run::{check_share, out_of_bounds};
use serde::{Deserialize, Serialize};

/// Settings of stage 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Stage1Settings {
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
    /// What ITM classifies pairs by.
    pub matching: Matching,
    /// What is computed again in the backward pass rather than kept.
    pub grad_checkpointing: Recompute,
}

/// Steps of LAVIS's warm-up.
const WARMUP: usize = 5000;

impl Default for Stage1Settings {
    /// Those of LAVIS.
    fn default() -> Self {
        Self {
            dropout: 0.1,
            label_smoothing: 0.1,
            loss_weights: [1.0; 3],
            negatives: Hardness::Sampled,
            itc_gradient: ContrastiveGradient::OneSided,
            matching: Matching::Classifier,
            grad_checkpointing: Recompute::None,
        }
    }
}

impl Settings<Stage1Settings> {
    /// Those of LAVIS's first stage, for `steps` steps of `batch_size` examples; in a run of fewer than
    /// 50 000 steps, the warm-up is a tenth of it.
    pub fn stage1(steps: usize, batch_size: usize) -> Self {
        Self::new(steps, batch_size, WARMUP, Stage1Settings::default())
    }

    /// Checks what stage 1 asks of them, for a model of this configuration.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        let own = &self.objective;
        if self.batch_size.saturating_mul(self.accum_freq) < 2 {
            let allowed = "ITC and ITM compare examples, so a step takes 2 or more";
            return Err(out_of_bounds("batch_size", self.batch_size, allowed));
        }
        if let Some(weight) = own.loss_weights.iter().find(|x| !(x.is_finite() && **x >= 0.0)) {
            return Err(out_of_bounds("loss_weights", weight, "it has to be 0 or more"));
        }
        if own.loss_weights == [0.0; 3] {
            return Err(out_of_bounds("loss_weights", "0,0,0", "one of them has to be above 0"));
        }
        check_share("dropout", own.dropout)?;
        check_share("label_smoothing", own.label_smoothing)?;
        let longest = config.qformer.max_position_embeddings;
        if !(3..=longest).contains(&self.text_length) {
            let allowed = format_args!("the model reads texts of 3 to {longest} tokens");
            return Err(out_of_bounds("text_length", self.text_length, allowed));
        }
        Ok(())
    }

    /// How a step is done.
    pub(super) fn options(&self, start_token: u32) -> Stage1Options {
        let own = &self.objective;
        Stage1Options {
            weights: own.loss_weights,
            smoothing: own.label_smoothing,
            dropout: own.dropout,
            hardness: own.negatives,
            contrastive_gradient: own.itc_gradient,
            matching: own.matching,
            recompute: own.grad_checkpointing,
            start_token,
            seed: self.seed,
        }
    }
}
