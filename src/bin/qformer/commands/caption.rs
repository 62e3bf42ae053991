//! `qformer caption`: what the Q-Former says that an image shows.

use crate::Remarks;
use crate::decoding::DecodingArguments;
use crate::inputs::images::{ImageArguments, Images};
use crate::inputs::{BatchArguments, ModelArguments, load};
use crate::outputs::check_file_name;
use clap::{ArgGroup, Args};
use qformer::Result;
use qformer::output::{self, printable};
use serde_json::{Value, json};
use std::path::PathBuf;

/// Caption images with the Q-Former's own language-modelling head
///
/// The checkpoint must have that head, as LAVIS's .pth files and the checkpoints of qformer train do. How
/// captions are found, where it is not said here, is as its generation_config.json says, and else as in LAVIS: they
/// are searched with 3 beams and have 9 to 29 new tokens, if the model reads as many. Without --output or --json a line
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
        let decoding = self.decoding.decoding(builder.decoding()?, self.num_captions)?;
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
