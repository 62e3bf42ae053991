//! What a run asks of that which it trains.

use super::measures::{Measure, Measured};
use super::metrics::Record;
use super::model::TrainingStart;
use super::settings::Settings;
use crate::config::Config;
use crate::error::Result;
use crate::memory::PlacedTensor;
use crate::ops::Backend;
use crate::params::Tree;
use crate::params::safetensors::NewTensor;
use crate::train::optimizer::{ParamSlot, TrainedWeights};
use std::collections::BTreeSet;

/// An objective of training: a model with its losses. [`Trainer`](super::Trainer) does the rest, and knows
/// none of them: data, the frozen image encoder, the optimiser's step, the schedule, the run's folder with its
/// checkpoints, metrics and curves.
///
/// A step is [`batch`](Self::batch) for each of its micro-batches, then
/// [`differentiate`](Self::differentiate), which leaves the gradients in [`weights`](Self::weights), then the
/// optimiser's step on those, unless a loss or the gradient is not finite.
///
/// For a run to go on from a checkpoint to the same bits, a step must follow from the weights, the batches, the
/// settings and the step's number alone: whatever is random is drawn by seed and step.
pub trait Objective: Sized + Send {
    /// Where it computes.
    type Device: Backend + Clone;
    /// Its settings beside those of every run.
    type Settings;
    /// What is learnt from at a time: a micro-batch, checked.
    type Batch: Sync;
    /// What is trained; what is frozen is not among it, and neither has gradients nor moments.
    type Parameters: Tree<ParamSlot> + Send;

    /// What it measures beside the loss, the gradient's norm and the learning rate, in the order in which
    /// `metrics.jsonl` has it.
    const MEASURES: &'static [Measure];

    /// Reads the model from what `start` brings.
    ///
    /// # Errors
    /// Fails if a setting of its own is out of bounds, if the tokenizer is not the model's, if the model cannot be
    /// trained with these settings or on this device, as the source does, and if there is not enough memory.
    fn open(
        device: Self::Device,
        settings: &Settings<Self::Settings>,
        start: &TrainingStart<'_>,
    ) -> Result<Self>;

    /// Takes all memory that steps of this size need, so that none of them takes any.
    ///
    /// # Errors
    /// Fails if the size is out of bounds, and if there is not enough memory.
    fn reserve(&mut self, size: StepSize) -> Result<()>;

    /// A micro-batch of the loader's examples: images' features [B, N, W], as the encoder gives them before its last
    /// norm, on the host if they were read, on the device if they were just encoded; B texts as the tokenizer of [`TrainingStart`] made them, and which image of the data set each is of.
    ///
    /// # Errors
    /// Fails if the model cannot learn from them.
    fn batch(
        &self,
        vision_output: PlacedTensor<Self::Device>,
        texts: Vec<Vec<u32>>,
        image_ids: Vec<u32>,
    ) -> Result<Self::Batch>;

    /// What these batches were made of, to be written to a file where a step of them is not finite.
    ///
    /// # Errors
    /// Fails as the device does.
    fn batch_tensors<'b>(&self, batches: &'b [Self::Batch]) -> Result<Vec<NewTensor<'b>>>;

    /// The loss of step number `step`, counted from 1, and the gradients of all that is trained: those of one batch of
    /// all examples, which come in micro-batches for the sake of memory.
    ///
    /// # Errors
    /// Fails if there is not enough memory, and if the device fails.
    fn differentiate(&mut self, batches: &[Self::Batch], step: usize) -> Result<StepLoss>;

    /// What is trained, with its gradients and moments.
    fn weights(&self) -> &TrainedWeights<Self::Device, Self::Parameters>;

    /// The same, for the optimiser's step.
    fn weights_mut(&mut self) -> &mut TrainedWeights<Self::Device, Self::Parameters>;

    /// Bytes of the device's memory by purpose, all that is held.
    fn memory(&self) -> Vec<(&'static str, usize)>;

    /// Where trained tensors are no part of the model as transformers has it: the name of the file that
    /// checkpoints have for them, and their names.
    fn extra_file(&self) -> Option<(&'static str, BTreeSet<String>)>;

    /// The model card of a checkpoint: Markdown, with the front matter of model hubs.
    fn card(checkpoint: &CardFacts<'_, Self::Settings>) -> String;
}

/// How large the steps are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepSize {
    /// Images of a micro-batch.
    pub images: usize,
    /// Micro-batches of a step.
    pub batches: usize,
    /// N, tokens of an image.
    pub image_tokens: usize,
    /// Tokens of the longest text.
    pub text_tokens: usize,
}

/// What came of differentiating.
#[derive(Clone, Debug)]
pub struct StepLoss {
    /// The loss that was differentiated.
    pub loss: f64,
    /// What else was measured.
    pub measured: Measured,
}

/// What a model card tells of a checkpoint.
pub struct CardFacts<'a, S> {
    /// Of the model.
    pub config: &'a Config,
    /// Of the run.
    pub settings: &'a Settings<S>,
    /// Steps done.
    pub step: usize,
    /// Of the last step, if there was one.
    pub last: Option<&'a Record>,
    /// Whether the image encoder is in the checkpoint's folder.
    pub has_encoder: bool,
}
