//! The three models of a BLIP-2, by their configuration: what each is, and whether it is run here.

use qformer::Config;
use qformer::config::{LanguageConfig, QFormerConfig, VisionConfig, VitConfig};
use qformer::output::counted;
use serde::Serialize;

/// A model within the model.
#[derive(Serialize)]
pub(super) struct Component {
    pub(super) name: &'static str,
    /// What it is.
    pub(super) what: String,
    /// Why it is not run, if it is not.
    pub(super) obstacle: Option<&'static str>,
}

const NOT_BUILT: &str = "not built yet: read, not run";
const NOT_HERE: &str = "its weights are not in this checkpoint";

/// The image encoder, the Q-Former and, if there is one, the language model; the checkpoint has weights of those that
/// `has_image_encoder` and `has_language_model` tell.
pub(super) fn components(
    config: &Config,
    has_image_encoder: bool,
    has_language_model: bool,
) -> Vec<Component> {
    let (what, obstacle) = match &config.vision {
        VisionConfig::Eva(vit) => (format!("EVA, {}", vision_transformer(vit)), None),
        VisionConfig::Clip(vit) => (format!("CLIP, {}", vision_transformer(vit)), Some(NOT_BUILT)),
        VisionConfig::Features(_) => ("none".into(), Some("features are given")),
    };
    let missing = (!has_image_encoder).then_some(NOT_HERE);
    let image_encoder = Component { name: "image encoder", what, obstacle: obstacle.or(missing) };
    let qformer = Component { name: "Q-Former", what: qformer(config), obstacle: None };
    let language_model = config.language.as_ref().map(|language| Component {
        name: "language model",
        what: language_model(language),
        obstacle: match language {
            _ if !has_language_model => Some(NOT_HERE),
            LanguageConfig::Llama(_) => Some(NOT_BUILT),
            LanguageConfig::Opt(_) | LanguageConfig::T5(_) => None,
        },
    });
    [image_encoder, qformer].into_iter().chain(language_model).collect()
}

fn vision_transformer(vit: &VitConfig) -> String {
    format!(
        "{}, {}, feed-forward width {}",
        counted(vit.num_hidden_layers, "layer"),
        counted(vit.num_attention_heads, "head"),
        vit.intermediate_size
    )
}

fn qformer(config: &Config) -> String {
    let qformer: &QFormerConfig = &config.qformer;
    format!(
        "{} queries, {} of width {}, {}, feed-forward width {}, cross-attention in {}",
        config.num_query_tokens,
        counted(qformer.num_hidden_layers, "layer"),
        qformer.hidden_size,
        counted(qformer.num_attention_heads, "head"),
        qformer.intermediate_size,
        qformer.cross_attention_layers().count()
    )
}

fn language_model(language: &LanguageConfig) -> String {
    let (name, layers, heads, feed_forward) = match language {
        LanguageConfig::Opt(opt) => {
            ("OPT", counted(opt.num_hidden_layers, "layer"), opt.num_attention_heads, opt.ffn_dim)
        }
        LanguageConfig::T5(t5) => {
            let layers = format!("{} + {} layers", t5.num_layers, t5.num_decoder_layers);
            ("T5", layers, t5.num_heads, t5.d_ff)
        }
        LanguageConfig::Llama(llama) => (
            "LLaMA",
            counted(llama.num_hidden_layers, "layer"),
            llama.num_attention_heads,
            llama.intermediate_size,
        ),
    };
    format!(
        "{name}, {layers} of width {}, {}, feed-forward width {feed_forward}, {} tokens",
        language.hidden_size(),
        counted(heads, "head"),
        language.vocab_size()
    )
}
