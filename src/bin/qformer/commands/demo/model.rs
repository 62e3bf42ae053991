//! The demo's model: sizes, tokenizer, and parameters to begin with.

use super::world;
use qformer::config::{self, Config, VisionConfig, VitConfig};
use qformer::generate::Decoding;
use qformer::models::vision::encoder;
use qformer::output::write_json;
use qformer::params::init::{self, key, uniform};
use qformer::params::safetensors::{self, Dtype, NewTensor};
use qformer::params::{Part, Tree};
use qformer::train::Stage1Parameters;
use qformer::{Error, ImageProcessor, Matching, Result, Tokenizer};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Side of the pictures, in pixels.
pub(super) const SIDE: usize = 96;
/// Heads of the Q-Former.
const HEADS: usize = 6;
/// D
const HIDDEN: usize = 96;
/// W
const IMAGE_WIDTH: usize = 192;
/// Longest caption, in tokens.
pub(super) const LONGEST: usize = 20;
/// The tokens before the words.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
/// Standard deviation of the position embeddings, beside patches whose embeddings have about 1.
const POSITION_DEVIATION: f64 = 0.5;

/// A Q-Former of half a million parameters over an image encoder of one layer.
pub(super) fn config() -> Config {
    let mut config = Config::tiny();
    config.num_query_tokens = 8;
    config.image_text_hidden_size = 64;
    config.vision = VisionConfig::Eva(vision());
    let qformer = &mut config.qformer;
    qformer.vocab_size = SPECIAL.len() + world::words().len() + 1;
    (qformer.hidden_size, qformer.intermediate_size) = (HIDDEN, 2 * HIDDEN);
    (qformer.num_hidden_layers, qformer.num_attention_heads) = (3, HEADS);
    qformer.cross_attention_frequency = 1;
    qformer.encoder_hidden_size = IMAGE_WIDTH;
    qformer.max_position_embeddings = LONGEST;
    // BERT's 0.02 is for rows four times as wide as long training can make something of: here every output
    // begins with about the deviation of its inputs.
    qformer.initializer_range = 1.0 / (HIDDEN as f64).sqrt();
    config
}

/// The image encoder's sizes.
fn vision() -> VitConfig {
    VitConfig {
        hidden_size: IMAGE_WIDTH,
        intermediate_size: 2 * IMAGE_WIDTH,
        num_hidden_layers: 1,
        num_attention_heads: 4,
        image_size: SIDE,
        patch_size: 16,
        ..VitConfig::default()
    }
}

/// Writes the model to begin with to `folder`, as any checkpoint.
pub(super) fn write(folder: &Path, seed: u64) -> Result<()> {
    let config = config();
    std::fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
    write_json(&folder.join(config::FILE_NAME), &config.to_json())?;
    let tokens: Vec<&str> = SPECIAL.into_iter().chain(world::words()).collect();
    Tokenizer::write(folder, &tokens)?;
    let mut processor = ImageProcessor::blip2(SIDE).to_json();
    // The ground's shade is 0: what stands out is what is drawn.
    processor["image_mean"] = json!([0.9, 0.9, 0.9]);
    write_json(&folder.join("preprocessor_config.json"), &processor)?;
    // The shortest caption has 7 tokens; made longer, as by LAVIS's least of 9, it would be wrong.
    let decoding = Decoding { min_new_tokens: 1, ..Decoding::default().within(LONGEST - 1) };
    write_json(&folder.join(Decoding::FILE_NAME), &decoding.to_json())?;
    let mut tensors = init::tensors(&Stage1Parameters::spec(&config, Matching::Classifier), &config, seed);
    tensors.extend(image_encoder(seed));
    safetensors::write(&folder.join(safetensors::FILE_NAME), &BTreeMap::new(), tensors)
}

/// An image encoder that was never trained: random, but so that outputs have about the deviation of inputs,
/// which keeps what patches look like and where they are.
fn image_encoder(seed: u64) -> Vec<NewTensor<'static>> {
    let mut parts: Vec<Part> = Vec::new();
    encoder::Parameters::spec(&vision()).map(&mut |spec| parts.extend(spec.parts.iter().cloned()));
    parts
        .into_iter()
        .map(|Part { name, shape }| {
            let key = key(seed, &name);
            let is_norm = name.contains("layer_norm") && name.ends_with("weight");
            let deviation = if name.ends_with("position_embedding") {
                POSITION_DEVIATION
            } else if name.ends_with("bias") {
                0.0
            } else {
                1.0 / (shape[1..].iter().product::<usize>() as f64).sqrt()
            };
            // Uniform values of this bound have the deviation.
            let bound = 3.0_f64.sqrt() * deviation;
            NewTensor::new(name, Dtype::F32, &shape, move |first, values| {
                for (value, index) in values.iter_mut().zip(first as u64..) {
                    *value = if is_norm { 1.0 } else { (bound * (2.0 * uniform(key, index) - 1.0)) as f32 };
                }
                Ok(())
            })
        })
        .collect()
}
