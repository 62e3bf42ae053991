//! Images, batch by batch: from files through the image encoder, or as it left them earlier.

use crate::Remarks;
use crate::progress::Progress;
use clap::Args;
use qformer::data::{Dataset, NAMES, VISION_OUTPUT};
use qformer::models::vision::encoder;
use qformer::models::vision::identity::identity;
use qformer::models::vision::image::{EXTENSIONS, ImageProcessor};
use qformer::params::NamedCheckpoint;
use qformer::params::safetensors::Checkpoint;
use qformer::tensor::HostTensor;
use qformer::{Config, Error, Image, Parts, Pipeline, PipelineBuilder, Result, VisionOutput};
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where images come from.
#[derive(Args)]
#[group(id = "image_source", multiple = false)]
pub(crate) struct ImageArguments {
    /// JPEG, PNG or WebP files
    #[arg(long, alias = "image", value_name = "FILE", num_args = 1..)]
    pub(crate) images: Vec<PathBuf>,
    /// Folder whose .jpg, .jpeg, .png and .webp files are read, in the order of their names
    #[arg(long, value_name = "DIR")]
    pub(crate) image_dir: Option<PathBuf>,
    /// The image encoder's output as --save-vision-output wrote it, in place of images
    #[arg(long, value_name = "FILE")]
    pub(crate) features: Option<PathBuf>,
}

/// Images to be read.
pub(crate) struct Images {
    pub(crate) names: Vec<String>,
    source: Source,
}

enum Source {
    Files(Vec<PathBuf>),
    Features(Checkpoint),
}

impl Images {
    /// Finds the images that were asked for, perhaps none, and checks that the model reads such ones.
    pub(crate) fn find(arguments: &ImageArguments, model: &PipelineBuilder) -> Result<Self> {
        if let Some(path) = &arguments.features {
            let checkpoint = Checkpoint::open(path)?;
            let names = names_in(&checkpoint, model.config())?;
            return Ok(Self { names, source: Source::Features(checkpoint) });
        }
        Self::of_files(&arguments.images, arguments.image_dir.as_deref(), model)
    }

    /// The same of the files in `folder`, or of these `files`.
    pub(crate) fn of_files(
        files: &[PathBuf],
        folder: Option<&Path>,
        model: &PipelineBuilder,
    ) -> Result<Self> {
        let paths = match folder {
            Some(folder) => list(folder)?,
            None => files.to_vec(),
        };
        if let Some(missing) = paths.iter().find(|path| !path.is_file()) {
            return Err(Error::input(missing, "is not there or is not a file"));
        }
        if !paths.is_empty() {
            model.require_encoder()?;
            model.image_processor()?;
        }
        let names = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        Ok(Self { names, source: Source::Files(paths) })
    }

    /// The parts of a model that read these images.
    pub(crate) fn parts(&self) -> Parts {
        match &self.source {
            Source::Files(paths) if !paths.is_empty() => Parts::All,
            Source::Files(_) | Source::Features(_) => Parts::QFormer,
        }
    }

    /// Calls `take` with the image encoder's output [images, N, W] of one batch after the other.
    pub(crate) fn for_each_batch(
        &self,
        pipeline: &Pipeline,
        batch_size: NonZeroUsize,
        remarks: Remarks,
        mut take: impl FnMut(&VisionOutput) -> Result<()>,
    ) -> Result<()> {
        let total = self.names.len();
        let progress = Progress::of_images("reading images", total, remarks);
        for first in (0..total).step_by(batch_size.get()) {
            let end = total.min(first.saturating_add(batch_size.get()));
            take(&self.vision_output(pipeline, first..end)?)?;
            progress.set(end, total);
        }
        Ok(())
    }

    fn vision_output(&self, pipeline: &Pipeline, images: Range<usize>) -> Result<VisionOutput> {
        match &self.source {
            Source::Features(checkpoint) => Ok(read_features(checkpoint, images)?.into()),
            Source::Files(paths) => {
                let files: Vec<Image<'_>> = paths[images].iter().map(|path| Image::File(path)).collect();
                pipeline.encode(&files)
            }
        }
    }
}

/// The image files in `folder`, by name.
fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    let cannot_list = |error| Error::io(folder, "list", error);
    let is_image = |path: &PathBuf| {
        let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
        path.is_file() && EXTENSIONS.iter().any(|image| extension == *image)
    };
    let mut paths = Vec::new();
    for entry in folder.read_dir().map_err(cannot_list)? {
        paths.push(entry.map_err(cannot_list)?.path());
    }
    paths.retain(is_image);
    paths.sort();
    if paths.is_empty() {
        return Err(Error::input(folder, "holds no .jpg, .jpeg, .png or .webp file"));
    }
    Ok(paths)
}

/// The image processor in `folder`, or BLIP-2's if it holds none; a model of features needs none.
pub(crate) fn processor_or_blip2(folder: &Path, config: &Config) -> Result<Option<ImageProcessor>> {
    let Some(side) = config.vision.image_size() else { return Ok(None) };
    let files = ["processor_config.json", "preprocessor_config.json"];
    match files.iter().any(|file| folder.join(file).exists()) {
        true => ImageProcessor::load_for(folder, side).map(Some),
        false => Ok(Some(ImageProcessor::blip2(side))),
    }
}

/// Warns if a data set's features are of another image encoder than that in the folder `model`, as far as
/// they tell.
pub(crate) fn compare_encoders(
    dataset: &Dataset,
    model: &Path,
    config: &Config,
    checkpoint: &Checkpoint,
    remarks: Remarks,
) -> Result<()> {
    let (Some(of_features), Ok(_), Some(processor)) =
        (dataset.encoder(), config.vision.encoder(), processor_or_blip2(model, config)?)
    else {
        return Ok(());
    };
    if !encoder::is_in(&NamedCheckpoint::new(checkpoint)?) {
        return Ok(());
    }
    let progress = Progress::of_bytes("identifying the image encoder", remarks);
    let own = identity(config, checkpoint, &processor, &mut |done, total| progress.set(done, total))?;
    if own != of_features {
        remarks.warning(format_args!(
            "the features are of another image encoder ({of_features}) than {} has ({own}); encode the images with \
             it, unless the two are the same but for rounding",
            model.display()
        ));
    }
    Ok(())
}

/// Names of the images whose features `checkpoint` holds; their numbers where it holds no names.
fn names_in(checkpoint: &Checkpoint, config: &Config) -> Result<Vec<String>> {
    let (tokens, width) = (config.image_tokens(), config.vision.width());
    let expected = format_args!("[images, {tokens}, {width}] for this model");
    let images = match checkpoint.get(VISION_OUTPUT).map(|info| &info.shape[..]) {
        Some(&[images, n, w]) if n == tokens && w == width && images > 0 => images,
        Some(shape) => {
            let what = format!("tensor \"{VISION_OUTPUT}\" has shape {shape:?}; it has to be {expected}");
            return Err(Error::input(checkpoint.path(), what));
        }
        None => {
            let what = format!(
                "has no tensor \"{VISION_OUTPUT}\" {expected}; --save-vision-output and qformer encode write it"
            );
            return Err(Error::input(checkpoint.path(), what));
        }
    };
    let names = checkpoint.metadata().get(NAMES).and_then(|names| serde_json::from_str(names).ok());
    Ok(names
        .filter(|names: &Vec<String>| names.len() == images)
        .unwrap_or_else(|| (0..images).map(|image| image.to_string()).collect()))
}

/// The stored features of some images.
fn read_features(checkpoint: &Checkpoint, images: Range<usize>) -> Result<HostTensor> {
    let shape = &checkpoint.get(VISION_OUTPUT).expect("checked when it was opened").shape;
    let per_image: usize = shape[1..].iter().product();
    let mut values = Vec::with_capacity(images.len() * per_image);
    let elements = images.start * per_image..images.end * per_image;
    checkpoint.read_f32_range(VISION_OUTPUT, elements, |_, block| values.extend_from_slice(block))?;
    HostTensor::new(&[images.len(), shape[1], shape[2]], values)
}
