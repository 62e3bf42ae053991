//! What a step learns from.

use super::step::plan::ImageRows;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory::Shaped;
use crate::tensor::HostTensor;
use std::ops::Range;

/// Most micro-batches of a step: each of their passes has a number of its own, by which dropout draws.
pub(super) const MOST_BATCHES: usize = 2048;

/// Images with a caption each, checked. Their features are on the host, or where the image encoder left them.
#[derive(Clone, Debug)]
pub struct Batch<V = HostTensor> {
    /// The image encoder's output before its last norm [B, N, W]
    pub(in crate::train) vision_output: V,
    /// Token ids, `[CLS]` first and `[SEP]` last
    pub(in crate::train) texts: Vec<Vec<u32>>,
    /// [B]: which image each is; captions of one image are all positives
    pub(in crate::train) image_ids: Vec<u32>,
}

impl<V: Shaped> Batch<V> {
    /// Checks that a model of this configuration can learn from it.
    ///
    /// # Errors
    /// Fails if the images are not of the model's width, if there are not as many texts and ids as
    /// images, and if a text is not fit.
    pub fn new(config: &Config, vision_output: V, texts: Vec<Vec<u32>>, image_ids: Vec<u32>) -> Result<Self> {
        let width = config.vision.width();
        let images = match *vision_output.shape() {
            [images, tokens, w] if images > 0 && tokens > 0 && w == width => images,
            ref found => {
                return Err(Error::value(format!(
                    "image features have shape {found:?}; this model learns from [images, tokens, {width}]"
                )));
            }
        };
        if texts.len() != images || image_ids.len() != images {
            return Err(Error::value(format!(
                "a batch of {images} images has {} texts and {} image ids; it takes one of each an image",
                texts.len(),
                image_ids.len()
            )));
        }
        let (vocabulary, longest) = (config.qformer.vocab_size, config.qformer.max_position_embeddings);
        for (index, tokens) in texts.iter().enumerate() {
            if !(2..=longest).contains(&tokens.len()) {
                return Err(Error::value(format!(
                    "text {index} has {} tokens; 2 to {longest} can be learnt from",
                    tokens.len()
                )));
            }
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(Error::value(format!(
                    "text {index} has token {id}, but the vocabulary has {vocabulary}; the tokenizer is of another model"
                )));
            }
        }
        Ok(Self { vision_output, texts, image_ids })
    }

    /// B
    pub fn images(&self) -> usize {
        self.texts.len()
    }

    pub(super) fn rows(&self, config: &Config) -> ImageRows {
        ImageRows { queries: config.num_query_tokens, tokens: self.vision_output.shape()[1] }
    }

    /// Tokens that ITG predicts.
    fn predicted(&self) -> usize {
        self.texts.iter().map(|text| text.len() - 1).sum()
    }
}

/// The micro-batches of a step, as one batch.
pub(super) struct GlobalBatch<'a> {
    /// Of each micro-batch, the tokens that ITG predicts.
    predicted: Vec<usize>,
    /// The first image of each micro-batch, and where the last one ends.
    bounds: Vec<usize>,
    /// Of all, in order.
    pub(super) texts: Vec<&'a [u32]>,
    /// Of all, in order.
    pub(super) image_ids: Vec<u32>,
}

impl<'a> GlobalBatch<'a> {
    pub(super) fn of<V: Shaped>(batches: &'a [Batch<V>]) -> Result<Self> {
        if !(1..=MOST_BATCHES).contains(&batches.len()) {
            return Err(Error::usage(format!(
                "a step is to learn from {} micro-batches; 1 to {MOST_BATCHES} are possible",
                batches.len()
            )));
        }
        let mut bounds = vec![0];
        bounds.extend(batches.iter().scan(0, |end, batch| {
            *end += batch.images();
            Some(*end)
        }));
        Ok(Self {
            predicted: batches.iter().map(Batch::predicted).collect(),
            bounds,
            texts: batches.iter().flat_map(|batch| &batch.texts).map(Vec::as_slice).collect(),
            image_ids: batches.iter().flat_map(|batch| &batch.image_ids).copied().collect(),
        })
    }

    /// B
    pub(super) fn images(&self) -> usize {
        self.image_ids.len()
    }

    /// Tokens of all texts.
    pub(super) fn tokens(&self) -> usize {
        self.texts.iter().map(|text| text.len()).sum()
    }

    /// Tokens of the longest text.
    pub(super) fn longest(&self) -> usize {
        self.texts.iter().map(|text| text.len()).max().expect("one at least")
    }

    /// How many micro-batches.
    pub(super) fn batches(&self) -> usize {
        self.predicted.len()
    }

    /// Images of the largest micro-batch.
    pub(super) fn largest(&self) -> usize {
        self.bounds.windows(2).map(|ends| ends[1] - ends[0]).max().expect("one at least")
    }

    /// Which images are those of a micro-batch.
    pub(super) fn images_of(&self, batch: usize) -> Range<usize> {
        self.bounds[batch]..self.bounds[batch + 1]
    }

    /// The part of a micro-batch in what ITG predicts.
    pub(super) fn share_of_predicted(&self, batch: usize) -> f64 {
        self.predicted[batch] as f64 / self.predicted.iter().sum::<usize>() as f64
    }
}
