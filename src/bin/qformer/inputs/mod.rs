//! The model, the images and the texts that a command works with.

pub(crate) mod data;
pub(crate) mod images;
pub(crate) mod texts;

use crate::Remarks;
use crate::device::Device;
use crate::progress::Progress;
use clap::Args;
use images::{ImageArguments, Images};
use qformer::evaluate::MatchingLogits;
use qformer::ops::Backend;
use qformer::params::NamedCheckpoint;
use qformer::params::safetensors::Checkpoint;
use qformer::{Config, Matching, QFormer, Result};
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
    /// Where to compute
    #[arg(long, value_enum, default_value_t = Device::Auto, env = "QFORMER_DEVICE")]
    pub(crate) device: Device,
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
pub(crate) struct Loaded<B: Backend> {
    pub(crate) model: QFormer<B>,
    /// What the checkpoint was trained to match pairs by.
    pub(crate) trained: Matching,
    pub(crate) texts: Texts,
    pub(crate) images: Images<B>,
}

impl Inputs {
    /// Reads all that there is to read before the first image.
    pub(crate) fn load<B: Backend + Clone>(&self, device: B, remarks: Remarks) -> Result<Loaded<B>> {
        let config = Config::load(&self.model.folder)?;
        let mut images = Images::find(&self.images, &self.model.folder, &config)?;
        let texts = Texts::encode(self.texts.read()?, &self.model.folder, &config, remarks)?;
        let checkpoint = Checkpoint::open(&self.model.folder)?;
        let progress = Progress::of_bytes("loading the Q-Former", remarks);
        let model =
            QFormer::from_checkpoint(device.clone(), config.clone(), &checkpoint, &mut |done, total| {
                progress.set(done, total);
            })?;
        drop(progress);
        remarks.warn_of_not_finite(model.not_finite());
        images.load_encoder(device, &config, &checkpoint, remarks)?;
        let trained = MatchingLogits::of(&NamedCheckpoint::new(&checkpoint)?)?.matching();
        Ok(Loaded { model, trained, texts, images })
    }
}

/// Tells that pairs are matched as the checkpoint was trained, where that is not by the two-class head.
pub(crate) fn tell_of_matching(trained: Matching, remarks: Remarks) {
    if trained == Matching::MaxSimilarity {
        remarks.note("pairs are matched by the largest cosine, as the checkpoint was trained");
    }
}
