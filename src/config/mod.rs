//! What a model is made of: the sizes and constants of a Hugging Face `config.json`.
//!
//! # Shape letters
//! The shapes in this crate's documentation are written with these letters:
//!
//! | letter | extent |
//! |---|---|
//! | B | images |
//! | Q | query tokens |
//! | T | text tokens |
//! | N | image tokens |
//! | W | image width: the image encoder's hidden width |
//! | D | hidden width of the Q-Former |
//! | H | attention heads |
//! | F | feed-forward width |
//! | E | embedding width, of the space where images and texts are compared |
//! | V | vocabulary |

mod activation;
mod language;
mod parse;
mod presets;
mod qformer;
mod validate;
mod vision;

pub use activation::Activation;
pub use language::{LanguageConfig, LlamaConfig, OptConfig, T5Config};
pub use qformer::QFormerConfig;
pub use vision::{FeaturesConfig, VisionConfig, VitConfig};

use crate::error::{Error, Result};
use crate::input;
use parse::{Parsed, Section};
use serde_json::{Value, json};
use std::path::Path;
use validate::{Checked, WIDTH, within};

/// Name of the configuration's file within a checkpoint's folder.
pub const FILE_NAME: &str = "config.json";

/// Largest `config.json` read, in bytes.
const FILE_BYTES: u64 = 1 << 20;

/// A BLIP-2 or InstructBLIP model.
///
/// Fields are named as in `config.json`, where names there are plain; defaults are those of
/// transformers' `Blip2Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Which family of models it is of (`model_type`).
    pub family: Family,
    /// What images are seen by (`vision_config`).
    pub vision: VisionConfig,
    /// The Q-Former (`qformer_config`).
    pub qformer: QFormerConfig,
    /// Q: learned query tokens an image is read with. Default 32.
    pub num_query_tokens: usize,
    /// E: width of the space where images and texts are compared. Default 256.
    pub image_text_hidden_size: usize,
    /// The language model of a generating checkpoint (`text_config`).
    pub language: Option<LanguageConfig>,
    /// The token of the language model's prompt whose place an image takes.
    pub image_token_index: Option<usize>,
}

/// A family of models, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `blip-2`.
    Blip2,
    /// `instructblip`, whose Q-Former always reads text.
    InstructBlip,
}

impl Config {
    /// Reads `config.json` in the folder `directory`.
    ///
    /// # Errors
    /// Fails if the file cannot be read or is larger than 1 MiB, and as [`Config::from_json`] does.
    pub fn load(directory: &Path) -> Result<Self> {
        let path = directory.join(FILE_NAME);
        Self::from_json(&path, &input::read_text(&path, FILE_BYTES)?)
    }

    /// Parses `text`, a `config.json`; `path` is for messages only. Absent fields take transformers'
    /// defaults and unknown ones are ignored.
    ///
    /// # Errors
    /// Fails, naming the field, its value and what is allowed, if `text` is no JSON object, holds a
    /// key twice, is of another `model_type`, or if a field is of the wrong type or out of bounds.
    pub fn from_json(path: &Path, text: &str) -> Result<Self> {
        let json = input::parse_json(path, text)?;
        let config = Self::parse(&json).map_err(|what| Error::input(path, what))?;
        config.check().map_err(|what| Error::input(path, what))?;
        Ok(config)
    }

    /// Checks every field as [`Config::from_json`] does, for a configuration made by other means.
    ///
    /// # Errors
    /// Fails, naming the field, its value and what is allowed, if a field is out of bounds.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(Error::value)
    }

    /// The `config.json` of this model, as transformers opens it; [`VisionConfig::Features`] it knows nothing of.
    pub fn to_json(&self) -> Value {
        let (model_type, qformer_type) = match self.family {
            Family::Blip2 => ("blip-2", "blip_2_qformer"),
            Family::InstructBlip => ("instructblip", "instructblip_qformer"),
        };
        let architecture = match (self.family, self.language.is_some()) {
            (Family::InstructBlip, _) => "InstructBlipForConditionalGeneration",
            (Family::Blip2, _) if self.is_retrieval() => "Blip2ForImageTextRetrieval",
            (Family::Blip2, true) => "Blip2ForConditionalGeneration",
            (Family::Blip2, false) => "Blip2Model",
        };
        let mut json = json!({
            "architectures": [architecture],
            "dtype": "float32",
            "image_text_hidden_size": self.image_text_hidden_size,
            "image_token_index": self.image_token_index,
            "initializer_factor": 1.0,
            "initializer_range": self.qformer.initializer_range,
            "model_type": model_type,
            "num_query_tokens": self.num_query_tokens,
            "qformer_config": self.qformer.to_json(qformer_type),
            "vision_config": self.vision.to_json(self.family),
        });
        if let Some(language) = &self.language {
            json["text_config"] = language.to_json();
        }
        json
    }

    /// The same model without an image encoder, on features [images, `image_tokens`, `hidden_size`].
    pub fn on_features(mut self, image_tokens: usize, hidden_size: usize) -> Self {
        let layer_norm_eps = self.vision.post_layer_norm_eps();
        self.vision = VisionConfig::Features(FeaturesConfig { image_tokens, hidden_size, layer_norm_eps });
        self.qformer.encoder_hidden_size = hidden_size;
        self
    }

    /// Whether transformers opens it as `Blip2ForImageTextRetrieval`.
    pub fn is_retrieval(&self) -> bool {
        self.family == Family::Blip2 && self.qformer.use_qformer_text_input
    }

    /// N: tokens of an image, [`VisionConfig::image_tokens`].
    pub fn image_tokens(&self) -> usize {
        self.vision.image_tokens()
    }

    /// The language model of a folder as transformers saves one alone: its `config.json`.
    ///
    /// # Errors
    /// Fails if there is none, if it is malformed, and if it is of a model that is not known here.
    pub fn load_language(directory: &Path) -> Result<LanguageConfig> {
        let path = directory.join(FILE_NAME);
        let json = input::parse_json(&path, &input::read_text(&path, FILE_BYTES)?)?;
        let parse = || {
            let config = LanguageConfig::parse(&Section::new("text_config", Some(&json))?)?;
            config.check().map(|()| config)
        };
        parse().map_err(|what| Error::input(&path, what.replace("text_config.", "")))
    }

    /// What `json` describes; the error is a sentence without the file's name.
    fn parse(json: &Value) -> Parsed<Self> {
        let top = Section::new("", Some(json))?;
        let families = [("blip-2", Family::Blip2), ("instructblip", Family::InstructBlip)];
        let family = top.named("model_type", "", &families)?;
        let vision = VisionConfig::parse(&Section::new("vision_config", top.get("vision_config"))?)?;
        let qformer = Section::new("qformer_config", top.get("qformer_config"))?;
        let qformer = QFormerConfig::parse(&qformer, family, vision.width())?;
        let language = match top.get("text_config") {
            None | Some(Value::Null) => None,
            text => Some(LanguageConfig::parse(&Section::new("text_config", text)?)?),
        };
        Ok(Self {
            family,
            num_query_tokens: top.integer("num_query_tokens", 32)?,
            image_text_hidden_size: top.integer("image_text_hidden_size", 256)?,
            vision,
            qformer,
            language,
            image_token_index: top.optional_integer("image_token_index")?,
        })
    }

    fn check(&self) -> Checked {
        within("num_query_tokens", self.num_query_tokens, 1..=4096)?;
        within("image_text_hidden_size", self.image_text_hidden_size, WIDTH)?;
        self.vision.check()?;
        self.qformer.check()?;
        if self.qformer.encoder_hidden_size != self.vision.width() {
            return Err(format!(
                "qformer_config.encoder_hidden_size is {}; it has to be vision_config.hidden_size, {}",
                self.qformer.encoder_hidden_size,
                self.vision.width()
            ));
        }
        self.language.iter().try_for_each(LanguageConfig::check)
    }
}
