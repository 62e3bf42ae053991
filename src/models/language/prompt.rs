//! What texts continue.

use super::LanguageModel;
use crate::error::{Error, Result};
use crate::memory::TensorInput;
use crate::ops::Backend;
use std::ops::Range;

/// A prompt: the soft prompt of an image, and tokens after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Which image it is about.
    pub image: usize,
    /// The tokens, with those that the model's texts begin or end with.
    pub tokens: Vec<u32>,
}

impl<B: Backend> LanguageModel<B> {
    /// The range of the images that the prompts are about.
    pub(super) fn check_prompts(
        &self,
        queries: TensorInput<'_, B>,
        prompts: &[Prompt],
        length: usize,
    ) -> Result<Range<usize>> {
        let [soft, width] = self.queries;
        let images = match *queries.shape() {
            [images, q, d] if q == soft && d == width => images,
            ref found => {
                return Err(Error::value(format!(
                    "query outputs have shape {found:?}; this model reads [images, {soft}, {width}]"
                )));
            }
        };
        for (index, Prompt { image, tokens }) in prompts.iter().enumerate() {
            if *image >= images {
                return Err(Error::usage(format!(
                    "prompt {index} is about image {image}, which is not among the {images} images"
                )));
            }
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= self.architecture.vocabulary) {
                return Err(Error::value(format!(
                    "prompt {index} has token {id}, but the language model knows {}; the tokenizer is of another model",
                    self.architecture.vocabulary
                )));
            }
            let rows = soft + tokens.len();
            if let Some(longest) = self.architecture.longest.filter(|&longest| rows + length > longest) {
                return Err(Error::usage(format!(
                    "prompt {index} has {rows} tokens with the image's {soft}, and with {length} new ones {} are more than \
                     the {longest} that the language model reads; shorten the prompt or lower `max_new_tokens`",
                    rows + length
                ))
                .naming(&["max_new_tokens"]));
            }
        }
        let of = || prompts.iter().map(|prompt| prompt.image);
        Ok(of().min().unwrap_or(0)..of().max().map_or(0, |last| last + 1))
    }
}
