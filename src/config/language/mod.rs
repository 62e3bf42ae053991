//! The language model of a generating checkpoint (`text_config`): read, checked and written.

mod llama;
mod opt;
mod t5;

pub use llama::LlamaConfig;
pub use opt::OptConfig;
pub use t5::T5Config;

use super::parse::{Parsed, Section};
use super::validate::Checked;
use serde_json::Value;

/// The frozen language model, by the `model_type` of `text_config`; `opt` where the file names none, as in
/// transformers. V, D, H and F are the language model's own. OPT and T5 are built.
#[derive(Clone, Debug, PartialEq)]
pub enum LanguageConfig {
    /// `opt`: decoder-only, with learned positions.
    Opt(OptConfig),
    /// `t5`: encoder and decoder, with relative positions.
    T5(T5Config),
    /// `llama`: decoder-only, with rotary positions; Vicuna is one.
    Llama(LlamaConfig),
}

/// A variant of [`LanguageConfig`].
#[derive(Clone, Copy)]
enum Kind {
    Opt,
    T5,
    Llama,
}

impl LanguageConfig {
    const NAMES: [(&'static str, Kind); 3] = [("opt", Kind::Opt), ("t5", Kind::T5), ("llama", Kind::Llama)];

    /// D: width of a token's hidden state.
    pub fn hidden_size(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.hidden_size,
            Self::T5(t5) => t5.d_model,
            Self::Llama(llama) => llama.hidden_size,
        }
    }

    /// V: rows of the token embeddings.
    pub fn vocab_size(&self) -> usize {
        match self {
            Self::Opt(opt) => opt.vocab_size,
            Self::T5(t5) => t5.vocab_size,
            Self::Llama(llama) => llama.vocab_size,
        }
    }

    /// Tokens that end a text.
    pub fn eos_token_id(&self) -> &[usize] {
        match self {
            Self::Opt(opt) => &opt.eos_token_id,
            Self::T5(t5) => &t5.eos_token_id,
            Self::Llama(llama) => &llama.eos_token_id,
        }
    }

    pub(super) fn parse(section: &Section<'_>) -> Parsed<Self> {
        Ok(match section.named("model_type", "opt", &Self::NAMES)? {
            Kind::Opt => Self::Opt(OptConfig::parse(section)?),
            Kind::T5 => Self::T5(T5Config::parse(section)?),
            Kind::Llama => Self::Llama(LlamaConfig::parse(section)?),
        })
    }

    pub(super) fn check(&self) -> Checked {
        match self {
            Self::Opt(opt) => opt.check(),
            Self::T5(t5) => t5.check(),
            Self::Llama(llama) => llama.check(),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        match self {
            Self::Opt(opt) => opt.to_json(),
            Self::T5(t5) => t5.to_json(),
            Self::Llama(llama) => llama.to_json(),
        }
    }
}
