//! The language model of a checkpoint: where its files are, and how its weights are kept.

use crate::config::{Config, LanguageConfig};
use crate::error::{Error, Result};
use crate::generate::{Decoding, Lengths, Search, stop_tokens};
use crate::models::language::{self, PREFIX};
use crate::params::NamedCheckpoint;
use crate::params::safetensors::{Checkpoint, Dtype};
use crate::tensor::NumberType;
use crate::tokenizer::LanguageTokenizer;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::OnceLock;

/// The type that a language model's matrices are kept in; on a GPU it is bf16 whatever is said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightType {
    /// That of the file; if that is f32 and there is no room for it, bf16.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, 11 of them the fraction's.
    F16,
    /// 16 bits, 8 of them the fraction's, with the range of 32.
    Bf16,
}

impl WeightType {
    const NAMES: [(&'static str, Self); 4] =
        [("auto", Self::Auto), ("f32", Self::F32), ("f16", Self::F16), ("bf16", Self::Bf16)];
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, _) = Self::NAMES.iter().find(|(_, named)| named == self).expect("every type is listed");
        f.write_str(name)
    }
}

impl FromStr for WeightType {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let known = Self::NAMES.iter().find(|(known, _)| *known == name);
        known.map(|(_, named)| *named).ok_or_else(|| {
            Error::usage(format!("{name:?} is no type of weights; the types are auto, f32, f16 and bf16"))
        })
    }
}

/// The files of a language model, which are the checkpoint's own or those of a folder of its own.
pub(super) struct LanguageFolder {
    path: PathBuf,
    /// The weights, where they are apart.
    apart: Option<Checkpoint>,
    tokenizer: OnceLock<LanguageTokenizer>,
}

impl LanguageFolder {
    /// Within the folder `path` of a checkpoint.
    pub(super) fn within(path: &Path) -> Self {
        Self { path: path.to_owned(), apart: None, tokenizer: OnceLock::new() }
    }

    /// In the folder `path`, as transformers saves a language model alone; and its configuration.
    pub(super) fn apart(path: &Path) -> Result<(Self, LanguageConfig)> {
        let config = Config::load_language(path)?;
        let apart = Some(Checkpoint::open(path)?);
        Ok((Self { path: path.to_owned(), apart, tokenizer: OnceLock::new() }, config))
    }

    /// The tensors, by the crate's names; none where there is no language model.
    pub(super) fn checkpoint<'a>(&'a self, own: &'a Checkpoint) -> Result<Option<NamedCheckpoint<'a>>> {
        let named = match &self.apart {
            Some(apart) => NamedCheckpoint::under(PREFIX, apart)?,
            None => NamedCheckpoint::new(own)?,
        };
        Ok(language::is_in(&named).then_some(named))
    }

    /// The type that matrices are kept in, and whether they are rounded for want of room.
    pub(super) fn weight_type(&self, own: &Checkpoint, wanted: WeightType) -> (NumberType, bool) {
        let checkpoint = self.apart.as_ref().unwrap_or(own);
        let tensors = || {
            let names = checkpoint.names().filter(|name| self.apart.is_some() || name.starts_with(PREFIX));
            names.filter_map(|name| checkpoint.get(name))
        };
        match wanted {
            WeightType::F32 => (NumberType::F32, false),
            WeightType::F16 => (NumberType::F16, false),
            WeightType::Bf16 => (NumberType::Bf16, false),
            WeightType::Auto => match tensors().max_by_key(|info| info.elements()).map(|info| info.dtype) {
                Some(Dtype::F16) => (NumberType::F16, false),
                Some(Dtype::BF16) => (NumberType::Bf16, false),
                _ => {
                    let bytes: u64 = tensors().map(|info| 4 * info.elements() as u64).sum();
                    // A tenth is left to what is computed.
                    let fits = available_memory().is_none_or(|room| bytes <= room / 10 * 9);
                    if fits { (NumberType::F32, false) } else { (NumberType::Bf16, true) }
                }
            },
        }
    }

    pub(super) fn tokenizer(&self, config: &Config) -> Result<&LanguageTokenizer> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = LanguageTokenizer::load(&self.path)?;
        let rows = config.language.as_ref().map_or(0, LanguageConfig::vocab_size);
        tokenizer.check_vocabulary(rows)?;
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    /// The tokens that end a text.
    pub(super) fn stops(&self, config: &LanguageConfig) -> Result<Vec<u32>> {
        let stops = stop_tokens(&self.path, config.eos_token_id())?;
        let known = |&stop: &usize| stop < config.vocab_size();
        if stops.is_empty() || !stops.iter().all(known) {
            let what = format!(
                "eos_token_id is {stops:?}; it has to name tokens of the language model's vocabulary of {}",
                config.vocab_size()
            );
            return Err(Error::input(&self.path, what));
        }
        Ok(stops.into_iter().map(|stop| stop as u32).collect())
    }

    /// How texts are generated where the checkpoint says nothing: `beams` sequences are followed, to `most` tokens.
    pub(super) fn decoding(
        &self,
        config: &LanguageConfig,
        [beams, most]: [usize; 2],
        length_penalty: f64,
    ) -> Result<Decoding> {
        let lengths = match config {
            LanguageConfig::T5(_) => Lengths::WithStart,
            LanguageConfig::Opt(_) | LanguageConfig::Llama(_) => Lengths::WithPrompt,
        };
        let search = Search::beams(beams, length_penalty);
        let default = Decoding { search, max_new_tokens: most, min_new_tokens: 0, ..Decoding::default() };
        Decoding::load(&self.path, default, lengths, usize::MAX)
    }
}

/// Bytes that the system could still give, where it tells.
fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}
