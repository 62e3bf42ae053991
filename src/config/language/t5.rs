//! T5's configuration.

use crate::config::activation::Activation;
use crate::config::parse::{Parsed, Section, tokens_json};
use crate::config::validate::{
    COUNT, Checked, FEED_FORWARD, VOCABULARY, WIDTH, epsilon, outside, probability, tokens, within,
};
use serde_json::{Value, json};

/// T5; Flan-T5 is one. The defaults are those of transformers' `T5Config`.
#[derive(Clone, Debug, PartialEq)]
pub struct T5Config {
    /// V: rows of the token embeddings, of which some may be padding. Default 32128.
    pub vocab_size: usize,
    /// D. Default 512.
    pub d_model: usize,
    /// Width of an attention head; heads side by side need not fill D. Default 64.
    pub d_kv: usize,
    /// F. Default 2048.
    pub d_ff: usize,
    /// Layers of the encoder. Default 6.
    pub num_layers: usize,
    /// Layers of the decoder. Default as many as the encoder's.
    pub num_decoder_layers: usize,
    /// H. Default 8.
    pub num_heads: usize,
    /// Buckets of distances that attention has a bias for. Default 32.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all share a bucket. Default 128.
    pub relative_attention_max_distance: usize,
    /// Activation of the feed-forward layers: `dense_act_fn` where the file has it, as BLIP-2's, or else that of
    /// `feed_forward_proj`, where "gated-gelu" stands for `gelu_new`. Default ReLU.
    pub dense_act_fn: Activation,
    /// Whether a second linear layer gates the feed-forward's first (`feed_forward_proj` is "gated-…"). Default false.
    pub is_gated_act: bool,
    /// What norms add to the mean square. Default 1e-6.
    pub layer_norm_epsilon: f64,
    /// Whether the decoder's output is divided by √D before the head: `scale_decoder_outputs`, which version 5 of
    /// transformers writes, or else `tie_word_embeddings`. Whether there is a head apart from the token embeddings
    /// is told by the tensors. Default true; false for Flan-T5.
    pub scale_decoder_outputs: bool,
    /// Probability that training drops an element. Default 0.1.
    pub dropout_rate: f64,
    /// Scale of freshly initialised weights. Default 1.
    pub initializer_factor: f64,
    /// Token that fills up short texts. Default 0.
    pub pad_token_id: Option<usize>,
    /// Tokens that end a text. Default 1.
    pub eos_token_id: Vec<usize>,
    /// Token that the decoder begins with. Default 0, T5's padding.
    pub decoder_start_token_id: Option<usize>,
}

impl Default for T5Config {
    fn default() -> Self {
        Section::new("text_config", None)
            .and_then(|absent| Self::parse(&absent))
            .expect("all fields have defaults")
    }
}

impl T5Config {
    /// `feed_forward_proj`, what it stands for, and whether it is gated.
    const FEED_FORWARDS: [(&'static str, (Activation, bool)); 5] = [
        ("relu", (Activation::Relu, false)),
        ("gelu", (Activation::Gelu, false)),
        ("gelu_new", (Activation::GeluTanh, false)),
        ("gated-relu", (Activation::Relu, true)),
        ("gated-gelu", (Activation::GeluTanh, true)),
    ];

    pub(super) fn parse(section: &Section<'_>) -> Parsed<Self> {
        let (activation, is_gated) = section.named("feed_forward_proj", "relu", &Self::FEED_FORWARDS)?;
        // It follows from feed_forward_proj; a file that says otherwise is of no released model.
        section.only("is_gated_act", &is_gated.into())?;
        let num_layers = section.integer("num_layers", 6)?;
        let pad_token_id = section.token("pad_token_id", Some(0))?;
        let tied = section.boolean("tie_word_embeddings", true)?;
        Ok(Self {
            vocab_size: section.integer("vocab_size", 32128)?,
            d_model: section.integer("d_model", 512)?,
            d_kv: section.integer("d_kv", 64)?,
            d_ff: section.integer("d_ff", 2048)?,
            num_layers,
            num_decoder_layers: section.optional_integer("num_decoder_layers")?.unwrap_or(num_layers),
            num_heads: section.integer("num_heads", 8)?,
            relative_attention_num_buckets: section.integer("relative_attention_num_buckets", 32)?,
            relative_attention_max_distance: section.integer("relative_attention_max_distance", 128)?,
            dense_act_fn: section.activation("dense_act_fn", activation)?,
            is_gated_act: is_gated,
            layer_norm_epsilon: section.number("layer_norm_epsilon", 1e-6)?,
            scale_decoder_outputs: section.boolean("scale_decoder_outputs", tied)?,
            dropout_rate: section.number("dropout_rate", 0.1)?,
            initializer_factor: section.number("initializer_factor", 1.0)?,
            pad_token_id,
            eos_token_id: section.tokens("eos_token_id", 1)?,
            decoder_start_token_id: section.token("decoder_start_token_id", pad_token_id)?,
        })
    }

    pub(super) fn check(&self) -> Checked {
        within("text_config.vocab_size", self.vocab_size, VOCABULARY)?;
        within("text_config.d_model", self.d_model, WIDTH)?;
        within("text_config.d_kv", self.d_kv, COUNT)?;
        within("text_config.d_ff", self.d_ff, FEED_FORWARD)?;
        within("text_config.num_layers", self.num_layers, COUNT)?;
        within("text_config.num_decoder_layers", self.num_decoder_layers, COUNT)?;
        within("text_config.num_heads", self.num_heads, COUNT)?;
        let buckets = self.relative_attention_num_buckets;
        within("text_config.relative_attention_num_buckets", buckets, 4..=4096)?;
        within(
            "text_config.relative_attention_max_distance",
            self.relative_attention_max_distance,
            1..=1_048_576,
        )?;
        if self.relative_attention_max_distance <= buckets / 2 {
            let allowed = format!("more than half of relative_attention_num_buckets, {buckets}");
            let field = "text_config.relative_attention_max_distance";
            return Err(outside(field, self.relative_attention_max_distance, &allowed));
        }
        epsilon("text_config.layer_norm_epsilon", self.layer_norm_epsilon)?;
        probability("text_config.dropout_rate", self.dropout_rate)?;
        if !(0.0..=1000.0).contains(&self.initializer_factor) {
            return Err(outside("text_config.initializer_factor", self.initializer_factor, "from 0 to 1000"));
        }
        tokens("text_config.pad_token_id", &self.pad_token_id)?;
        tokens("text_config.eos_token_id", &self.eos_token_id)?;
        tokens("text_config.decoder_start_token_id", &self.decoder_start_token_id)
    }

    pub(super) fn to_json(&self) -> Value {
        // A gated GELU of either kind is "gated-gelu"; `dense_act_fn` tells which.
        let gated_gelu = self.is_gated_act && self.dense_act_fn != Activation::Relu;
        let written = if gated_gelu { Activation::GeluTanh } else { self.dense_act_fn };
        let named = Self::FEED_FORWARDS.iter().find(|(_, meant)| *meant == (written, self.is_gated_act));
        let feed_forward = named.map_or("relu", |(name, _)| name);
        json!({
            "classifier_dropout": 0.0,
            "d_ff": self.d_ff,
            "d_kv": self.d_kv,
            "d_model": self.d_model,
            "decoder_start_token_id": self.decoder_start_token_id,
            "dense_act_fn": self.dense_act_fn.name(),
            "dropout_rate": self.dropout_rate,
            "eos_token_id": tokens_json(&self.eos_token_id),
            "feed_forward_proj": feed_forward,
            "initializer_factor": self.initializer_factor,
            "is_decoder": false,
            "is_encoder_decoder": true,
            "is_gated_act": self.is_gated_act,
            "layer_norm_epsilon": self.layer_norm_epsilon,
            "model_type": "t5",
            "num_decoder_layers": self.num_decoder_layers,
            "num_heads": self.num_heads,
            "num_layers": self.num_layers,
            "pad_token_id": self.pad_token_id,
            "relative_attention_max_distance": self.relative_attention_max_distance,
            "relative_attention_num_buckets": self.relative_attention_num_buckets,
            "scale_decoder_outputs": self.scale_decoder_outputs,
            // Version 4 of transformers scales by this one.
            "tie_word_embeddings": self.scale_decoder_outputs,
            "use_cache": true,
            "vocab_size": self.vocab_size,
        })
    }
}
