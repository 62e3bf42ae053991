//! What a step learns from.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::tensor::HostTensor;

/// Images with a caption each, checked.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The image encoder's output before its last norm [B, N, W]
    pub(super) vision_output: HostTensor,
    /// Token ids, `[CLS]` first and `[SEP]` last
    pub(super) texts: Vec<Vec<u32>>,
    /// [B]: which image each is; captions of one image are all positives
    pub(super) image_ids: Vec<u32>,
}

impl Batch {
    /// Checks that a model of this configuration can learn from it.
    ///
    /// # Errors
    /// Fails if the images are not of the model's width, if there are not as many texts and ids as
    /// images, and if a text is not fit.
    pub fn new(
        config: &Config,
        vision_output: HostTensor,
        texts: Vec<Vec<u32>>,
        image_ids: Vec<u32>,
    ) -> Result<Self> {
        let width = config.vision.hidden_size;
        let images = match vision_output.shape[..] {
            [images, tokens, w] if images > 0 && tokens > 0 && w == width => images,
            _ => {
                return Err(Error::value(format!(
                    "image features have shape {:?}; this model learns from [images, tokens, {width}]",
                    vision_output.shape
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

    /// N
    pub(super) fn image_tokens(&self) -> usize {
        self.vision_output.shape[1]
    }
}
