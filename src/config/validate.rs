//! The bounds within which a [`Config`] is believed: wide enough for any model of the family, and
//! narrow enough that no product of sizes overflows 64 bits.

use std::ops::RangeInclusive;

use super::{Config, QFormerConfig, VisionConfig};

type Checked = std::result::Result<(), String>;

/// Smallest epsilon: what is smaller vanishes in 32-bit floats' normal range.
const SMALLEST_EPSILON: f64 = 1e-30;

/// Checks every field; the error is a sentence that names the field as the file does.
pub(super) fn check(config: &Config) -> Checked {
    within("num_query_tokens", config.num_query_tokens, 1..=4096)?;
    within("image_text_hidden_size", config.image_text_hidden_size, 1..=65_536)?;
    check_vision(&config.vision)?;
    check_qformer(&config.qformer)?;
    if config.qformer.encoder_hidden_size != config.vision.hidden_size {
        return Err(format!(
            "qformer_config.encoder_hidden_size is {}; it has to be vision_config.hidden_size, {}",
            config.qformer.encoder_hidden_size, config.vision.hidden_size
        ));
    }
    Ok(())
}

fn check_vision(vision: &VisionConfig) -> Checked {
    within("vision_config.hidden_size", vision.hidden_size, 1..=65_536)?;
    within("vision_config.intermediate_size", vision.intermediate_size, 1..=262_144)?;
    within("vision_config.num_hidden_layers", vision.num_hidden_layers, 1..=1024)?;
    within("vision_config.num_attention_heads", vision.num_attention_heads, 1..=1024)?;
    divides(
        "vision_config.num_attention_heads",
        vision.num_attention_heads,
        "hidden_size",
        vision.hidden_size,
    )?;
    within("vision_config.image_size", vision.image_size, 1..=4096)?;
    within("vision_config.patch_size", vision.patch_size, 1..=4096)?;
    divides("vision_config.patch_size", vision.patch_size, "image_size", vision.image_size)?;
    epsilon("vision_config.layer_norm_eps", vision.layer_norm_eps)?;
    epsilon("vision_config.post_layer_norm_eps", vision.post_layer_norm_eps)
}

fn check_qformer(qformer: &QFormerConfig) -> Checked {
    within("qformer_config.vocab_size", qformer.vocab_size, 1..=4_194_304)?;
    within("qformer_config.hidden_size", qformer.hidden_size, 1..=65_536)?;
    within("qformer_config.num_hidden_layers", qformer.num_hidden_layers, 1..=1024)?;
    within("qformer_config.num_attention_heads", qformer.num_attention_heads, 1..=1024)?;
    divides(
        "qformer_config.num_attention_heads",
        qformer.num_attention_heads,
        "hidden_size",
        qformer.hidden_size,
    )?;
    within("qformer_config.intermediate_size", qformer.intermediate_size, 1..=262_144)?;
    probability("qformer_config.hidden_dropout_prob", qformer.hidden_dropout_prob)?;
    probability("qformer_config.attention_probs_dropout_prob", qformer.attention_probs_dropout_prob)?;
    within("qformer_config.max_position_embeddings", qformer.max_position_embeddings, 1..=65_536)?;
    if !(0.0..=1.0).contains(&qformer.initializer_range) {
        return Err(outside("qformer_config.initializer_range", qformer.initializer_range, "from 0 to 1"));
    }
    epsilon("qformer_config.layer_norm_eps", qformer.layer_norm_eps)?;
    if qformer.pad_token_id >= qformer.vocab_size {
        let allowed = format!("less than vocab_size, {}", qformer.vocab_size);
        return Err(outside("qformer_config.pad_token_id", qformer.pad_token_id, &allowed));
    }
    within("qformer_config.cross_attention_frequency", qformer.cross_attention_frequency, 1..=1024)
}

fn outside(field: &str, value: impl std::fmt::Display, allowed: &str) -> String {
    format!("{field} is {value}; it has to be {allowed}")
}

fn within(field: &str, value: usize, allowed: RangeInclusive<usize>) -> Checked {
    if allowed.contains(&value) {
        return Ok(());
    }
    Err(outside(field, value, &format!("from {} to {}", allowed.start(), allowed.end())))
}

fn divides(field: &str, value: usize, whole: &str, size: usize) -> Checked {
    if size.is_multiple_of(value) {
        return Ok(());
    }
    Err(outside(field, value, &format!("a divisor of {whole}, {size}")))
}

fn epsilon(field: &str, value: f64) -> Checked {
    if (SMALLEST_EPSILON..=0.1).contains(&value) {
        return Ok(());
    }
    Err(outside(field, value, &format!("from {SMALLEST_EPSILON:e} to 0.1")))
}

fn probability(field: &str, value: f64) -> Checked {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(outside(field, value, "from 0 to less than 1"))
}
