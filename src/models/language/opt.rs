//! OPT: decoder-only, with learned positions, layer norms, plain feed-forward layers and a tied head.

use super::parameters::{Architecture, Block, NormPlace, Parameters, SelfAttention, Stack};
use crate::config::OptConfig;
use crate::error::{Error, Result};
use crate::layers::mlp::Gating;
use crate::layers::{LayerNorm, Linear, Mlp, Norm};
use crate::params::Spec;

/// What OPT's layer norms add to the variance.
const EPSILON: f64 = 1e-5;
/// Rows of the table of positions before that of the first token.
const FIRST_POSITION: usize = 2;

/// What the passes follow.
///
/// # Errors
/// Fails, naming the field, if the configuration has what no released OPT has.
pub(super) fn architecture(config: &OptConfig) -> Result<Architecture> {
    if !config.layer_norm_elementwise_affine {
        return Err(Error::value(
            "text_config.layer_norm_elementwise_affine is false; OPT with layer norms that have no scales is not built here",
        ));
    }
    let head_width = config.hidden_size / config.num_attention_heads;
    Ok(Architecture {
        vocabulary: config.vocab_size,
        embedding: config.word_embed_proj_dim,
        hidden: config.hidden_size,
        heads: config.num_attention_heads,
        inner: config.hidden_size,
        intermediate: config.ffn_dim,
        gating: Gating::Plain,
        scale: 1.0 / (head_width as f64).sqrt(),
        norms: if config.do_layer_norm_before { NormPlace::Before } else { NormPlace::After },
        first_position: FIRST_POSITION,
        longest: Some(config.max_position_embeddings),
        start: None,
    })
}

/// The tensors by transformers' names.
pub(super) fn parameters(config: &OptConfig) -> Parameters<Spec> {
    let decoder = "language_model.model.decoder";
    let (hidden, embedding) = (config.hidden_size, config.word_embed_proj_dim);
    let biased = |linear: Linear<Spec>| if config.enable_bias { linear } else { linear.without_bias() };
    let norm = |name: String| Norm::Layer(LayerNorm::spec(&name, hidden, EPSILON));
    let block = |layer: usize| {
        let name = format!("{decoder}.layers.{layer}");
        let qkv = ["q", "k", "v"].map(|part| format!("{name}.self_attn.{part}_proj"));
        Block {
            attention: SelfAttention {
                norm: norm(format!("{name}.self_attn_layer_norm")),
                qkv: biased(Linear::fused(&qkv, hidden, hidden)),
                output: biased(Linear::spec(&format!("{name}.self_attn.out_proj"), hidden, hidden)),
            },
            cross: None,
            mlp_norm: norm(format!("{name}.final_layer_norm")),
            mlp: Mlp::spec(
                &[format!("{name}.fc1")],
                &format!("{name}.fc2"),
                [hidden, config.ffn_dim],
                config.activation_function,
                biased,
            ),
        }
    };
    let projects = embedding != hidden;
    let project = |name: &str, out, inputs| {
        projects.then(|| Linear::spec(&format!("{decoder}.{name}"), out, inputs).without_bias())
    };
    let rows = config.max_position_embeddings + FIRST_POSITION;
    let has_norm = config.do_layer_norm_before && !config.remove_final_layer_norm;
    Parameters {
        words: Spec::embedding(format!("{decoder}.embed_tokens.weight"), config.vocab_size, embedding),
        positions: Some(Spec::table(format!("{decoder}.embed_positions.weight"), &[rows, hidden], hidden)),
        project_in: project("project_in", hidden, embedding),
        encoder: None,
        decoder: Stack {
            blocks: (0..config.num_hidden_layers).map(block).collect(),
            norm: has_norm.then(|| norm(format!("{decoder}.final_layer_norm"))),
        },
        cross_kv: None,
        project_out: project("project_out", embedding, hidden),
        head: (!config.tie_word_embeddings).then(|| {
            Spec::weight([("language_model.lm_head.weight".to_owned(), config.vocab_size)], embedding)
        }),
    }
}
