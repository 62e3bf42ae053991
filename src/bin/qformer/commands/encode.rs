//! `qformer encode`: the image encoder's output of a whole data set, kept in shards.

use crate::Remarks;
use crate::inputs::data::ImageDataArguments;
use crate::inputs::{BatchArguments, ModelArguments, load};
use crate::outputs::check_folder_name;
use crate::progress::Progress;
use crate::spool::Spool;
use clap::Args;
use qformer::data::{Dataset, ENCODER, NAMES, VISION_OUTPUT};
use qformer::models::vision::identity::identity;
use qformer::output::{counted, create_folder, remove_abandoned, write_atomically};
use qformer::params::safetensors::{self, Checkpoint, Dtype};
use qformer::tensor::HostTensor;
use qformer::train::MAX_BAD_SAMPLES;
use qformer::{Error, ImageProcessor, Parts, Pipeline, Result};
use rayon::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::thread;

/// Key of the metadata that tells which data set a shard is of, and how it is cut.
const DATASET: &str = "dataset";
/// Key of the metadata with the images left out: a JSON array of [number, fault].
const UNREADABLE: &str = "unreadable";
/// Name of the file whose line i holds the captions of row i.
const CAPTIONS: &str = "captions.jsonl";
/// Batches of decoded images that wait for the encoder.
const AHEAD: usize = 2;
/// Faults told in the error about too many of them.
const TOLD: usize = 3;

/// Write the image encoder's output of a data set's images, to learn from without the encoder
///
/// The folder gets features-00000.safetensors and so on, with the tensor vision_output [images, tokens,
/// width] in bf16, as the encoder leaves it before the last norm, and captions.jsonl, whose line i holds the
/// captions of row i, cleaned as LAVIS does. A shard is written whole or not at all: an interrupted run,
/// started again, goes on with the first missing shard. Images that cannot be read are named and left out.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    batch: BatchArguments,
    #[command(flatten)]
    data: ImageDataArguments,
    /// Folder to write
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// Images of the data set in a shard; of EVA ViT-g's output at 224 pixels a thousand take 724 MB
    #[arg(long, value_name = "N", default_value = "1000")]
    shard_size: NonZeroUsize,
    /// Images that may be unreadable before it is an error
    #[arg(long, value_name = "N", default_value_t = MAX_BAD_SAMPLES)]
    max_bad_samples: usize,
}

/// Images left out: their numbers in the data set, with what is wrong with them.
type Unreadable = Vec<(usize, String)>;

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    check_folder_name(&arguments.output)?;
    let dataset = Dataset::open(&arguments.data.source()?)?;
    let builder = arguments.model.open()?;
    let processor = builder.image_processor()?.clone();
    let progress = Progress::of_bytes("identifying the image encoder", remarks);
    let encoder = identity(builder.config(), builder.checkpoint(), &processor, &mut |done, total| {
        progress.set(done, total);
    })?;
    drop(progress);

    let shards = Shards::claim(arguments, &dataset, encoder)?;
    let mut unreadable = Unreadable::new();
    let missing = (0..shards.count()).find(|&shard| !shards.path(shard).exists());
    let done = missing.unwrap_or(shards.count());
    for shard in 0..done {
        unreadable.extend(shards.unreadable(shard)?);
    }
    if missing.is_some() {
        let pipeline = load(builder, Parts::ImageEncoder, remarks)?;
        let progress = Progress::of_images("encoding images", dataset.images(), remarks);
        for shard in done..shards.count() {
            if shards.path(shard).exists() {
                unreadable.extend(shards.unreadable(shard)?);
            } else {
                shards.write(shard, arguments, &pipeline, &processor, &mut unreadable, &progress)?;
            }
        }
    }
    shards.write_captions(&unreadable)?;
    for (_, fault) in &unreadable {
        remarks.warning(fault);
    }
    if !unreadable.is_empty() {
        let (left_out, all) = (unreadable.len(), dataset.images());
        remarks.warning(format_args!("{left_out} of {all} images cannot be read; left out"));
    }
    Ok(())
}

/// The shards of a data set: each is of as many of its images, in their order.
struct Shards<'a> {
    folder: &'a Path,
    dataset: &'a Dataset,
    size: usize,
    /// What the metadata of all shards tells.
    marks: BTreeMap<String, String>,
}

impl<'a> Shards<'a> {
    /// Makes the folder, or makes sure that what shards there are in it are of this data set and
    /// encoder.
    fn claim(arguments: &'a Arguments, dataset: &'a Dataset, encoder: String) -> Result<Self> {
        let (folder, size) = (&*arguments.output, arguments.shard_size.get());
        let fingerprint = dataset.fingerprint()?;
        let cut = format!("{} images, crc32:{fingerprint:08x}, {size} a shard", dataset.images());
        let marks = BTreeMap::from([(ENCODER.to_owned(), encoder), (DATASET.to_owned(), cut)]);
        create_folder(folder)?;
        remove_abandoned(folder);
        let cannot_list = |error| Error::io(folder, "list", error);
        for entry in folder.read_dir().map_err(cannot_list)? {
            let path = entry.map_err(cannot_list)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("features-") || !name.ends_with(".safetensors") {
                continue;
            }
            let shard = Checkpoint::open(&path)?;
            for (key, expected) in &marks {
                let found = shard.metadata().get(key).map_or("unknown", String::as_str);
                if found != expected {
                    let what = format!(
                        "is of another {key} ({found}, not {expected}); give another --output, or empty it first"
                    );
                    return Err(Error::input(&path, what));
                }
            }
        }
        Ok(Self { folder, dataset, size, marks })
    }

    fn count(&self) -> usize {
        self.dataset.images().div_ceil(self.size)
    }

    fn path(&self, shard: usize) -> PathBuf {
        self.folder.join(format!("features-{shard:05}.safetensors"))
    }

    /// The images of a shard that was written earlier which it leaves out.
    fn unreadable(&self, shard: usize) -> Result<Unreadable> {
        let path = self.path(shard);
        let metadata = Checkpoint::open(&path)?;
        let list = metadata.metadata().get(UNREADABLE).and_then(|list| serde_json::from_str(list).ok());
        list.ok_or_else(|| Error::input(&path, format_args!("has no list \"{UNREADABLE}\"; remove it")))
    }

    /// Encodes the images of a shard and writes it.
    fn write(
        &self,
        shard: usize,
        arguments: &Arguments,
        pipeline: &Pipeline,
        processor: &ImageProcessor,
        unreadable: &mut Unreadable,
        progress: &Progress,
    ) -> Result<()> {
        let images = shard * self.size..self.dataset.images().min((shard + 1) * self.size);
        let batch_size = arguments.batch.size.get();
        let (first, all) = (unreadable.len(), self.dataset.images());
        let path = self.path(shard);
        let mut spool = Spool::new(&path)?;
        let vision = &pipeline.config().vision;
        spool.append(&HostTensor::new(&[0, vision.image_tokens(), vision.width()], Vec::new())?)?;
        thread::scope(|scope| {
            let (sender, batches) = sync_channel(AHEAD);
            let of_shard = images.clone();
            scope.spawn(move || {
                for start in of_shard.clone().step_by(batch_size) {
                    let batch = start..of_shard.end.min(start + batch_size);
                    // The encoder may have failed.
                    if sender.send((batch.clone(), self.decode(batch, processor))).is_err() {
                        break;
                    }
                }
            });
            for (batch, decoded) in batches {
                let end = batch.end;
                let mut pixels = Vec::new();
                for (image, decoded) in batch.zip(decoded) {
                    match decoded {
                        Ok(values) => pixels.extend(values),
                        Err(fault) => unreadable.push((image, fault.to_string())),
                    }
                }
                check_number(unreadable, arguments.max_bad_samples)?;
                let (height, width) = processor.size();
                let readable = pixels.len() / (3 * height * width);
                let pixels = HostTensor::new(&[readable, 3, height, width], pixels)?;
                spool.append(&pipeline.encode_pixels(&pixels)?.to_host()?)?;
                progress.set(end, all);
            }
            Ok::<(), Error>(())
        })?;
        let left_out = &unreadable[first..];
        let names: Vec<String> = readable(images, left_out).map(|image| self.dataset.name(image)).collect();
        let mut metadata = self.marks.clone();
        metadata.insert(NAMES.to_owned(), json!(names).to_string());
        metadata.insert(UNREADABLE.to_owned(), json!(left_out).to_string());
        safetensors::write(&path, &metadata, vec![spool.into_tensor(VISION_OUTPUT, Dtype::BF16)?])
    }

    /// Pixel values [3, S, S] of every image, decoded on all cores.
    fn decode(&self, images: Range<usize>, processor: &ImageProcessor) -> Vec<Result<Vec<f32>>> {
        images.into_par_iter().map(|image| self.dataset.pixel_values(image, processor)).collect()
    }

    /// Writes the captions of all rows, as they are learnt from.
    fn write_captions(&self, unreadable: &Unreadable) -> Result<()> {
        let captions = self.dataset.captions();
        let order = captions.by_image();
        let is_before = |image: usize| move |&index: &u32| (captions.image(index as usize) as usize) < image;
        let path = self.folder.join(CAPTIONS);
        write_atomically(&path, |file| {
            let mut write = |image: usize| {
                let own =
                    order.partition_point(is_before(image))..order.partition_point(is_before(image + 1));
                write!(file, "{{\"caption\":[")?;
                for (place, &index) in order[own].iter().enumerate() {
                    let comma = if place == 0 { "" } else { "," };
                    write!(file, "{comma}{}", json!(self.dataset.text(index as usize)))?;
                }
                writeln!(file, "],\"image\":{}}}", json!(self.dataset.name(image)))
            };
            readable(0..self.dataset.images(), unreadable)
                .try_for_each(|image| write(image).map_err(|error| Error::io(&path, "write", error)))
        })
    }
}

/// The `images` that are not among the unreadable ones, which are in ascending order.
fn readable(images: Range<usize>, unreadable: &[(usize, String)]) -> impl Iterator<Item = usize> {
    images.filter(|image| unreadable.binary_search_by_key(image, |(unreadable, _)| *unreadable).is_err())
}

/// Refuses more unreadable images than are allowed.
fn check_number(unreadable: &Unreadable, allowed: usize) -> Result<()> {
    if unreadable.len() <= allowed {
        return Ok(());
    }
    let told: Vec<&str> = unreadable.iter().take(TOLD).map(|(_, fault)| &**fault).collect();
    Err(Error::value(format!(
        "{} cannot be read; --max-bad-samples allows {allowed}: {}",
        counted(unreadable.len(), "image"),
        told.join("; ")
    )))
}
