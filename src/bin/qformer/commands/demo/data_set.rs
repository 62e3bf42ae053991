//! The demo's data: pictures in files with their captions, and the image encoder's output.

use super::model;
use super::world::{Scene, Stream};
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use qformer::data::{Dataset, Source, VISION_OUTPUT};
use qformer::output::write_atomically;
use qformer::params::safetensors::{self, Dtype, NewTensor};
use qformer::{Error, ImageProcessor, Result, VisionEncoder};
use rayon::prelude::*;
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Pictures encoded at a time.
const BATCH: usize = 64;

/// Where a part of the data lies.
pub(super) struct Files {
    /// A line a picture: its file and its caption.
    pub(super) listing: PathBuf,
    /// The image encoder's output of the pictures, in their order.
    pub(super) features: PathBuf,
}

impl Files {
    /// Those of the part `name` in the demo's folder.
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        Self {
            listing: folder.join("pictures").join(format!("{name}.jsonl")),
            features: folder.join("features").join(format!("{name}.safetensors")),
        }
    }

    /// The data as the trainer reads them.
    pub(super) fn features(&self) -> Result<Dataset> {
        Dataset::open(&Source::Features {
            features: vec![self.features.clone()],
            captions: self.listing.clone(),
        })
    }

    /// Draws a picture of every scene.
    pub(super) fn draw(&self, scenes: &[Scene], seed: u64) -> Result<()> {
        let (folder, name) = (parent(&self.listing), stem(&self.listing));
        make(&folder.join(name))?;
        let of = |index: usize| format!("{name}/{index:05}.png");
        scenes.par_iter().enumerate().try_for_each(|(index, scene)| {
            let path = folder.join(of(index));
            let rgb = scene.draw(model::SIDE, &mut Stream::new(seed, &of(index)));
            fs::write(&path, png(&rgb, model::SIDE, ExtendedColorType::Rgb8))
                .map_err(|error| Error::io(&path, "write", error))
        })?;
        write_atomically(&self.listing, |file| {
            scenes.iter().enumerate().try_for_each(|(index, scene)| {
                let line = json!({ "image": of(index), "caption": scene.caption() });
                writeln!(file, "{line}").map_err(|error| Error::io(&self.listing, "write", error))
            })
        })
    }

    /// Encodes the pictures; `progress` is told how many are done, and how many there are.
    pub(super) fn encode(
        &self,
        encoder: &VisionEncoder,
        processor: &ImageProcessor,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<()> {
        let pictures = Dataset::open(&Source::Jsonl(self.listing.clone()))?;
        let images = pictures.images();
        let mut values = Vec::new();
        let mut shape = Vec::new();
        for first in (0..images).step_by(BATCH) {
            let batch: Vec<usize> = (first..images.min(first + BATCH)).collect();
            let encoded = encoder.encode(&pictures.pixels(&batch, processor)?)?;
            shape = encoded.shape().to_vec();
            values.extend(encoded.into_values());
            progress(batch[batch.len() - 1] + 1, images);
        }
        shape[0] = images;
        make(parent(&self.features))?;
        // Half precision is a thousandth of what the last norm makes of it.
        let tensor = NewTensor::from_slice(VISION_OUTPUT, Dtype::F16, &shape, &values);
        safetensors::write(&self.features, &BTreeMap::new(), vec![tensor])
    }
}

/// A PNG file's bytes.
pub(super) fn png(pixels: &[u8], side: usize, colour: ExtendedColorType) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (encoder, side) = (PngEncoder::new(&mut bytes), side as u32);
    encoder.write_image(pixels, side, side, colour).expect("a picture of this size, in memory");
    bytes
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))
}

fn parent(path: &Path) -> &Path {
    path.parent().expect("a path within the demo's folder")
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).expect("a name given above")
}
