//! What is trained, and what belongs to it in a checkpoint's folder besides tensors.

use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::params::TensorSource;
use crate::tokenizer::{self, Tokenizer};
use crate::vision::image::ImageProcessor;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A tokenizer's files, of which not all need be there.
const TOKENIZER_FILES: [&str; 4] = [
    tokenizer::FILE_NAME,
    tokenizer::VOCABULARY_FILE_NAME,
    tokenizer::CONFIG_FILE_NAME,
    "special_tokens_map.json",
];

/// The token that starts a caption where a tokenizer names none: LAVIS adds it to BERT's.
const START: &str = "[DEC]";

/// What is trained: from a checkpoint's folder, from random numbers, or from a run's checkpoint.
pub struct Model<'a> {
    /// Sizes and constants.
    pub config: Config,
    /// Reads the captions.
    pub tokenizer: Tokenizer,
    /// Makes pixel values of pictures.
    pub processor: ImageProcessor,
    /// Files for the checkpoints.
    pub companions: Companions,
    /// Parameters of stage 1; of the image encoder too if the data are pictures.
    pub source: &'a dyn TensorSource,
}

/// The files of a checkpoint's folder that training does not change.
#[derive(Clone, Debug)]
pub struct Companions {
    /// Name and contents.
    pub(super) files: Vec<(String, Vec<u8>)>,
}

impl Companions {
    /// The configuration, the image processor's settings where version 4 of transformers looks for them and
    /// where version 5 does, and the tokenizer in the folder `tokenizer`.
    ///
    /// # Errors
    /// Fails if a file cannot be read.
    pub fn gather(config: &Config, processor: &ImageProcessor, tokenizer: &Path) -> Result<Self> {
        let json = |name: &str, value: &Value| (name.to_owned(), format!("{value:#}\n").into_bytes());
        let image_processor = processor.to_json();
        let unified = json!({
            "image_processor": image_processor,
            "num_query_tokens": config.num_query_tokens,
            "processor_class": "Blip2Processor",
        });
        let mut files = vec![
            json(config::FILE_NAME, &config.to_json()),
            json("preprocessor_config.json", &image_processor),
            json("processor_config.json", &unified),
        ];
        for name in TOKENIZER_FILES {
            let path = tokenizer.join(name);
            if path.exists() {
                let bytes = fs::read(&path).map_err(|error| Error::io(&path, "read", error))?;
                files.push((name.to_owned(), bytes));
            }
        }
        Ok(Self { files })
    }
}

/// The token that starts a text to be generated: the tokenizer's, or else the first that it has not, where
/// LAVIS adds `[DEC]` to BERT's.
///
/// # Errors
/// Fails if the model has no embedding for it.
pub fn start_token(tokenizer: &Tokenizer, config: &Config) -> Result<u32> {
    let rows = config.qformer.vocab_size;
    let token = tokenizer.begin_of_sentence().unwrap_or(tokenizer.vocabulary_size() as u32);
    if (token as usize) < rows {
        return Ok(token);
    }
    Err(Error::value(format!(
        "a text to be generated starts with {START}, token {token}, for which the word embeddings have no row \
         (vocab_size is {rows}); stage 1 needs one more row than bert-base-uncased has"
    )))
}
