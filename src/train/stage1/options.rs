//! How stage 1 is trained, and the losses of a step.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::models::qformer::Matching;
use crate::models::qformer::stack::{Kept, Seen};
use crate::ops::contrastive::{ContrastiveGradient, MAX_QUERIES};
use serde::{Deserialize, Serialize};

/// How stage 1 is trained.
#[derive(Clone, Debug)]
pub struct Stage1Options {
    /// Weights of ITC, ITM and ITG in the whole loss.
    pub weights: [f64; 3],
    /// Label smoothing of ITC and ITG.
    pub smoothing: f64,
    /// p of all dropout.
    pub dropout: f64,
    /// Whether hard negatives are drawn, or the hardest.
    pub hardness: Hardness,
    /// What the contrastive loss is differentiated by.
    pub contrastive_gradient: ContrastiveGradient,
    /// What ITM classifies pairs by.
    pub matching: Matching,
    /// What is computed again in the backward pass rather than kept.
    pub recompute: Recompute,
    /// The token that starts a text to be generated: `[DEC]`.
    pub start_token: u32,
    /// Of dropout and the negatives' draw.
    pub seed: u32,
}

/// Which of the others in a batch is a hard negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hardness {
    /// One drawn in proportion to the softmax of the similarities.
    Sampled,
    /// The most similar.
    Hardest,
}

/// What is computed again in the backward pass rather than kept: less memory for more time. The
/// gradients are the same to the bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recompute {
    /// Nothing.
    None,
    /// What is within the blocks: of each its input is kept.
    Blocks,
}

impl Recompute {
    /// What stays of a stream that is or is not seen by a later one.
    pub(super) fn kept(self, seen: Seen) -> Kept {
        match self {
            Self::None => Kept::Everything,
            Self::Blocks => Kept::Inputs(seen),
        }
    }
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepPart {
    /// Images and texts, each alone.
    FirstForward,
    /// The contrastive loss with its gradient, and the negatives read.
    Contrastive,
    /// Pairs to be matched and texts to be generated, with their losses.
    SecondForward,
    /// Their gradients.
    SecondBackward,
    /// Those of the first phase.
    FirstBackward,
}

/// The losses and accuracies of a step.
#[derive(Clone, Copy, Debug)]
pub struct Losses {
    /// The weighted sum of the three.
    pub total: f64,
    /// ITC
    pub contrastive: f64,
    /// ITM
    pub matching: f64,
    /// ITG
    pub captioning: f64,
    /// Share of pairs that ITM classifies correctly.
    pub matching_accuracy: f64,
    /// Share of images, and of texts, whose most similar partner is theirs.
    pub recall: [f64; 2],
}

impl Stage1Options {
    /// Refuses what a model of this configuration cannot be trained with.
    pub(super) fn check(&self, config: &Config) -> Result<()> {
        if !config.qformer.use_qformer_text_input {
            return Err(Error::usage(
                "this model reads no text (qformer_config.use_qformer_text_input is false), which stage 1 learns from",
            ));
        }
        if config.num_query_tokens > MAX_QUERIES {
            return Err(Error::usage(format!(
                "this model has {} queries; stage 1 trains at most {MAX_QUERIES}",
                config.num_query_tokens
            )));
        }
        if let Some(weight) = self.weights.iter().find(|weight| !weight.is_finite() || **weight < 0.0) {
            return Err(Error::usage(format!("a loss has weight {weight}; it has to be a number from 0 up")));
        }
        for (what, share) in [("label smoothing", self.smoothing), ("dropout", self.dropout)] {
            if !(0.0..1.0).contains(&share) {
                return Err(Error::usage(format!("{what} is {share}; it has to be from 0 to less than 1")));
            }
        }
        if self.start_token as usize >= config.qformer.vocab_size {
            return Err(Error::value(format!(
                "a text to be generated starts with [DEC], token {}, for which the word embeddings have no row \
                 (vocab_size is {}); stage 1 needs one more row than bert-base-uncased has",
                self.start_token, config.qformer.vocab_size
            )));
        }
        Ok(())
    }
}
