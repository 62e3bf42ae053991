//! What is trained, and what belongs to it in a checkpoint's folder besides tensors.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::generate::Decoding;
use crate::input;
use crate::models::vision::image::ImageProcessor;
use crate::output::write_atomically;
use crate::params::TensorSource;
use crate::tokenizer::{self, Tokenizer};
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

/// Longest file of a tokenizer that is taken over, in bytes; the tokenizer itself reads no longer ones.
const FILE_BYTES: u64 = 32 << 20;

/// What is trained: from a checkpoint's folder, from random numbers, or from a run's checkpoint.
pub struct TrainingStart<'a> {
    /// Sizes and constants.
    pub config: Config,
    /// Reads the captions.
    pub tokenizer: Tokenizer,
    /// Makes pixel values of pictures; a model of features has none.
    pub processor: Option<ImageProcessor>,
    /// Files for the checkpoints.
    pub companions: Companions,
    /// What is trained; the image encoder too if the data are pictures.
    pub source: &'a dyn TensorSource,
    /// Whether `source` has the image encoder that features are of, for the checkpoints to carry as they do
    /// where the data are pictures.
    pub has_encoder: bool,
}

/// The files of a checkpoint's folder, besides config.json, that training does not change.
#[derive(Clone, Debug)]
pub struct Companions {
    /// Name and contents.
    files: Vec<(String, Vec<u8>)>,
}

impl Companions {
    /// The image processor's settings, if there is one, where version 4 of transformers looks for them and where
    /// version 5 does, the tokenizer in the folder `tokenizer`, if there is one, and how the model captions, if it does.
    ///
    /// # Errors
    /// Fails if a file cannot be read.
    pub fn gather(
        config: &Config,
        processor: Option<&ImageProcessor>,
        tokenizer: Option<&Path>,
        decoding: Option<&Decoding>,
    ) -> Result<Self> {
        let json = |name: &str, value: &Value| (name.to_owned(), format!("{value:#}\n").into_bytes());
        // By a number, transformers puts as many places for an image into every text, which a model of
        // retrieval has no embedding for.
        let places = (!config.is_retrieval()).then_some(config.num_query_tokens);
        let mut files = Vec::new();
        if let Some(image_processor) = processor.map(ImageProcessor::to_json) {
            let unified = json!({
                "image_processor": image_processor,
                "num_query_tokens": places,
                "processor_class": "Blip2Processor",
            });
            files.push(json("preprocessor_config.json", &image_processor));
            files.push(json("processor_config.json", &unified));
        }
        files.extend(decoding.map(|decoding| json(Decoding::FILE_NAME, &decoding.to_json())));
        for name in tokenizer::FILE_NAMES {
            let Some(path) = tokenizer.map(|folder| folder.join(name)).filter(|path| path.exists()) else {
                continue;
            };
            files.push((name.to_owned(), input::read_bytes(&path, FILE_BYTES)?));
        }
        if let Some(settings) = tokenizer.map(Tokenizer::completed_settings).transpose()?.flatten() {
            files.retain(|(name, _)| name != tokenizer::CONFIG_FILE_NAME);
            files.push(json(tokenizer::CONFIG_FILE_NAME, &settings));
        }
        Ok(Self { files })
    }

    /// Writes them to `folder`.
    ///
    /// # Errors
    /// Fails if the operating system refuses to write.
    pub fn write(&self, folder: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, bytes)| {
            let path = folder.join(name);
            write_atomically(&path, |file| {
                file.write_all(bytes).map_err(|error| Error::io(&path, "write", error))
            })
        })
    }
}
