//! LLaMA's configuration.

use crate::config::parse::{Parsed, Section, tokens_json};
use crate::config::validate::{
    COUNT, Checked, FEED_FORWARD, VOCABULARY, WIDTH, deviation, divides, epsilon, outside, probability,
    tokens, within,
};
use serde_json::{Value, json};

/// LLaMA; Vicuna is one. The feed-forward is gated by SiLU. The defaults are those of transformers' `LlamaConfig`.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// V: rows of the token embeddings. Default 32000.
    pub vocab_size: usize,
    /// D. Default 4096.
    pub hidden_size: usize,
    /// F. Default 11008.
    pub intermediate_size: usize,
    /// Layers. Default 32.
    pub num_hidden_layers: usize,
    /// H: heads of queries; they divide D. Default 32.
    pub num_attention_heads: usize,
    /// Heads of keys and values, each for as many heads of queries; they divide H. Default H.
    pub num_key_value_heads: usize,
    /// Width of a head, an even number. Default D/H.
    pub head_dim: usize,
    /// Longest sequence, in tokens. Default 2048.
    pub max_position_embeddings: usize,
    /// Base of the rotary positions' wavelengths, in `rope_parameters` or by itself. Default 10000.
    pub rope_theta: f64,
    /// What norms add to the mean square. Default 1e-6.
    pub rms_norm_eps: f64,
    /// Whether the linear layers of attention have biases. Default false.
    pub attention_bias: bool,
    /// Whether those of the feed-forward have. Default false.
    pub mlp_bias: bool,
    /// Whether the head is the table of token embeddings. Default false.
    pub tie_word_embeddings: bool,
    /// Probability that training drops an attention weight. Default 0.
    pub attention_dropout: f64,
    /// Standard deviation of freshly initialised weights. Default 0.02.
    pub initializer_range: f64,
    /// Token that fills up short texts. No default.
    pub pad_token_id: Option<usize>,
    /// Token that texts begin with. Default 1.
    pub bos_token_id: Option<usize>,
    /// Tokens that end a text. Default 2.
    pub eos_token_id: Vec<usize>,
}

impl LlamaConfig {
    pub(super) fn parse(section: &Section<'_>) -> Parsed<Self> {
        section.only("hidden_act", &Value::from("silu"))?;
        // Version 5 of transformers keeps all of rotary positions in rope_parameters.
        let parameters = Section::new("text_config.rope_parameters", section.get("rope_parameters"))?;
        let scaling = Section::new("text_config.rope_scaling", section.get("rope_scaling"))?;
        for stretched in [&parameters, &scaling] {
            for field in ["rope_type", "type"] {
                stretched.only(field, &Value::from("default"))?;
            }
        }
        let hidden_size = section.integer("hidden_size", 4096)?;
        let num_attention_heads = section.integer("num_attention_heads", 32)?;
        let filling = hidden_size.checked_div(num_attention_heads).unwrap_or_default();
        Ok(Self {
            vocab_size: section.integer("vocab_size", 32000)?,
            hidden_size,
            intermediate_size: section.integer("intermediate_size", 11008)?,
            num_hidden_layers: section.integer("num_hidden_layers", 32)?,
            num_attention_heads,
            num_key_value_heads: section
                .optional_integer("num_key_value_heads")?
                .unwrap_or(num_attention_heads),
            head_dim: section.optional_integer("head_dim")?.unwrap_or(filling),
            max_position_embeddings: section.integer("max_position_embeddings", 2048)?,
            rope_theta: parameters.number("rope_theta", section.number("rope_theta", 10000.0)?)?,
            rms_norm_eps: section.number("rms_norm_eps", 1e-6)?,
            attention_bias: section.boolean("attention_bias", false)?,
            mlp_bias: section.boolean("mlp_bias", false)?,
            tie_word_embeddings: section.boolean("tie_word_embeddings", false)?,
            attention_dropout: section.number("attention_dropout", 0.0)?,
            initializer_range: section.number("initializer_range", 0.02)?,
            pad_token_id: section.token("pad_token_id", None)?,
            bos_token_id: section.token("bos_token_id", Some(1))?,
            eos_token_id: section.tokens("eos_token_id", 2)?,
        })
    }

    pub(super) fn check(&self) -> Checked {
        let heads = self.num_attention_heads;
        within("text_config.vocab_size", self.vocab_size, VOCABULARY)?;
        within("text_config.hidden_size", self.hidden_size, WIDTH)?;
        within("text_config.intermediate_size", self.intermediate_size, FEED_FORWARD)?;
        within("text_config.num_hidden_layers", self.num_hidden_layers, COUNT)?;
        within("text_config.num_attention_heads", heads, COUNT)?;
        divides("text_config.num_attention_heads", heads, "hidden_size", self.hidden_size)?;
        within("text_config.num_key_value_heads", self.num_key_value_heads, COUNT)?;
        divides("text_config.num_key_value_heads", self.num_key_value_heads, "num_attention_heads", heads)?;
        within("text_config.head_dim", self.head_dim, COUNT)?;
        if !self.head_dim.is_multiple_of(2) {
            return Err(outside(
                "text_config.head_dim",
                self.head_dim,
                "even, as rotary positions take pairs",
            ));
        }
        within("text_config.max_position_embeddings", self.max_position_embeddings, 1..=1_048_576)?;
        if !(1.0..=1e12).contains(&self.rope_theta) {
            return Err(outside("text_config.rope_theta", self.rope_theta, "from 1 to 1e12"));
        }
        epsilon("text_config.rms_norm_eps", self.rms_norm_eps)?;
        probability("text_config.attention_dropout", self.attention_dropout)?;
        deviation("text_config.initializer_range", self.initializer_range)?;
        tokens("text_config.pad_token_id", &self.pad_token_id)?;
        tokens("text_config.bos_token_id", &self.bos_token_id)?;
        tokens("text_config.eos_token_id", &self.eos_token_id)
    }

    pub(super) fn to_json(&self) -> Value {
        json!({
            "attention_bias": self.attention_bias,
            "attention_dropout": self.attention_dropout,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": tokens_json(&self.eos_token_id),
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": self.initializer_range,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": self.mlp_bias,
            "model_type": "llama",
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pad_token_id": self.pad_token_id,
            "pretraining_tp": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": { "rope_theta": self.rope_theta, "rope_type": "default" },
            // Where version 4 of transformers looks for it.
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }
}
