//! The model, the images and the texts that a command works with.

pub(crate) mod data;
pub(crate) mod images;
pub(crate) mod language;
pub(crate) mod texts;

use crate::Remarks;
use crate::progress::Progress;
use clap::Args;
use images::{ImageArguments, Images};
use qformer::{DeviceName, Error, Matching, Parts, Pipeline, PipelineBuilder, Result};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use texts::{TextArguments, Texts};

/// A model and where it runs.
#[derive(Args)]
pub(crate) struct ModelArguments {
    /// Folder of the checkpoint, as save_pretrained or qformer train writes it, or of a .pth file beside its
    /// config.json
    #[arg(long = "model", alias = "model-id", value_name = "DIR", env = "QFORMER_MODEL")]
    pub(crate) folder: PathBuf,
    /// Where to compute: auto, cpu, cuda or cuda:N; auto is the first GPU, or the processor's cores if there is none
    #[arg(long, value_name = "DEVICE", default_value_t = DeviceName::Auto, env = "QFORMER_DEVICE")]
    pub(crate) device: DeviceName,
}

/// How many images at a time.
#[derive(Args)]
pub(crate) struct BatchArguments {
    /// Images computed at a time
    #[arg(long = "batch-size", value_name = "N", default_value = "8", env = "QFORMER_BATCH_SIZE")]
    pub(crate) size: NonZeroUsize,
}

/// Arguments of commands that compare images with texts.
#[derive(Args)]
pub(crate) struct Inputs {
    #[command(flatten)]
    pub(crate) model: ModelArguments,
    #[command(flatten)]
    pub(crate) batch: BatchArguments,
    #[command(flatten)]
    pub(crate) images: ImageArguments,
    #[command(flatten)]
    pub(crate) texts: TextArguments,
}

/// What a command works with, loaded and checked.
pub(crate) struct Loaded {
    pub(crate) pipeline: Pipeline,
    pub(crate) texts: Texts,
    pub(crate) images: Images,
}

impl ModelArguments {
    /// The checkpoint, of which no weights are loaded yet.
    pub(crate) fn open(&self) -> Result<PipelineBuilder> {
        Ok(Pipeline::builder(&self.folder)?.device(self.device))
    }
}

/// Loads `parts` of a checkpoint, with progress, and tells what there is to know of them.
pub(crate) fn load(builder: PipelineBuilder, parts: Parts, remarks: Remarks) -> Result<Pipeline> {
    let mut shown: Option<(&str, Progress)> = None;
    let pipeline = builder.parts(parts).load_with_progress(&mut |what, done, total| {
        if shown.as_ref().is_none_or(|(shown, _)| *shown != what) {
            shown = Some((what, Progress::of_bytes(what, remarks)));
        }
        shown.iter().for_each(|(_, progress)| progress.set(done, total));
    })?;
    drop(shown);
    tell_of_fallback(pipeline.fallback(), remarks);
    language::tell_of_narrowing(&pipeline, remarks);
    remarks.warn_of_not_finite(&pipeline.not_finite());
    Ok(pipeline)
}

/// Tells why the CPU computes though there is a GPU's driver.
pub(crate) fn tell_of_fallback(fallback: Option<&Error>, remarks: Remarks) {
    if let Some(why) = fallback {
        remarks.note(format_args!("computing on the CPU, since {why}"));
    }
}

impl Inputs {
    /// Reads all that there is to read before the first image.
    pub(crate) fn load(&self, remarks: Remarks) -> Result<Loaded> {
        let builder = self.model.open()?.batch_size(self.batch.size);
        let images = Images::find(&self.images, &builder)?;
        let texts = Texts::encode(self.texts.read()?, &builder, remarks)?;
        let pipeline = load(builder, images.parts(), remarks)?;
        Ok(Loaded { pipeline, texts, images })
    }
}

/// Tells that pairs are matched as the checkpoint was trained, where that is not by the two-class head.
pub(crate) fn tell_of_matching(trained: Matching, remarks: Remarks) {
    if trained == Matching::MaxSimilarity {
        remarks.note("pairs are matched by the largest cosine, as the checkpoint was trained");
    }
}
