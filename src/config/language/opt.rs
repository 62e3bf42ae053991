//! OPT's configuration.

use crate::config::activation::Activation;
use crate::config::parse::{Parsed, Section, tokens_json};
use crate::config::validate::{
    COUNT, Checked, FEED_FORWARD, VOCABULARY, WIDTH, deviation, divides, probability, tokens, within,
};
use serde_json::{Value, json};

/// OPT. Layer norms add 1e-5 to the variance; the defaults are those of transformers' `OPTConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct OptConfig {
    /// V: rows of the token embeddings, of which some may be padding. Default 50272.
    pub vocab_size: usize,
    /// D. Default 768.
    pub hidden_size: usize,
    /// Layers. Default 12.
    pub num_hidden_layers: usize,
    /// H; it divides D. Default 12.
    pub num_attention_heads: usize,
    /// F. Default 3072.
    pub ffn_dim: usize,
    /// Longest sequence, in tokens; the table of positions has two rows more. Default 2048.
    pub max_position_embeddings: usize,
    /// Width of the token embeddings; if it is not D, a linear layer leads to D and another one back. Default D.
    pub word_embed_proj_dim: usize,
    /// Whether norms come before the layers that they belong to (all sizes but 350M), or after the sum. Default true.
    pub do_layer_norm_before: bool,
    /// Whether there is no norm after the last layer, though norms come first (`_remove_final_layer_norm`).
    /// Default false.
    pub remove_final_layer_norm: bool,
    /// Activation of the feed-forward layers. Default ReLU.
    pub activation_function: Activation,
    /// Whether linear layers have biases. Default true.
    pub enable_bias: bool,
    /// Whether layer norms have scales and biases. Default true.
    pub layer_norm_elementwise_affine: bool,
    /// Whether the head is the table of token embeddings. Default true.
    pub tie_word_embeddings: bool,
    /// Probability that training drops an element of a hidden state. Default 0.1.
    pub dropout: f64,
    /// Probability that training drops an attention weight. Default 0.
    pub attention_dropout: f64,
    /// Standard deviation of freshly initialised weights. Default 0.02.
    pub init_std: f64,
    /// Token that fills up short texts. Default 1.
    pub pad_token_id: Option<usize>,
    /// Token that texts begin with. Default 2.
    pub bos_token_id: Option<usize>,
    /// Tokens that end a text. Default 2.
    pub eos_token_id: Vec<usize>,
}

impl Default for OptConfig {
    fn default() -> Self {
        Section::new("text_config", None)
            .and_then(|absent| Self::parse(&absent))
            .expect("all fields have defaults")
    }
}

impl OptConfig {
    pub(super) fn parse(section: &Section<'_>) -> Parsed<Self> {
        section.only_number("layerdrop", 0.0)?;
        let hidden_size = section.integer("hidden_size", 768)?;
        Ok(Self {
            vocab_size: section.integer("vocab_size", 50272)?,
            hidden_size,
            num_hidden_layers: section.integer("num_hidden_layers", 12)?,
            num_attention_heads: section.integer("num_attention_heads", 12)?,
            ffn_dim: section.integer("ffn_dim", 3072)?,
            max_position_embeddings: section.integer("max_position_embeddings", 2048)?,
            word_embed_proj_dim: section.optional_integer("word_embed_proj_dim")?.unwrap_or(hidden_size),
            do_layer_norm_before: section.boolean("do_layer_norm_before", true)?,
            remove_final_layer_norm: section.boolean("_remove_final_layer_norm", false)?,
            activation_function: section.activation("activation_function", Activation::Relu)?,
            enable_bias: section.boolean("enable_bias", true)?,
            layer_norm_elementwise_affine: section.boolean("layer_norm_elementwise_affine", true)?,
            tie_word_embeddings: section.boolean("tie_word_embeddings", true)?,
            dropout: section.number("dropout", 0.1)?,
            attention_dropout: section.number("attention_dropout", 0.0)?,
            init_std: section.number("init_std", 0.02)?,
            pad_token_id: section.token("pad_token_id", Some(1))?,
            bos_token_id: section.token("bos_token_id", Some(2))?,
            eos_token_id: section.tokens("eos_token_id", 2)?,
        })
    }

    pub(super) fn check(&self) -> Checked {
        within("text_config.vocab_size", self.vocab_size, VOCABULARY)?;
        within("text_config.hidden_size", self.hidden_size, WIDTH)?;
        within("text_config.num_hidden_layers", self.num_hidden_layers, COUNT)?;
        within("text_config.num_attention_heads", self.num_attention_heads, COUNT)?;
        divides(
            "text_config.num_attention_heads",
            self.num_attention_heads,
            "hidden_size",
            self.hidden_size,
        )?;
        within("text_config.ffn_dim", self.ffn_dim, FEED_FORWARD)?;
        within("text_config.max_position_embeddings", self.max_position_embeddings, 1..=1_048_576)?;
        within("text_config.word_embed_proj_dim", self.word_embed_proj_dim, WIDTH)?;
        probability("text_config.dropout", self.dropout)?;
        probability("text_config.attention_dropout", self.attention_dropout)?;
        deviation("text_config.init_std", self.init_std)?;
        tokens("text_config.pad_token_id", &self.pad_token_id)?;
        tokens("text_config.bos_token_id", &self.bos_token_id)?;
        tokens("text_config.eos_token_id", &self.eos_token_id)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "_remove_final_layer_norm": self.remove_final_layer_norm,
            "activation_function": self.activation_function.name(),
            "attention_dropout": self.attention_dropout,
            "bos_token_id": self.bos_token_id,
            "do_layer_norm_before": self.do_layer_norm_before,
            "dropout": self.dropout,
            "enable_bias": self.enable_bias,
            "eos_token_id": tokens_json(&self.eos_token_id),
            "ffn_dim": self.ffn_dim,
            "hidden_size": self.hidden_size,
            "init_std": self.init_std,
            "layer_norm_elementwise_affine": self.layer_norm_elementwise_affine,
            "layerdrop": 0.0,
            "max_position_embeddings": self.max_position_embeddings,
            "model_type": "opt",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "pad_token_id": self.pad_token_id,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "vocab_size": self.vocab_size,
            "word_embed_proj_dim": self.word_embed_proj_dim,
        })
    }
}
