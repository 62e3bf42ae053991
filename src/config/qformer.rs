//! The Q-Former's configuration.

use super::Family;
use super::activation::Activation;
use super::parse::{Parsed, Section};
use super::validate::{
    COUNT, Checked, FEED_FORWARD, VOCABULARY, WIDTH, deviation, divides, epsilon, outside, probability,
    within,
};
use serde_json::{Value, json};
use std::ops::Range;

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
    /// W again: as transformers does, what the file says here is replaced by the width of `vision_config`.
    pub encoder_hidden_size: usize,
    /// Whether there are word embeddings and feed-forward layers for text. Default false.
    pub use_qformer_text_input: bool,
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

    pub(super) fn parse(section: &Section<'_>, family: Family, image_width: usize) -> Parsed<Self> {
        // transformers 4 could also have "relative_key", whose parameters no released model has.
        section.only("position_embedding_type", &Value::from("absolute"))?;
        // Replaced below, but a value that is no width is an error nonetheless.
        section.integer("encoder_hidden_size", image_width)?;
        let older_name = section.boolean("qformer_text_input", family == Family::InstructBlip)?;
        let use_qformer_text_input = section.boolean("use_qformer_text_input", older_name)?;
        Ok(Self {
            vocab_size: section.integer("vocab_size", 30522)?,
            hidden_size: section.integer("hidden_size", 768)?,
            num_hidden_layers: section.integer("num_hidden_layers", 12)?,
            num_attention_heads: section.integer("num_attention_heads", 12)?,
            intermediate_size: section.integer("intermediate_size", 3072)?,
            hidden_act: section.activation("hidden_act", Activation::Gelu)?,
            hidden_dropout_prob: section.number("hidden_dropout_prob", 0.1)?,
            attention_probs_dropout_prob: section.number("attention_probs_dropout_prob", 0.1)?,
            max_position_embeddings: section.integer("max_position_embeddings", 512)?,
            initializer_range: section.number("initializer_range", 0.02)?,
            layer_norm_eps: section.number("layer_norm_eps", 1e-12)?,
            pad_token_id: section.integer("pad_token_id", 0)?,
            cross_attention_frequency: section.integer("cross_attention_frequency", 2)?,
            encoder_hidden_size: image_width,
            use_qformer_text_input: use_qformer_text_input || family == Family::InstructBlip,
        })
    }

    pub(super) fn check(&self) -> Checked {
        within("qformer_config.vocab_size", self.vocab_size, VOCABULARY)?;
        within("qformer_config.hidden_size", self.hidden_size, WIDTH)?;
        within("qformer_config.num_hidden_layers", self.num_hidden_layers, COUNT)?;
        within("qformer_config.num_attention_heads", self.num_attention_heads, COUNT)?;
        divides(
            "qformer_config.num_attention_heads",
            self.num_attention_heads,
            "hidden_size",
            self.hidden_size,
        )?;
        within("qformer_config.intermediate_size", self.intermediate_size, FEED_FORWARD)?;
        probability("qformer_config.hidden_dropout_prob", self.hidden_dropout_prob)?;
        probability("qformer_config.attention_probs_dropout_prob", self.attention_probs_dropout_prob)?;
        within("qformer_config.max_position_embeddings", self.max_position_embeddings, 1..=65_536)?;
        deviation("qformer_config.initializer_range", self.initializer_range)?;
        epsilon("qformer_config.layer_norm_eps", self.layer_norm_eps)?;
        if self.pad_token_id >= self.vocab_size {
            let allowed = format!("less than vocab_size, {}", self.vocab_size);
            return Err(outside("qformer_config.pad_token_id", self.pad_token_id, &allowed));
        }
        within("qformer_config.cross_attention_frequency", self.cross_attention_frequency, COUNT)
    }

    pub(super) fn to_json(&self, model_type: &str) -> Value {
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
