//! The names of the parameters: Hugging Face's for retrieval checkpoints
//! (`Blip2ForImageTextRetrieval`) are the crate's own, and this is the one table that brings the
//! names of other checkpoints to them.
//!
//! Covered are LAVIS (`Qformer.bert.…`, `visual_encoder.…`), InstructBLIP (`qformer.embeddings.…`)
//! and Hugging Face's `Blip2ForConditionalGeneration`, which agrees already. What Hugging Face drops
//! keeps LAVIS's name: the temperature `temp`, and the language-modelling head as `cls.predictions.…`.

/// Beginnings of names and what takes their place; the first that fits is taken, once.
const PREFIXES: [(&str, &str); 19] = [
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.", "vision_model.encoder.layers."),
    ("ln_vision.", "vision_model.post_layernorm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.", "embeddings."),
    ("Qformer.bert.", "qformer."),
    ("Qformer.cls.", "cls."),
    ("qformer.embeddings.layernorm.", "qformer.layernorm."),
    ("qformer.embeddings.", "embeddings."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
    ("opt_proj.", "language_projection."),
    ("t5_proj.", "language_projection."),
    ("llm_proj.", "language_projection."),
    ("opt_model.", "language_model."),
    ("t5_model.", "language_model."),
    ("llm_model.", "language_model."),
];

/// Parts of names within an image encoder's block, after the prefix is replaced.
const VISION_PARTS: [(&str, &str); 4] = [
    (".norm1.", ".layer_norm1."),
    (".norm2.", ".layer_norm2."),
    (".attn.proj.", ".self_attn.projection."),
    (".attn.", ".self_attn."),
];

/// The crate's name of the tensor that a checkpoint calls `name`, or `None` for what is no parameter:
/// the `position_ids` buffers, and `cls.predictions.decoder.…`, second copies of the word embeddings
/// and of `cls.predictions.bias`. Names that are in no table are kept.
///
/// LAVIS's `q_bias` and `v_bias` of an image encoder's block become `….self_attn.q_bias` and
/// `….self_attn.v_bias`; see [`qkv_bias_parts`].
pub fn canonical(name: &str) -> Option<String> {
    if name.ends_with(".position_ids") || name.starts_with("Qformer.cls.predictions.decoder.") {
        return None;
    }
    let mut renamed = PREFIXES
        .iter()
        .find_map(|(prefix, replacement)| Some(format!("{replacement}{}", name.strip_prefix(prefix)?)))
        .unwrap_or_else(|| name.to_owned());
    if name.starts_with("visual_encoder.blocks.") {
        for (part, replacement) in VISION_PARTS {
            renamed = renamed.replacen(part, replacement, 1);
        }
    }
    if name.starts_with("Qformer.bert.encoder.") {
        // The same rule for `attention` and `crossattention`.
        renamed = renamed.replacen("attention.self.", "attention.attention.", 1);
    }
    Some(renamed)
}

/// For `….self_attn.qkv.bias` of a block of the image encoder, the [canonical] names of the two
/// tensors that LAVIS stores in its place, of the queries and of the values. The bias `[3·W]` is the
/// queries' `[W]`, zeros `[W]` for the keys, and the values' `[W]`, in this order.
pub fn qkv_bias_parts(name: &str) -> Option<(String, String)> {
    let stem = name.strip_suffix("qkv.bias")?;
    Some((format!("{stem}q_bias"), format!("{stem}v_bias")))
}

/// Whose names a checkpoint's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Naming {
    /// Those of transformers' `Blip2…` classes.
    HuggingFace,
    /// Those of LAVIS's own checkpoints.
    Lavis,
    /// Those of transformers' `InstructBlip…` classes.
    InstructBlip,
}

impl Naming {
    /// Tells from the names of a checkpoint's tensors; `None` if it holds no Q-Former.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<Self> {
        let mut found = None;
        for name in names {
            if name.starts_with("Qformer.") {
                return Some(Self::Lavis);
            }
            if name.starts_with("qformer.embeddings.") {
                return Some(Self::InstructBlip);
            }
            if name.starts_with("qformer.") {
                found = Some(Self::HuggingFace);
            }
        }
        found
    }
}
