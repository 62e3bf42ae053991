//! A step of stage 1 by BLIP-2's recipe.

use super::inputs::{random_tensor, random_texts};
use qformer::config::Config;
use qformer::ops::Backend;
use qformer::ops::adamw::AdamW;
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::tensor::HostTensor;
use qformer::train::{Batch, Hardness, Losses, Recompute, Stage1, Stage1Options, StepSize};
use qformer::{Matching, Result};

/// BLIP-2's optimiser, at its highest learning rate.
pub(crate) const ADAMW: AdamW =
    AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.05, max_norm: None };
pub(crate) const LEARNING_RATE: f64 = 1e-4;

/// Images with a caption each.
pub(crate) struct Inputs {
    /// [B, N, W]
    pub(crate) vision_output: HostTensor,
    pub(crate) texts: Vec<Vec<u32>>,
}

impl Inputs {
    /// `count` random images of `image_tokens` tokens with captions of 9 to 16.
    pub(crate) fn random(config: &Config, count: usize, image_tokens: usize) -> Self {
        let shape = [count, image_tokens, config.vision.width()];
        let texts = random_texts(count, config.qformer.vocab_size);
        Self { vision_output: random_tensor("vision_output", &shape), texts }
    }

    /// To be learnt from.
    pub(crate) fn batch(&self, config: &Config) -> Result<Batch> {
        let ids = (0..self.texts.len() as u32).collect();
        Batch::new(config, self.vision_output.clone(), self.texts.clone(), ids)
    }

    /// What a step on them takes.
    pub(crate) fn size(&self) -> StepSize {
        StepSize {
            images: self.texts.len(),
            batches: 1,
            image_tokens: self.vision_output.shape()[1],
            text_tokens: self.texts.iter().map(Vec::len).max().expect("a batch has a text"),
        }
    }
}

/// As LAVIS trains: a dropout of 0.1, and negatives drawn.
pub(crate) fn recipe(config: &Config) -> Stage1Options {
    Stage1Options {
        weights: [1.0; 3],
        smoothing: 0.1,
        dropout: 0.1,
        hardness: Hardness::Sampled,
        contrastive_gradient: ContrastiveGradient::OneSided,
        matching: Matching::Classifier,
        recompute: Recompute::None,
        start_token: config.qformer.vocab_size as u32 - 1,
        seed: 1,
    }
}

/// The whole step number `step`; its losses.
pub(crate) fn step<B: Backend>(model: &mut Stage1<B>, batch: &Batch, step: usize) -> Result<Losses> {
    let losses = model.differentiate(std::slice::from_ref(batch), step)?;
    model.update(ADAMW, LEARNING_RATE, step)?;
    Ok(losses)
}
