//! `qformer init`: a new model.

use crate::Remarks;
use crate::outputs::check_folder_name;
use clap::{Args, ValueEnum};
use qformer::config::LanguageConfig;
use qformer::models::language::{self, Head};
use qformer::models::qformer::{Abilities, Parameters};
use qformer::models::vision::encoder;
use qformer::models::vision::image::ImageProcessor;
use qformer::output::write_json;
use qformer::params::safetensors::{self, Dtype};
use qformer::params::{Part, Spec, Tree, init};
use qformer::tokenizer::LanguageTokenizer;
use qformer::train::Companions;
use qformer::{Config, Error, Result, Tokenizer, config, tokenizer};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The key of config.json by which a folder is known to be this command's work.
const ORIGIN: &str = "qformer_init";

/// Write a randomly initialised checkpoint
///
/// The Q-Former begins as BLIP-2's does, but for what BLIP-2 takes from bert-base-uncased: that is
/// normally distributed as BERT begins. The image encoder, which BLIP-2 takes as trained, is N(0, 0.02)
/// with biases 0, and so is a language model. transformers opens the folder as Blip2ForImageTextRetrieval, with a language
/// model as Blip2ForConditionalGeneration.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Sizes of the model
    #[arg(long, value_enum)]
    preset: Preset,
    /// Folder to write; it has to be empty or an earlier result of this command
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Seed of the random numbers: the same seed gives the same bytes
    #[arg(long, value_name = "N", default_value_t = 42)]
    seed: u64,
    /// Folder with a tokenizer to copy
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Preset {
    /// BLIP-2 with EVA ViT-g at 224 pixels, 1.17 billion parameters, 4.7 GB
    #[value(name = "blip2-vit-g")]
    Blip2VitG,
    /// The same structure with less than a million parameters and a vocabulary of its own, for trials
    Tiny,
    /// BLIP-2 with EVA ViT-g and OPT-2.7B, 3.7 billion parameters in f16, 7.5 GB
    #[value(name = "blip2-opt-2.7b")]
    Blip2Opt27B,
    /// BLIP-2 with EVA ViT-g and Flan-T5-XL, 3.9 billion parameters in bf16, 7.9 GB
    #[value(name = "blip2-flan-t5-xl")]
    Blip2FlanT5Xl,
    /// The structure of blip2-opt-2.7b with less than a million parameters, for trials
    TinyOpt,
    /// The structure of blip2-flan-t5-xl with less than a million parameters, for trials
    TinyT5,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    let directory = &arguments.output;
    check_folder_name(directory)?;
    let (mut config, name) = match arguments.preset {
        Preset::Blip2VitG => (Config::blip2_vit_g(), "blip2-vit-g"),
        Preset::Tiny => (Config::tiny(), "tiny"),
        Preset::Blip2Opt27B => (Config::blip2_opt_2_7b(), "blip2-opt-2.7b"),
        Preset::Blip2FlanT5Xl => (Config::blip2_flan_t5_xl(), "blip2-flan-t5-xl"),
        Preset::TinyOpt => (Config::tiny_opt(), "tiny-opt"),
        Preset::TinyT5 => (Config::tiny_t5(), "tiny-t5"),
    };
    match (&arguments.tokenizer, &config.language) {
        (None, None) => {}
        // The tokenizer that is written knows bytes only.
        (None, Some(LanguageConfig::T5(_))) => {
            config.image_token_index = Some(LanguageTokenizer::TINY_T5_IMAGE as usize);
        }
        (None, Some(_)) => config.image_token_index = Some(LanguageTokenizer::TINY_OPT_IMAGE as usize),
        (Some(source), None) => Tokenizer::load(source)?.check_vocabulary(config.qformer.vocab_size)?,
        (Some(source), Some(language)) => {
            let tokenizer = LanguageTokenizer::load(source)?;
            tokenizer.check_vocabulary(language.vocab_size())?;
            config.image_token_index = tokenizer.image_token().map(|token| token as usize);
        }
    }
    claim(directory)?;
    for file in tokenizer::FILE_NAMES {
        remove_if_there(&directory.join(file))?;
    }

    // The configuration comes first: it marks the folder as this command's.
    let mut json = config.to_json();
    json[ORIGIN] = json!({ "preset": name, "seed": arguments.seed });
    write_json(&directory.join(config::FILE_NAME), &json)?;
    let processor = ImageProcessor::blip2(config.vision.encoder()?.image_size);
    Companions::gather(&config, Some(&processor), arguments.tokenizer.as_deref(), None)?.write(directory)?;
    match (&arguments.tokenizer, arguments.preset) {
        (Some(_), _) => {}
        (None, Preset::Tiny) => Tokenizer::write_tiny(directory)?,
        (None, Preset::Blip2VitG) => remarks.note(
            "to read texts, the model needs the tokenizer of bert-base-uncased: \
             copy its tokenizer.json or vocab.txt to the folder, or give --tokenizer",
        ),
        (None, Preset::TinyOpt) => LanguageTokenizer::write_tiny_opt(directory)?,
        (None, Preset::TinyT5) => LanguageTokenizer::write_tiny_t5(directory)?,
        (None, Preset::Blip2Opt27B | Preset::Blip2FlanT5Xl) => {
            match arguments.preset {
                Preset::Blip2Opt27B => LanguageTokenizer::write_tiny_opt(directory)?,
                _ => LanguageTokenizer::write_tiny_t5(directory)?,
            }
            remarks.note(
                "the tokenizer knows bytes only; to have the language model's own, give --tokenizer with its folder",
            );
        }
    }
    let tensors = init::tensors_of(parts(&config)?, &config, arguments.seed, arguments.preset.dtype());
    safetensors::write(&directory.join(safetensors::FILE_NAME), &BTreeMap::new(), tensors)
}

/// The tensors of a model.
fn parts(config: &Config) -> Result<Vec<Part>> {
    let reads_text = config.is_retrieval();
    let abilities = Abilities { text: reads_text, retrieval: reads_text };
    let mut parts = Vec::new();
    let mut take = |spec: &Spec| parts.extend(spec.parts.iter().cloned());
    Parameters::spec(config, abilities).map(&mut take);
    encoder::Parameters::spec(config.vision.encoder()?).map(&mut take);
    if config.language.is_some() {
        parts.extend(language::parts(config, Head::Apart)?);
    }
    Ok(parts)
}

impl Preset {
    /// What the tensors are rounded to.
    fn dtype(self) -> Dtype {
        match self {
            Self::Blip2Opt27B => Dtype::F16,
            Self::Blip2FlanT5Xl => Dtype::BF16,
            Self::Blip2VitG | Self::Tiny | Self::TinyOpt | Self::TinyT5 => Dtype::F32,
        }
    }
}

/// Makes the folder, or makes sure that it holds nothing but an earlier result.
fn claim(directory: &Path) -> Result<()> {
    fs::create_dir_all(directory).map_err(|error| Error::io(directory, "create", error))?;
    let mut entries = directory.read_dir().map_err(|error| Error::io(directory, "list", error))?;
    if entries.next().is_none() || is_own(&directory.join(config::FILE_NAME)) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{} is not empty and was not written by qformer init; give another --output, or empty it first",
        directory.display()
    )))
}

/// Whether the configuration at `path` was written by this command.
fn is_own(path: &Path) -> bool {
    let json = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    json.is_some_and(|json| json.get(ORIGIN).is_some())
}

fn remove_if_there(path: &Path) -> Result<()> {
    match path.exists() {
        true => fs::remove_file(path).map_err(|error| Error::io(path, "remove", error)),
        false => Ok(()),
    }
}
