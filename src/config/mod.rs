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

mod parse;
mod validate;

use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::input;

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
    /// The image encoder (`vision_config`).
    pub vision: VisionConfig,
    /// The Q-Former (`qformer_config`).
    pub qformer: QFormerConfig,
    /// Q: learned query tokens an image is read with. Default 32.
    pub num_query_tokens: usize,
    /// E: width of the space where images and texts are compared. Default 256.
    pub image_text_hidden_size: usize,
    /// The language model of a generating checkpoint (`text_config`), as the file has it.
    pub text_model: Option<Value>,
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

/// The image encoder: a pre-norm vision transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct VisionConfig {
    /// W. Default 1408.
    pub hidden_size: usize,
    /// Width of the blocks' feed-forward layer. Default 6144.
    pub intermediate_size: usize,
    /// Blocks. Default 39.
    pub num_hidden_layers: usize,
    /// Heads; they divide W. Default 16.
    pub num_attention_heads: usize,
    /// Side of the square image, in pixels. Default 224.
    pub image_size: usize,
    /// Side of a square patch, in pixels; it divides the image's. Default 14.
    pub patch_size: usize,
    /// Activation of the feed-forward layers. Default exact GELU.
    pub hidden_act: Activation,
    /// What the blocks' layer norms add to the variance. Default 1e-6.
    pub layer_norm_eps: f64,
    /// The same for the last layer norm (`vision_model.post_layernorm`, LAVIS's `ln_vision`), where
    /// LAVIS has 1e-5. transformers has no such field and takes `layer_norm_eps`: the default.
    pub post_layer_norm_eps: f64,
}

/// The Q-Former: a post-norm BERT whose query tokens look at the image in some layers.
#[derive(Clone, Debug, PartialEq)]
pub struct QFormerConfig {
    /// V: rows of the word embeddings. Default 30522.
    pub vocab_size: usize,
    /// D. Default 768.
    pub hidden_size: usize,
    /// Layers. Default 12.
    pub num_hidden_layers: usize,
    /// H; it divides D. Default 12.
    pub num_attention_heads: usize,
    /// F. Default 3072.
    pub intermediate_size: usize,
    /// Activation of the feed-forward layers. Default exact GELU.
    pub hidden_act: Activation,
    /// Probability that training drops an element of a hidden state. Default 0.1.
    pub hidden_dropout_prob: f64,
    /// Probability that training drops an attention weight. Default 0.1.
    pub attention_probs_dropout_prob: f64,
    /// Rows of the position embeddings: the longest text, in tokens. Default 512.
    pub max_position_embeddings: usize,
    /// Standard deviation of freshly initialised weights. Default 0.02.
    pub initializer_range: f64,
    /// What layer norms add to the variance. Default 1e-12.
    pub layer_norm_eps: f64,
    /// Token that fills up short texts. Default 0.
    pub pad_token_id: usize,
    /// Layers 0, n, 2n, … attend to the image. Default 2.
    pub cross_attention_frequency: usize,
    /// W again: as transformers does, what the file says here is replaced by the image encoder's
    /// width.
    pub encoder_hidden_size: usize,
    /// Whether there are word embeddings and feed-forward layers for text. Default false.
    pub use_qformer_text_input: bool,
}

/// An activation function, by the names of `hidden_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `gelu`: x·Φ(x), exact.
    Gelu,
    /// `gelu_new` or `gelu_pytorch_tanh`: x·Φ(x) with Φ approximated by tanh.
    GeluTanh,
    /// `quick_gelu`: x·sigmoid(1.702·x).
    QuickGelu,
    /// `relu`: max(x, 0).
    Relu,
}

impl Activation {
    /// All activations with their names in `hidden_act`, the one written first.
    const NAMES: [(&'static str, Self); 5] = [
        ("gelu", Self::Gelu),
        ("gelu_new", Self::GeluTanh),
        ("gelu_pytorch_tanh", Self::GeluTanh),
        ("quick_gelu", Self::QuickGelu),
        ("relu", Self::Relu),
    ];

    /// The name in `hidden_act`.
    pub fn name(self) -> &'static str {
        let (name, _) =
            Self::NAMES.iter().find(|(_, named)| *named == self).expect("every activation is listed");
        name
    }
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
        let config = parse::config(&json).map_err(|what| Error::input(path, what))?;
        validate::check(&config).map_err(|what| Error::input(path, what))?;
        Ok(config)
    }

    /// Checks every field as [`Config::from_json`] does, for a configuration made by other means.
    ///
    /// # Errors
    /// Fails, naming the field, its value and what is allowed, if a field is out of bounds.
    pub fn validate(&self) -> Result<()> {
        validate::check(self).map_err(Error::value)
    }

    /// BLIP-2's image-text matching model with EVA ViT-g/14 at 224 pixels, 1.17 billion parameters:
    /// the sizes of `Salesforce/blip2-itm-vit-g`.
    pub fn blip2_vit_g() -> Self {
        let mut config = parse::config(&json!({ "model_type": "blip-2" })).expect("all fields have defaults");
        config.qformer.vocab_size = 30523;
        config.qformer.use_qformer_text_input = true;
        config
    }

    /// A model of the same structure with less than a million parameters, for tests and trials. Its
    /// vocabulary is that of [`Tokenizer::write_tiny`](crate::tokenizer::Tokenizer::write_tiny).
    pub fn tiny() -> Self {
        let mut config = Self::blip2_vit_g();
        config.num_query_tokens = 8;
        config.image_text_hidden_size = 32;
        config.vision = VisionConfig {
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 56,
            ..config.vision
        };
        config.qformer = QFormerConfig {
            vocab_size: crate::tokenizer::tiny_vocabulary_size(),
            hidden_size: 128,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            intermediate_size: 256,
            max_position_embeddings: 64,
            encoder_hidden_size: 64,
            ..config.qformer
        };
        config
    }

    /// The `config.json` of this model, as transformers opens it.
    pub fn to_json(&self) -> Value {
        let (model_type, vision_type, qformer_type) = match self.family {
            Family::Blip2 => ("blip-2", "blip_2_vision_model", "blip_2_qformer"),
            Family::InstructBlip => ("instructblip", "instructblip_vision_model", "instructblip_qformer"),
        };
        let architecture = match (self.family, self.text_model.is_some()) {
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
            "vision_config": self.vision.to_json(vision_type),
        });
        if let Some(text_model) = &self.text_model {
            json["text_config"] = text_model.clone();
        }
        json
    }

    /// Whether transformers opens it as `Blip2ForImageTextRetrieval`.
    pub fn is_retrieval(&self) -> bool {
        self.family == Family::Blip2 && self.qformer.use_qformer_text_input
    }

    /// N: tokens of an image, [`VisionConfig::image_tokens`].
    pub fn image_tokens(&self) -> usize {
        self.vision.image_tokens()
    }
}

impl VisionConfig {
    /// Patches along a side of the image.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// N: one token for the whole image, then one a patch.
    pub fn image_tokens(&self) -> usize {
        1 + self.patches_per_side().pow(2)
    }

    /// W/H: width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn to_json(&self, model_type: &str) -> Value {
        let mut json = json!({
            "attention_dropout": 0.0,
            "hidden_act": self.hidden_act.name(),
            "hidden_size": self.hidden_size,
            "image_size": self.image_size,
            "initializer_range": 1e-10,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "model_type": model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "patch_size": self.patch_size,
            "qkv_bias": true,
        });
        if self.post_layer_norm_eps != self.layer_norm_eps {
            json["post_layer_norm_eps"] = self.post_layer_norm_eps.into();
        }
        json
    }
}

impl QFormerConfig {
    /// D/H: width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Whether layer `layer` attends to the image.
    pub fn has_cross_attention(&self, layer: usize) -> bool {
        layer.is_multiple_of(self.cross_attention_frequency)
    }

    /// The layers that attend to the image, in order.
    pub fn cross_attention_layers(&self) -> std::iter::StepBy<Range<usize>> {
        (0..self.num_hidden_layers).step_by(self.cross_attention_frequency)
    }

    fn to_json(&self, model_type: &str) -> Value {
        json!({
            "attention_probs_dropout_prob": self.attention_probs_dropout_prob,
            "cross_attention_frequency": self.cross_attention_frequency,
            "encoder_hidden_size": self.encoder_hidden_size,
            "hidden_act": self.hidden_act.name(),
            "hidden_dropout_prob": self.hidden_dropout_prob,
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "pad_token_id": self.pad_token_id,
            "use_qformer_text_input": self.use_qformer_text_input,
            "vocab_size": self.vocab_size,
        })
    }
}
