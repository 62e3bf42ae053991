//! Texts, from the command line to token ids.

use crate::Remarks;
use crate::inputs::TextArguments;
use qformer::{Config, Error, Result, Tokenizer};
use std::path::Path;

/// Texts and their token ids, one each.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) texts: Vec<String>,
    pub(crate) tokens: Vec<Vec<u32>>,
}

impl TextArguments {
    /// The texts that were asked for, perhaps none.
    pub(crate) fn read(&self) -> Result<Vec<String>> {
        let Some(path) = &self.texts_file else { return Ok(self.text.clone()) };
        let bytes = std::fs::read(path).map_err(|error| Error::io(path, "read", error))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            Error::input(path, format_args!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
        })?;
        let texts: Vec<String> = text.lines().map(str::to_owned).collect();
        if texts.is_empty() {
            return Err(Error::input(path, "holds no text"));
        }
        if let Some(blank) = texts.iter().position(|text| text.trim().is_empty()) {
            return Err(Error::input(path, format_args!("line {} is blank; remove it", blank + 1)));
        }
        Ok(texts)
    }
}

impl Texts {
    /// Tokenizes `texts` as the model in the folder `model` does. Of a text that is longer than the
    /// model reads the beginning is kept, with a warning.
    pub(crate) fn encode(
        texts: Vec<String>,
        model: &Path,
        config: &Config,
        remarks: Remarks,
    ) -> Result<Self> {
        if texts.is_empty() {
            return Ok(Self::default());
        }
        let qformer = &config.qformer;
        if !qformer.use_qformer_text_input {
            return Err(Error::usage(format!(
                "{}: the Q-Former reads no text (use_qformer_text_input is false in config.json); \
                 give images alone, or a checkpoint of Blip2ForImageTextRetrieval",
                model.display()
            )));
        }
        let tokenizer = Tokenizer::load(model)?;
        tokenizer.check_vocabulary(qformer.vocab_size)?;
        let longest = qformer.max_position_embeddings;
        // One token more than fits tells which texts were longer.
        let mut tokens = tokenizer.encode_batch(&texts, longest + 1)?;
        for (index, tokens) in tokens.iter_mut().enumerate().filter(|(_, tokens)| tokens.len() > longest) {
            remarks.warning(format_args!(
                "text {index} is longer than the {longest} tokens that the model reads; the rest is cut off"
            ));
            // The last but one: the very last is [SEP].
            tokens.remove(longest - 1);
        }
        Ok(Self { texts, tokens })
    }
}
