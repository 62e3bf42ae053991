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

#[cfg(test)]
mod tests {
    use super::{canonical, qkv_bias_parts};

    /// Rows of the table of LAVIS's names, with `{}` for what both sides share.
    const LAVIS: [(&str, &str, &[&str]); 29] = [
        ("query_tokens", "query_tokens", &[""]),
        ("temp", "temp", &[""]),
        ("ln_vision.{}", "vision_model.post_layernorm.{}", &["weight", "bias"]),
        ("vision_proj.{}", "vision_projection.{}", &["weight", "bias"]),
        ("text_proj.{}", "text_projection.{}", &["weight", "bias"]),
        ("itm_head.{}", "itm_head.{}", &["weight", "bias"]),
        ("opt_proj.{}", "language_projection.{}", &["weight", "bias"]),
        ("t5_proj.{}", "language_projection.{}", &["weight", "bias"]),
        ("llm_proj.{}", "language_projection.{}", &["weight", "bias"]),
        ("opt_model.{}", "language_model.{}", &["model.decoder.embed_tokens.weight", "lm_head.weight"]),
        ("t5_model.{}", "language_model.{}", &["shared.weight", "decoder.final_layer_norm.weight"]),
        ("llm_model.{}", "language_model.{}", &["model.embed_tokens.weight"]),
        (
            "Qformer.bert.embeddings.{}.weight",
            "embeddings.{}.weight",
            &["word_embeddings", "position_embeddings"],
        ),
        ("Qformer.bert.embeddings.LayerNorm.{}", "qformer.layernorm.{}", &["weight", "bias"]),
        ("Qformer.cls.predictions.{}", "cls.predictions.{}", &["bias"]),
        (
            "Qformer.cls.predictions.transform.{}.weight",
            "cls.predictions.transform.{}.weight",
            &["dense", "LayerNorm"],
        ),
        (
            "Qformer.bert.encoder.layer.10.attention.self.{}.weight",
            "qformer.encoder.layer.10.attention.attention.{}.weight",
            &["query", "key", "value"],
        ),
        (
            "Qformer.bert.encoder.layer.10.crossattention.self.{}.bias",
            "qformer.encoder.layer.10.crossattention.attention.{}.bias",
            &["query", "key", "value"],
        ),
        (
            "Qformer.bert.encoder.layer.0.{}.weight",
            "qformer.encoder.layer.0.{}.weight",
            &[
                "attention.output.dense",
                "attention.output.LayerNorm",
                "crossattention.output.dense",
                "crossattention.output.LayerNorm",
                "intermediate.dense",
                "output.dense",
                "output.LayerNorm",
                "intermediate_query.dense",
                "output_query.dense",
                "output_query.LayerNorm",
            ],
        ),
        ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding", &[""]),
        ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding", &[""]),
        (
            "visual_encoder.patch_embed.proj.{}",
            "vision_model.embeddings.patch_embedding.{}",
            &["weight", "bias"],
        ),
        (
            "visual_encoder.blocks.38.norm1.{}",
            "vision_model.encoder.layers.38.layer_norm1.{}",
            &["weight", "bias"],
        ),
        (
            "visual_encoder.blocks.38.norm2.{}",
            "vision_model.encoder.layers.38.layer_norm2.{}",
            &["weight", "bias"],
        ),
        (
            "visual_encoder.blocks.0.attn.qkv.{}",
            "vision_model.encoder.layers.0.self_attn.qkv.{}",
            &["weight"],
        ),
        (
            "visual_encoder.blocks.0.attn.{}",
            "vision_model.encoder.layers.0.self_attn.{}",
            &["q_bias", "v_bias"],
        ),
        (
            "visual_encoder.blocks.0.attn.proj.{}",
            "vision_model.encoder.layers.0.self_attn.projection.{}",
            &["weight", "bias"],
        ),
        (
            "visual_encoder.blocks.0.mlp.fc1.{}",
            "vision_model.encoder.layers.0.mlp.fc1.{}",
            &["weight", "bias"],
        ),
        (
            "visual_encoder.blocks.0.mlp.fc2.{}",
            "vision_model.encoder.layers.0.mlp.fc2.{}",
            &["weight", "bias"],
        ),
    ];

    #[test]
    fn every_name_of_lavis_becomes_the_one_of_hugging_face_which_is_kept() {
        for (lavis, hugging_face, parts) in LAVIS {
            for part in parts {
                let expected = hugging_face.replace("{}", part);
                assert_eq!(canonical(&lavis.replace("{}", part)).as_ref(), Some(&expected));
                assert_eq!(canonical(&expected), Some(expected));
            }
        }
    }

    #[test]
    fn names_of_instructblips_q_former_become_those_of_retrieval_checkpoints() {
        let names = [
            ("qformer.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"),
            ("qformer.embeddings.position_embeddings.weight", "embeddings.position_embeddings.weight"),
            ("qformer.embeddings.layernorm.weight", "qformer.layernorm.weight"),
            ("qformer.embeddings.layernorm.bias", "qformer.layernorm.bias"),
            ("qformer.encoder.layer.1.output.dense.weight", "qformer.encoder.layer.1.output.dense.weight"),
        ];
        for (name, expected) in names {
            assert_eq!(canonical(name).as_deref(), Some(expected));
        }
    }

    #[test]
    fn buffers_and_tied_copies_are_no_parameters() {
        for name in [
            "Qformer.bert.embeddings.position_ids",
            "qformer.embeddings.position_ids",
            "embeddings.position_ids",
            "Qformer.cls.predictions.decoder.weight",
            "Qformer.cls.predictions.decoder.bias",
        ] {
            assert_eq!(canonical(name), None, "{name}");
        }
    }

    #[test]
    fn only_a_fused_bias_has_parts() {
        let stem = "vision_model.encoder.layers.7.self_attn";
        let parts = qkv_bias_parts(&format!("{stem}.qkv.bias"));
        assert_eq!(parts, Some((format!("{stem}.q_bias"), format!("{stem}.v_bias"))));
        assert_eq!(qkv_bias_parts(&format!("{stem}.qkv.weight")), None);
        assert_eq!(qkv_bias_parts(&format!("{stem}.projection.bias")), None);
    }
}
