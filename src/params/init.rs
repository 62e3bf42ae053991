//! A new model's parameters, as BLIP-2 begins its first stage of training with.
//!
//! | parameters | values |
//! |---|---|
//! | query tokens, cross-attention, and what BLIP-2 takes from bert-base-uncased (embeddings, self-attention, text feed-forward, language-modelling head) | N(0, `initializer_range`), biases 0 |
//! | feed-forward of the queries | the same layer's feed-forward of the text, element by element |
//! | projections, matching head | uniform within ±1/√D, biases too: `nn.Linear`'s default |
//! | image encoder and language model, for which BLIP-2 takes trained weights | N(0, 0.02), biases 0 |
//! | layer norms | 1, biases 0 |
//! | temperature | 0.07 |
//! | scale and bias of matching by cosines | 10, −5 |
//!
//! Every value is a function of the seed, the tensor's name and the place within it alone, so neither
//! the order of the tensors nor the number of threads changes it.

use rayon::prelude::*;

use super::safetensors::{Dtype, NewTensor};
use super::{Part, Spec, Tree};
use crate::config::Config;

/// What matching by cosines begins with: a pair of cosine 0 is told a match with 0.7 %, one of 1 with 99.3 %.
/// Both move by the learning rate a step at most, so they begin where they can stay.
const SIMILARITY_SCALE: f32 = 10.0;
const SIMILARITY_BIAS: f32 = -5.0;
/// LAVIS's temperature to begin with.
const TEMPERATURE: f32 = 0.07;
/// Standard deviation of the image encoder's weights.
const VISION_STANDARD_DEVIATION: f64 = 0.02;

/// Values made by one thread at a time: an even number, as normal values are made in pairs.
const CHUNK: usize = 1 << 12;

/// The tensors that `specs` name of a new model of this configuration, made as they are written.
pub fn tensors(specs: &impl Tree<Spec>, config: &Config, seed: u64) -> Vec<NewTensor<'static>> {
    let mut parts = Vec::new();
    specs.map(&mut |spec| parts.extend(spec.parts.iter().cloned()));
    tensors_of(parts, config, seed, Dtype::F32)
}

/// The same of these `parts`, rounded to `dtype`.
pub fn tensors_of(parts: Vec<Part>, config: &Config, seed: u64, dtype: Dtype) -> Vec<NewTensor<'static>> {
    parts
        .into_iter()
        .map(|Part { name, shape }| {
            let config = config.clone();
            NewTensor::new(name.clone(), dtype, &shape, move |first, values| {
                fill(&name, &config, seed, first, values);
                Ok(())
            })
        })
        .collect()
}

/// Fills `values`, the elements from index `first` on, an even number, of the tensor `name`.
pub(super) fn fill(name: &str, config: &Config, seed: u64, first: usize, values: &mut [f32]) {
    Distribution::of(name, config).fill(key(seed, &model_of(name)), first, values);
}

/// The name of the tensor that the one of this name begins equal to: the queries' feed-forward takes the
/// text's values.
pub(super) fn model_of(name: &str) -> String {
    name.replace("_query.", ".")
}

/// How a tensor's values are distributed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Distribution {
    Constant(f32),
    /// Of mean 0.
    Normal {
        standard_deviation: f64,
    },
    /// Between -`bound` and `bound`.
    Uniform {
        bound: f64,
    },
}

impl Distribution {
    /// That of the tensor `name`.
    fn of(name: &str, config: &Config) -> Self {
        let is_head = ["vision_projection.", "text_projection.", "itm_head."];
        let is_norm = ["norm.weight", "norm1.weight", "norm2.weight", "LayerNorm.weight"];
        if name == "temp" {
            Self::Constant(TEMPERATURE)
        } else if name == "itm_scale" {
            Self::Constant(SIMILARITY_SCALE)
        } else if name == "itm_bias" {
            Self::Constant(SIMILARITY_BIAS)
        } else if is_head.iter().any(|prefix| name.starts_with(prefix)) {
            Self::Uniform { bound: 1.0 / (config.qformer.hidden_size as f64).sqrt() }
        } else if is_norm.iter().any(|suffix| name.ends_with(suffix)) {
            Self::Constant(1.0)
        } else if name.ends_with(".bias") {
            Self::Constant(0.0)
        } else if name.starts_with("vision_model.") {
            Self::Normal { standard_deviation: VISION_STANDARD_DEVIATION }
        } else {
            Self::Normal { standard_deviation: config.qformer.initializer_range }
        }
    }

    /// Fills `values`, the elements from index `first` on, an even number, of the tensor of this key.
    fn fill(self, key: u64, first: usize, values: &mut [f32]) {
        debug_assert!(first.is_multiple_of(2));
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
            let first = (first + chunk * CHUNK) as u64;
            match self {
                Self::Constant(value) => values.fill(value),
                Self::Uniform { bound } => values.iter_mut().zip(first..).for_each(|(value, index)| {
                    *value = (bound * (2.0 * uniform(key, index) - 1.0)) as f32;
                }),
                Self::Normal { standard_deviation } => {
                    for (pair, index) in values.chunks_mut(2).zip((first..).step_by(2)) {
                        let normal = normal_pair(uniform(key, index), uniform(key, index + 1));
                        for (value, normal) in pair.iter_mut().zip(normal) {
                            *value = (standard_deviation * normal) as f32;
                        }
                    }
                }
            }
        });
    }
}

/// Two independent normal values from two uniform ones, by Box and Muller.
fn normal_pair(u: f64, v: f64) -> [f64; 2] {
    let radius = (-2.0 * libm::log(u)).sqrt();
    let (sine, cosine) = libm::sincos(std::f64::consts::TAU * v);
    [radius * cosine, radius * sine]
}

/// A uniform value in (0, 1): the `index`-th of the stream `key`.
pub fn uniform(key: u64, index: u64) -> f64 {
    let bits = mix(key.wrapping_add(index.wrapping_mul(GOLDEN_GAMMA)));
    ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// The stream of the tensor `name`.
pub fn key(seed: u64, name: &str) -> u64 {
    name.bytes().fold(mix(seed), |key, byte| mix(key ^ u64::from(byte)))
}

/// The step between a SplitMix64 generator's states: 2^64 divided by the golden ratio, made odd.
const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's output function of a state.
fn mix(state: u64) -> u64 {
    let state = state.wrapping_add(GOLDEN_GAMMA);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(distribution: Distribution, count: usize) -> Vec<f32> {
        let mut values = vec![0.0; count];
        distribution.fill(key(1, "a tensor"), 0, &mut values);
        values
    }

    /// Mean, standard deviation, and mean fourth power over the squared variance.
    fn moments(values: &[f32]) -> [f64; 3] {
        let mean =
            |power: i32| values.iter().map(|&x| f64::from(x).powi(power)).sum::<f64>() / values.len() as f64;
        [mean(1), mean(2).sqrt(), mean(4) / mean(2).powi(2)]
    }

    #[test]
    fn normal_values_have_the_moments_of_a_normal_distribution() {
        let [mean, deviation, kurtosis] =
            moments(&values(Distribution::Normal { standard_deviation: 0.02 }, 1_000_000));
        // Five standard errors of a million values.
        assert!(mean.abs() < 1e-4 && (deviation / 0.02 - 1.0).abs() < 0.004, "{mean} {deviation}");
        assert!((kurtosis - 3.0).abs() < 0.03, "{kurtosis}");
    }

    #[test]
    fn uniform_values_have_the_moments_of_a_uniform_distribution() {
        let [mean, deviation, kurtosis] = moments(&values(Distribution::Uniform { bound: 3.0 }, 1_000_000));
        assert!(mean.abs() < 0.01 && (deviation - 3.0_f64.sqrt()).abs() < 0.005, "{mean} {deviation}");
        assert!((kurtosis - 1.8).abs() < 0.01, "{kurtosis}");
    }

    #[test]
    fn values_do_not_depend_on_where_blocks_begin() {
        let normal = Distribution::Normal { standard_deviation: 1.0 };
        let whole = values(normal, 3 * CHUNK + 1);
        let mut blocks = vec![0.0; whole.len()];
        let (front, back) = blocks.split_at_mut(1000);
        normal.fill(key(1, "a tensor"), 0, front);
        normal.fill(key(1, "a tensor"), 1000, back);
        assert_eq!(whole, blocks);
    }

    #[test]
    fn seeds_and_names_give_unlike_streams() {
        let streams = [key(1, "ab"), key(2, "ab"), key(1, "ba"), key(1, "a")];
        for (index, stream) in streams.iter().enumerate() {
            assert!(!streams[..index].contains(stream));
        }
    }
}
