//! `qformer caption`: what the Q-Former says that an image shows.

use crate::Remarks;
use crate::inputs::images::{ImageArguments, Images};
use crate::inputs::{BatchArguments, ModelArguments, load};
use crate::outputs::check_file_name;
use clap::{ArgGroup, Args};
use qformer::Result;
use qformer::generate::{Decoding, Search};
use qformer::output::{self, printable};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Caption images with the Q-Former's own language-modelling head
///
/// The checkpoint must have that head, as LAVIS's .pth files and the checkpoints of qformer train do. How
/// captions are found, where it is not said here, is as its generation_config.json says, and else as in LAVIS: they
/// are searched with 3 beams and have 10 to 30 tokens, if the model reads as many. Without --output or --json a line
/// an image is printed: its name, a tab, and the caption; with several captions, a line each.
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
    decoding: DecodingArguments,
    /// File to write, in JSON
    #[arg(long, short, value_name = "FILE", conflicts_with = "json")]
    output: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How captions are found, by the names that transformers' `generate` gives; where nothing is given, as the
/// checkpoint says.
#[derive(Args)]
struct DecodingArguments {
    /// Captions followed at a time in a search; 1 is greedy search
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// Draw tokens instead of searching: nucleus sampling
    #[arg(long, alias = "nucleus", conflicts_with_all = ["num_beams", "length_penalty"])]
    do_sample: bool,
    /// Draw from the fewest tokens that have this much of the probability together
    #[arg(long, value_name = "P", requires = "do_sample")]
    top_p: Option<f64>,
    /// Divide the logits by this before drawing
    #[arg(long, value_name = "T", requires = "do_sample")]
    temperature: Option<f64>,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = Search::SEED, requires = "do_sample")]
    seed: u64,
    /// Longest caption in tokens, [DEC] and [SEP] included
    #[arg(long, value_name = "N")]
    max_length: Option<usize>,
    /// Shortest caption in tokens, [DEC] included
    #[arg(long, value_name = "N")]
    min_length: Option<usize>,
    /// Make tokens that came before less likely (above 1) or more likely (below 1)
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Divide a caption's log-probability by its length to this power
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// Captions of each image
    #[arg(long, alias = "num-return-sequences", value_name = "N")]
    num_captions: Option<usize>,
}

impl DecodingArguments {
    /// What was asked for, and for the rest what suits the checkpoint.
    fn decoding(&self, checkpoint: Decoding) -> Result<Decoding> {
        let max_length = self.max_length.unwrap_or(checkpoint.max_length);
        let decoding = Decoding {
            search: self.search(checkpoint.search),
            max_length,
            min_length: self.min_length.unwrap_or(checkpoint.min_length.min(max_length)),
            repetition_penalty: self.repetition_penalty.unwrap_or(checkpoint.repetition_penalty),
            sequences: self.num_captions.unwrap_or(checkpoint.sequences),
        };
        decoding.validate()?;
        Ok(decoding)
    }

    fn search(&self, checkpoint: Search) -> Search {
        let is_searched = self.num_beams.is_some() || self.length_penalty.is_some();
        let drawn = |top_p, temperature| Search::Nucleus {
            top_p: self.top_p.unwrap_or(top_p),
            temperature: self.temperature.unwrap_or(temperature),
            seed: self.seed,
            first: 0,
        };
        let searched = |beams, length_penalty| Search::Beam {
            beams: self.num_beams.unwrap_or(beams),
            length_penalty: self.length_penalty.unwrap_or(length_penalty),
        };
        match checkpoint {
            Search::Nucleus { top_p, temperature, .. } if !is_searched => drawn(top_p, temperature),
            Search::Beam { beams, length_penalty } if !self.do_sample => searched(beams, length_penalty),
            Search::Nucleus { .. } => searched(Search::BEAMS, 1.0),
            Search::Beam { .. } => drawn(Search::TOP_P, 1.0),
        }
    }
}

/// An image's captions, with their scores.
struct Captioned {
    image: String,
    captions: Vec<(String, f64)>,
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
        let decoding = self.decoding.decoding(builder.decoding()?)?;
        let images = Images::find(&self.images, &builder)?;
        builder.tokenizer()?;
        builder.require_caption_head()?;
        let pipeline = load(builder, images.parts(), remarks)?;
        let mut captioned = Vec::with_capacity(images.names.len());
        images.for_each_batch(&pipeline, self.batch.size, remarks, |batch| {
            let first = captioned.len();
            for captions in pipeline.caption(batch, &decoding.starting_at(first as u64))? {
                let captions = captions.into_iter().map(|caption| (caption.text, caption.score)).collect();
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
        let captions: Vec<Value> = self
            .captions
            .iter()
            .map(|(caption, score)| json!({"caption": caption, "score": score}))
            .collect();
        let best = self.captions.first().map(|(caption, _)| caption);
        json!({"image": self.image, "caption": best, "captions": captions})
    }

    fn lines(&self) -> String {
        let image = printable(&self.image);
        self.captions.iter().map(|(caption, _)| format!("{image}\t{}\n", printable(caption))).collect()
    }
}
