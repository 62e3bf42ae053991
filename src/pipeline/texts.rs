//! Texts, as words or as token ids.

use super::Pipeline;
use crate::error::Result;
use std::borrow::Cow;

mod sealed {
    /// Implemented by this crate alone.
    pub trait Sealed {}
}

/// A text as a program has it: words, or token ids, `[CLS]` first and `[SEP]` last.
pub trait Text: Sized + sealed::Sealed {
    /// Token ids of texts.
    ///
    /// # Errors
    /// Fails if the checkpoint has no tokenizer for its model, and if a text cannot be tokenized.
    fn tokens<'a>(texts: &'a [Self], pipeline: &Pipeline) -> Result<Cow<'a, [Vec<u32>]>>;
}

impl sealed::Sealed for &str {}
impl sealed::Sealed for String {}
impl sealed::Sealed for Vec<u32> {}

impl Text for &str {
    fn tokens<'a>(texts: &'a [Self], pipeline: &Pipeline) -> Result<Cow<'a, [Vec<u32>]>> {
        words(texts, pipeline)
    }
}

impl Text for String {
    fn tokens<'a>(texts: &'a [Self], pipeline: &Pipeline) -> Result<Cow<'a, [Vec<u32>]>> {
        words(texts, pipeline)
    }
}

impl Text for Vec<u32> {
    fn tokens<'a>(texts: &'a [Self], _: &Pipeline) -> Result<Cow<'a, [Vec<u32>]>> {
        Ok(Cow::Borrowed(texts))
    }
}

fn words<'a, S: AsRef<str> + Sync>(texts: &[S], pipeline: &Pipeline) -> Result<Cow<'a, [Vec<u32>]>> {
    if texts.is_empty() {
        return Ok(Cow::Owned(Vec::new()));
    }
    let longest = pipeline.config().qformer.max_position_embeddings;
    pipeline.tokenizer()?.encode_batch(texts, longest).map(Cow::Owned)
}
