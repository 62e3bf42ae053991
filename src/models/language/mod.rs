//! Frozen language models that soft prompts speak to: OPT and T5.
//!
//! A family is the names of its tensors and what its passes follow (`opt`, `t5`); embeddings, blocks, head, cache and
//! candidates are written once for all. The queries of the Q-Former are projected to the width of token embeddings and
//! stand before the prompt's tokens: at the beginning of the one sequence of a decoder-only model, or of what an
//! encoder reads.

mod candidates;
mod decoder;
mod decoder_pass;
mod embed;
mod encoder_pass;
mod opt;
mod parameters;
mod prompt;
mod stack;
mod t5;

pub use decoder::LanguageDecoder;
pub use prompt::Prompt;

use crate::config::{Config, LanguageConfig};
use crate::device::{S, W};
use crate::error::{Error, Result};
use crate::layers::Linear;
use crate::memory::{Arena, Workspace};
use crate::ops::Backend;
use crate::ops::attention::check_heads;
use crate::params::{
    NamedCheckpoint, Part, Slot, Spec, TensorSource, Tree, Weights, part_names, reject_surplus,
};
use crate::tensor::{NumberType, Shape};
use parameters::{Architecture, Parameters};
use std::collections::BTreeSet;
use t5::Side;

/// Beginning of the names of a language model's tensors.
pub const PREFIX: &str = "language_model.";

/// A frozen language model with the projection of queries to its soft prompts, for inference.
pub struct LanguageModel<B: Backend> {
    device: B,
    architecture: Architecture,
    weights: Weights<B, Parameters<Slot>>,
    /// Weight [E, Dq]
    projection: Weights<B, Linear<Slot>>,
    /// Of the encoder and the decoder; none in models without.
    biases: Vec<DistanceBiases<B>>,
    /// [Q, Dq]: queries of an image, and their width.
    queries: [usize; 2],
    workspace: Workspace<B>,
    /// Keys and values of sequences that grow.
    cache: Workspace<B>,
}

/// Biases of attention by distance.
struct DistanceBiases<B: Backend> {
    /// [H, 2·reach + 1]
    table: Arena<B>,
    shape: Shape,
}

/// Whether a checkpoint holds a language model's tensors.
pub fn is_in(checkpoint: &NamedCheckpoint<'_>) -> bool {
    checkpoint.names().any(|name| name.starts_with(PREFIX))
}

/// A family's tensors and settings.
struct Family {
    architecture: Architecture,
    parameters: Parameters<Spec>,
    /// Second copies of parameters, which files may hold.
    copies: &'static [&'static str],
    /// Tensors that are read apart.
    apart: BTreeSet<String>,
}

impl Family {
    fn of(config: &LanguageConfig, head: Head) -> Result<Self> {
        match config {
            LanguageConfig::Opt(config) => Ok(Self {
                architecture: opt::architecture(config)?,
                parameters: opt::parameters(config),
                copies: &["language_model.lm_head.weight"],
                apart: BTreeSet::new(),
            }),
            LanguageConfig::T5(config) => {
                let of_side = |side| t5::bias_part(config, side).name;
                Ok(Self {
                    architecture: t5::architecture(config)?,
                    parameters: t5::parameters(config, head == Head::Apart),
                    copies: &[
                        "language_model.encoder.embed_tokens.weight",
                        "language_model.decoder.embed_tokens.weight",
                    ],
                    apart: [Side::Encoder, Side::Decoder].map(of_side).into(),
                })
            }
            LanguageConfig::Llama(_) => Err(Error::value(
                "text_config.model_type is \"llama\"; language models of the kinds opt and t5 are built here",
            )),
        }
    }
}

/// Whether a T5 has a head apart from its token embeddings, which its tensors tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// It has, as Flan-T5.
    Apart,
    /// The head is the token embeddings.
    Tied,
}

impl Head {
    /// That of a checkpoint.
    pub fn of(checkpoint: &NamedCheckpoint<'_>) -> Self {
        if checkpoint.contains("language_model.lm_head.weight") { Self::Apart } else { Self::Tied }
    }
}

/// The tensors of a language model and of the projection to it, by transformers' names.
///
/// # Errors
/// Fails, naming the field, if the configuration is not of a model that is built here.
pub fn parts(config: &Config, head: Head) -> Result<Vec<Part>> {
    let language = required(config)?;
    let family = Family::of(language, head)?;
    let mut parts = Vec::new();
    let mut take = |spec: &Spec| parts.extend(spec.parts.iter().cloned());
    family.parameters.map(&mut take);
    projection_spec(config, family.architecture.embedding).map(&mut take);
    if let LanguageConfig::T5(config) = language {
        parts.extend([Side::Encoder, Side::Decoder].map(|side| t5::bias_part(config, side)));
    }
    Ok(parts)
}

fn projection_spec(config: &Config, embedding: usize) -> Linear<Spec> {
    Linear::spec("language_projection", embedding, config.qformer.hidden_size)
}

fn required(config: &Config) -> Result<&LanguageConfig> {
    config.language.as_ref().ok_or_else(|| {
        Error::value("the checkpoint has no language model (text_config in config.json), so it generates no text with one")
    })
}

impl<B: Backend> LanguageModel<B> {
    /// Reads a language model, its matrices as numbers of type `dtype` where the device multiplies by them, from
    /// `language`, and the projection to it from `checkpoint`, which is the same where all is in one.
    ///
    /// # Errors
    /// Fails, naming every tensor that is missing, surplus or of the wrong shape, or the field of the configuration that
    /// is not built here, if the heads of attention are too wide for the device, and if there is not enough memory.
    pub fn from_checkpoint(
        device: B,
        config: &Config,
        [checkpoint, language]: [&NamedCheckpoint<'_>; 2],
        dtype: NumberType,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let head = Head::of(language);
        let Family { parameters, copies, apart, .. } = Family::of(required(config)?, head)?;
        reject_surplus(language, &part_names(&parameters), |name| {
            !name.starts_with(PREFIX) || copies.contains(&name) || apart.contains(name)
        })?;
        Self::from_source(device, config, head, [checkpoint, language], dtype, progress)
    }

    /// The same with parameters from anywhere: those of the projection, and those of the language model.
    ///
    /// # Errors
    /// Fails as [`Config::validate`] and the sources do, if the configuration is of a model that is not built here, if the
    /// heads of attention are too wide for the device, and if there is not enough memory.
    pub fn from_source(
        device: B,
        config: &Config,
        head: Head,
        [checkpoint, language]: [&dyn TensorSource; 2],
        dtype: NumberType,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        config.validate()?;
        let family = required(config)?;
        let Family { architecture, parameters, .. } = Family::of(family, head)?;
        check_heads::<B>("the language model", architecture.inner / architecture.heads)?;
        let specs = projection_spec(config, architecture.embedding);
        let projection = Weights::load(&device, &specs, checkpoint, &mut |_, _| ())?;
        let biases = match family {
            LanguageConfig::T5(t5) => {
                let table = |side| {
                    let values = t5::distance_bias(t5, side, language)?;
                    let shape = Shape::new(t5.num_heads, 2 * t5::reach(t5) + 1);
                    let mut table = Arena::planned(&device, "the biases by distance", |cursor| {
                        cursor.take::<B::Stat>(shape.rows, shape.cols);
                    })?;
                    device.write(&values, 0, table.cursor().take::<B::Stat>(shape.rows, shape.cols))?;
                    Ok(DistanceBiases { table, shape })
                };
                [Side::Encoder, Side::Decoder].into_iter().map(table).collect::<Result<_>>()?
            }
            _ => Vec::new(),
        };
        let weights = Weights::load_as(&device, &parameters, language, dtype, progress)?;
        let queries = [config.num_query_tokens, config.qformer.hidden_size];
        let (workspace, cache) = (Workspace::default(), Workspace::default());
        Ok(Self { device, architecture, weights, projection, biases, queries, workspace, cache })
    }

    /// V: tokens that the model knows; a tokenizer may know fewer.
    pub fn vocabulary(&self) -> usize {
        self.architecture.vocabulary
    }

    /// Whether prompts are read by an encoder of their own.
    pub fn has_encoder(&self) -> bool {
        self.architecture.start.is_some()
    }

    /// Bytes that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Bytes of weights that are read for a token of any number of sequences: those of the decoder and of the head.
    pub fn token_bytes(&self) -> usize {
        let parameters = self.weights.view();
        let mut bytes = 0;
        let mut count = |weight: &W<'_, B>| bytes += weight.shape().len() * weight.dtype().bytes();
        parameters.decoder.map(&mut count);
        parameters.project_in.iter().chain(&parameters.project_out).for_each(|linear| {
            linear.map(&mut count);
        });
        count(&parameters.head.unwrap_or(parameters.words));
        bytes
    }

    /// Tensors with values that are infinite or not a number, and how many.
    pub fn not_finite(&self) -> Vec<(String, usize)> {
        [&self.weights.not_finite[..], &self.projection.not_finite].concat()
    }

    /// The table of biases [H, 2·reach + 1] of the encoder or the decoder, in models that have them.
    fn bias(&self, side: Side) -> Option<S<'_, B>> {
        let DistanceBiases { table, shape } = self.biases.get(side as usize)?;
        Some(table.first(shape.rows, shape.cols))
    }

    /// Widths of the Q-Former, the embeddings and the blocks.
    fn embed_widths(&self) -> [usize; 3] {
        [self.queries[1], self.architecture.embedding, self.architecture.hidden]
    }
}
