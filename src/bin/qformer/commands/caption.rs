//! `qformer caption`: what a language model, or the Q-Former itself, says that an image shows.

use crate::Remarks;
use crate::decoding::DecodingArguments;
use crate::inputs::images::{ImageArguments, Images};
use crate::inputs::language::LanguageArguments;
use crate::inputs::{BatchArguments, ModelArguments, load};
use crate::outputs::check_file_name;
use clap::{ArgGroup, Args, ValueEnum};
use qformer::output::{self, printable};
use qformer::{Error, GeneratedText, Result, TextTask};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Caption images
///
/// By the checkpoint's language model (OPT or Flan-T5), which the Q-Former's queries prompt, if there is one; else by the
/// Q-Former's own language-modelling head, which LAVIS's stage-1 .pth files and the checkpoints of qformer train have. How
/// captions are found, where it is not said here, is as the generation_config.json says, and else as in LAVIS: by a language
/// model with 5 beams and at most 30 tokens, by the Q-Former with 3 beams and 9 to 29. Without --output or --json a line an
/// image is printed: its name, a tab, and the caption; with several captions, a line each.
#[derive(Args)]
#[command(group = ArgGroup::new("image").required(true).args(["images", "image_dir", "features"]))]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    batch: BatchArguments,
    #[command(flatten)]
    images: ImageArguments,
    #[command(flatten)]
    language: LanguageArguments,
    /// What captions go on from, such as "a photo of"; for a language model
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    prompt: String,
    /// What captions, where the checkpoint has both
    #[arg(long, value_enum, value_name = "HEAD")]
    head: Option<Head>,
    #[command(flatten)]
    decoding: DecodingArguments,
    /// Captions of each image
    #[arg(long, alias = "num-return-sequences", value_name = "N")]
    num_captions: Option<usize>,
    /// File to write, in JSON
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What captions.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Head {
    /// The language model
    LanguageModel,
    /// The Q-Former's own language-modelling head
    Qformer,
}

/// An image's captions.
struct Captioned {
    image: String,
    captions: Vec<GeneratedText>,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    if let Some(path) = &arguments.output {
        check_file_name(path, "json")?;
        output::check_writable(path)?;
    }
    let captioned = arguments.caption(remarks)?;
    let as_json = || Value::from(captioned.iter().map(Captioned::json).collect::<Vec<_>>());
    match &arguments.output {
        Some(path) => output::write_json(path, &as_json()),
        None if arguments.json => crate::print(&format!("{}\n", as_json())),
        None => crate::print(&captioned.iter().map(Captioned::lines).collect::<String>()),
    }
}

impl Arguments {
    fn caption(&self, remarks: Remarks) -> Result<Vec<Captioned>> {
        let builder = self.model.open()?.batch_size(self.batch.size);
        let own = self.head == Some(Head::Qformer);
        let builder = if own { builder } else { self.language.with(builder)? };
        let speaks = !own && (builder.has_language_model() || self.head == Some(Head::LanguageModel));
        if !speaks && !self.prompt.is_empty() {
            return Err(Error::usage(
                "--prompt is what a language model's captions go on from; the Q-Former's own head takes none",
            ));
        }
        let decoding = if speaks { builder.decoding_for(TextTask::Caption)? } else { builder.decoding()? };
        let decoding = self.decoding.decoding(decoding, self.num_captions)?;
        if speaks {
            builder.require_language_model()?;
        } else {
            builder.require_caption_head()?;
            builder.tokenizer()?;
        }
        let images = Images::find(&self.images, &builder)?;
        let pipeline = load(builder, images.parts(), remarks)?;
        let mut captioned = Vec::with_capacity(images.names.len());
        images.for_each_batch(&pipeline, self.batch.size, remarks, |batch| {
            let decoding = decoding.starting_at(captioned.len() as u64);
            let found = match speaks {
                true => pipeline.describe(batch, &self.prompt, &decoding),
                false => pipeline.caption(batch, &decoding),
            };
            for captions in found? {
                captioned.push(Captioned { image: images.names[captioned.len()].clone(), captions });
            }
            Ok(())
        })?;
        Ok(captioned)
    }
}

impl Captioned {
    /// The best caption is at the top, where COCO's result files have it.
    fn json(&self) -> Value {
        let caption = |GeneratedText { text, tokens, score }: &GeneratedText| json!({"caption": text, "score": score, "tokens": tokens});
        let captions: Vec<Value> = self.captions.iter().map(caption).collect();
        let best = self.captions.first().map(|caption| &caption.text);
        json!({"image": self.image, "caption": best, "captions": captions})
    }

    fn lines(&self) -> String {
        let image = printable(&self.image);
        self.captions.iter().map(|caption| format!("{image}\t{}\n", printable(&caption.text))).collect()
    }
}
