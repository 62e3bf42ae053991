//! T5: encoder and decoder, with biases of attention by distance, root-mean-square norms and no other biases.

use super::parameters::{Architecture, Block, CrossAttention, NormPlace, Parameters, SelfAttention, Stack};
use crate::config::T5Config;
use crate::error::{Error, Result};
use crate::layers::mlp::Gating;
use crate::layers::{Linear, Mlp, Norm, RmsNorm};
use crate::params::{Part, Spec, TensorSource};

/// One of the two stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Encoder,
    Decoder,
}

/// What the passes follow.
///
/// # Errors
/// Fails, naming the field, if the configuration does not say what the decoder begins with.
pub(super) fn architecture(config: &T5Config) -> Result<Architecture> {
    let start =
        config.decoder_start_token_id.filter(|&token| token < config.vocab_size).ok_or_else(|| {
            Error::value(format!(
                "text_config.decoder_start_token_id is {:?}; it has to be a token of the vocabulary of {}",
                config.decoder_start_token_id, config.vocab_size
            ))
        })?;
    Ok(Architecture {
        vocabulary: config.vocab_size,
        embedding: config.d_model,
        hidden: config.d_model,
        heads: config.num_heads,
        inner: config.num_heads * config.d_kv,
        intermediate: config.d_ff,
        gating: if config.is_gated_act { Gating::Gated } else { Gating::Plain },
        // T5's weights are initialised so that scores need no factor.
        scale: 1.0,
        norms: NormPlace::Before,
        first_position: 0,
        longest: None,
        start: Some(start as u32),
    })
}

/// The tensors by transformers' names; whether there is a head apart from the embeddings is the file's to say.
pub(super) fn parameters(config: &T5Config, has_head: bool) -> Parameters<Spec> {
    let (hidden, inner) = (config.d_model, config.num_heads * config.d_kv);
    let norm = |name: String| RmsNorm::spec(&name, hidden, config.layer_norm_epsilon);
    let linear = |name: String, out, inputs| Linear::spec(&name, out, inputs).without_bias();
    let block = |side: Side, index: usize| {
        let name = format!("{}.block.{index}", side.name());
        let attention = format!("{name}.layer.0");
        let qkv = ["q", "k", "v"].map(|part| format!("{attention}.SelfAttention.{part}"));
        let cross = format!("{name}.layer.1");
        let mlp = format!("{name}.layer.{}", if side == Side::Encoder { 1 } else { 2 });
        let wi = if config.is_gated_act { &["wi_0", "wi_1"][..] } else { &["wi"] };
        let wi: Vec<String> = wi.iter().map(|wi| format!("{mlp}.DenseReluDense.{wi}")).collect();
        Block {
            attention: SelfAttention {
                norm: Norm::RootMeanSquare(norm(format!("{attention}.layer_norm"))),
                qkv: Linear::fused(&qkv, inner, hidden).without_bias(),
                output: linear(format!("{attention}.SelfAttention.o"), hidden, inner),
            },
            cross: (side == Side::Decoder).then(|| CrossAttention {
                norm: Norm::RootMeanSquare(norm(format!("{cross}.layer_norm"))),
                query: linear(format!("{cross}.EncDecAttention.q"), inner, hidden),
                output: linear(format!("{cross}.EncDecAttention.o"), hidden, inner),
            }),
            mlp_norm: Norm::RootMeanSquare(norm(format!("{mlp}.layer_norm"))),
            mlp: Mlp::spec(
                &wi,
                &format!("{mlp}.DenseReluDense.wo"),
                [hidden, config.d_ff],
                config.dense_act_fn,
                Linear::without_bias,
            ),
        }
    };
    let stack = |side: Side, layers: usize, scale| Stack {
        blocks: (0..layers).map(|index| block(side, index)).collect(),
        norm: Some(Norm::RootMeanSquare(RmsNorm {
            scale,
            ..norm(format!("{}.final_layer_norm", side.name()))
        })),
    };
    let cross_kv: Vec<String> = (0..config.num_decoder_layers)
        .flat_map(|index| {
            ["k", "v"]
                .map(|part| format!("language_model.decoder.block.{index}.layer.1.EncDecAttention.{part}"))
        })
        .collect();
    let scale = if config.scale_decoder_outputs { 1.0 / (hidden as f64).sqrt() } else { 1.0 };
    Parameters {
        words: Spec::embedding("language_model.shared.weight".to_owned(), config.vocab_size, hidden),
        positions: None,
        project_in: None,
        encoder: Some(stack(Side::Encoder, config.num_layers, 1.0)),
        decoder: stack(Side::Decoder, config.num_decoder_layers, scale),
        cross_kv: Some(Linear::fused(&cross_kv, inner, hidden).without_bias()),
        project_out: None,
        head: has_head
            .then(|| Spec::weight([("language_model.lm_head.weight".to_owned(), config.vocab_size)], hidden)),
    }
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Encoder => "language_model.encoder",
            Self::Decoder => "language_model.decoder",
        }
    }
}

/// The table of a stack's biases of attention by bucket of distance [buckets, H], which the first block owns.
pub(super) fn bias_part(config: &T5Config, side: Side) -> Part {
    Part {
        name: format!("{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", side.name()),
        shape: vec![config.relative_attention_num_buckets, config.num_heads],
    }
}

/// Distances from a query at which all keys on one side share a bucket.
pub(super) fn reach(config: &T5Config) -> usize {
    config.relative_attention_max_distance
}

/// The bias of each head by distance [H, 2·reach + 1], key position − query position from −reach to reach.
///
/// # Errors
/// Fails as the source does.
pub(super) fn distance_bias(config: &T5Config, side: Side, source: &dyn TensorSource) -> Result<Vec<f32>> {
    let part = bias_part(config, side);
    source.check(&[&part])?;
    let mut table = vec![0.0; part.len()];
    source.read(&part, &mut |first, values| table[first..first + values.len()].copy_from_slice(values))?;
    let (reach, heads) = (reach(config) as isize, config.num_heads);
    let column = |head: usize| {
        let table = &table;
        (-reach..=reach).map(move |distance| table[bucket(config, side, distance) * heads + head])
    };
    Ok((0..heads).flat_map(column).collect())
}

/// Which bucket a distance, key position − query position, falls into: near ones have their own, farther ones share one
/// the more of them the farther they are. An encoder has half of the buckets for keys that come after the query.
fn bucket(config: &T5Config, side: Side, distance: isize) -> usize {
    let all = config.relative_attention_num_buckets;
    let (buckets, first, far) = match side {
        Side::Encoder => (all / 2, if distance > 0 { all / 2 } else { 0 }, distance.unsigned_abs()),
        Side::Decoder => (all, 0, distance.min(0).unsigned_abs()),
    };
    let own = buckets / 2;
    if far < own {
        return first + far;
    }
    // In single precision, as the reference has it.
    let share = (far as f32 / own as f32).ln()
        / ((config.relative_attention_max_distance as f64 / own as f64).ln() as f32);
    let shared = own + (share * (buckets - own) as f32) as usize;
    first + shared.min(buckets - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn firsts(side: Side, sign: isize) -> Vec<isize> {
        let config = crate::config::T5Config::default();
        let of = |distance| bucket(&config, side, sign * distance);
        (1..200).filter(|&distance| of(distance) != of(distance - 1)).collect()
    }

    /// As transformers' function gives them.
    #[test]
    fn distances_open_buckets_where_t5_has_them() {
        let encoder = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
        assert_eq!(firsts(Side::Encoder, -1), encoder);
        assert_eq!(firsts(Side::Encoder, 1), encoder);
        let far = [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113];
        assert_eq!(firsts(Side::Decoder, -1), (1..16).chain(far).collect::<Vec<_>>());
        assert!(firsts(Side::Decoder, 1).is_empty());
        let config = crate::config::T5Config::default();
        assert_eq!(bucket(&config, Side::Encoder, 1), 17);
        assert_eq!(bucket(&config, Side::Encoder, 128), 31);
        assert_eq!(bucket(&config, Side::Decoder, -128), 31);
    }
}
