//! The image encoder's output, kept in files.

use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::data::text_list::TextList;
use crate::error::{Error, Result};
use crate::input::printable;
use crate::output::counted;
use crate::params::safetensors::Checkpoint;

/// Name of the tensor with the image encoder's output [images, N, W], before its last norm.
pub const VISION_OUTPUT: &str = "vision_output";
/// Key of the metadata that tells which encoder's output it is.
pub const ENCODER: &str = "encoder";
/// Key of the metadata that holds the images' names, a JSON array.
pub const NAMES: &str = "images";

/// Values of an image's features that its sample has, which lie side by side.
const SAMPLE: usize = 32;

/// Feature files, read as one.
#[derive(Debug)]
pub(in crate::data) struct Features {
    shards: Vec<Checkpoint>,
    /// The first row of each shard, and the number of all.
    starts: Vec<usize>,
    /// N
    pub(in crate::data) tokens: usize,
    /// W
    pub(in crate::data) width: usize,
}

impl Features {
    pub(in crate::data) fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut shards: Vec<Checkpoint> = Vec::new();
        let mut starts = vec![0];
        let (mut tokens, mut width) = (0, 0);
        for path in paths {
            let shard = Checkpoint::open(path)?;
            let rows = match shard.get(VISION_OUTPUT).map(|info| &info.shape[..]) {
                Some(&[rows, n, w]) if n > 0 && w > 0 => {
                    if !shards.is_empty() && (n, w) != (tokens, width) {
                        let first = paths[0].display();
                        let what = format!("has rows of [{n}, {w}], but {first} of [{tokens}, {width}]");
                        return Err(Error::input(path, what));
                    }
                    (tokens, width) = (n, w);
                    rows
                }
                found => {
                    let found = found.map_or("no such tensor".to_owned(), |shape| format!("{shape:?}"));
                    let what = format!(
                        "tensor \"{VISION_OUTPUT}\" has to be [images, tokens, width], but there is {found}; \
                         qformer encode writes it"
                    );
                    return Err(Error::input(path, what));
                }
            };
            let encoder = shard.metadata().get(ENCODER);
            let first = shards.first().unwrap_or(&shard);
            if first.metadata().get(ENCODER) != encoder {
                let what = format!("is another image encoder's output than {}", paths[0].display());
                return Err(Error::input(path, what));
            }
            starts.push(starts.last().expect("not empty") + rows);
            shards.push(shard);
        }
        Ok(Self { shards, starts, tokens, width })
    }

    /// I
    pub(in crate::data) fn images(&self) -> usize {
        *self.starts.last().expect("not empty")
    }

    /// Checks that an image has so many `tokens` of this `width`.
    pub(in crate::data) fn check_shape(&self, [tokens, width]: [usize; 2]) -> Result<()> {
        match self.shards.first() {
            Some(first) if [self.tokens, self.width] != [tokens, width] => {
                let what = format!(
                    "tensor \"{VISION_OUTPUT}\" has {} tokens of width {} an image, but the model reads {tokens} of \
                     width {width}; give features of the encoder that it was trained with (qformer encode writes \
                     those of its own)",
                    self.tokens, self.width
                );
                Err(Error::input(first.path(), what))
            }
            _ => Ok(()),
        }
    }

    /// Which encoder's output it is, if the files tell.
    pub(in crate::data) fn encoder(&self) -> Option<&str> {
        self.shards.first()?.metadata().get(ENCODER).map(String::as_str)
    }

    /// The shard that holds an image, and its row there.
    fn place(&self, image: usize) -> (&Checkpoint, usize) {
        // Shards without rows share their start with the next.
        let shard = self.starts.partition_point(|&start| start <= image) - 1;
        (&self.shards[shard], image - self.starts[shard])
    }

    /// `features.safetensors row 3`
    pub(in crate::data) fn name(&self, image: usize) -> String {
        let (shard, row) = self.place(image);
        let file = shard.path().file_name().unwrap_or_default();
        format!("{} row {row}", Path::new(file).display())
    }

    /// Checks that the rows which `qformer encode` wrote are of the images of these names, blank where
    /// one is unknown. Names that came from elsewhere say nothing: they may be other paths of the same.
    pub(in crate::data) fn check_names(&self, captions: &Path, names: &TextList) -> Result<()> {
        for (shard, &start) in self.shards.iter().zip(&self.starts) {
            let metadata = shard.metadata();
            let (Some(list), true) = (metadata.get(NAMES), metadata.contains_key(ENCODER)) else { continue };
            let own: TextList = serde_json::from_str(list).unwrap_or_default();
            for (row, (own, name)) in own.iter().zip(names.iter().skip(start)).enumerate() {
                if !name.is_empty() && name != own {
                    let what = format!(
                        "line {} is of image \"{}\", but row {row} of {} of \"{}\"; give the captions.jsonl that \
                         qformer encode wrote beside the features, and all shards in their order",
                        start + row + 1,
                        printable(name),
                        shard.path().display(),
                        printable(own)
                    );
                    return Err(Error::input(captions, what));
                }
            }
        }
        Ok(())
    }

    /// The checksum `names` of names and captions, continued by a sample of every image's features.
    pub(in crate::data) fn fingerprint(&self, names: u32) -> Result<u32> {
        let samples: Vec<u32> =
            (0..self.images()).into_par_iter().map(|image| self.sample(image)).collect::<Result<_>>()?;
        let mut hasher = crc32fast::Hasher::new_with_initial(names);
        samples.iter().for_each(|sample| hasher.update(&sample.to_le_bytes()));
        Ok(hasher.finalize())
    }

    /// A checksum of some values of an image's features, at a place of its own.
    fn sample(&self, image: usize) -> Result<u32> {
        let (shard, row) = self.place(image);
        let elements = self.tokens * self.width;
        let parts = elements.div_ceil(SAMPLE);
        // Neighbours are far from each other, as multiples of the golden ratio are.
        let part = ((image as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize % parts;
        let first = row * elements + part * SAMPLE;
        let range = first..(first + SAMPLE).min((row + 1) * elements);
        let mut hasher = crc32fast::Hasher::new();
        shard.read_f32_range(VISION_OUTPUT, range, |_, block| {
            block.iter().for_each(|value| hasher.update(&value.to_le_bytes()));
        })?;
        Ok(hasher.finalize())
    }

    /// Appends an image's features [N, W] to `values`.
    pub(in crate::data) fn read(&self, image: usize, values: &mut Vec<f32>) -> Result<()> {
        let (shard, row) = self.place(image);
        let elements = self.tokens * self.width;
        let range = row * elements..(row + 1) * elements;
        let not_finite =
            shard.read_f32_range(VISION_OUTPUT, range, |_, block| values.extend_from_slice(block))?;
        if not_finite > 0 {
            let what = format!("row {row} has {} infinite or not a number", counted(not_finite, "value"));
            return Err(Error::input(shard.path(), what));
        }
        Ok(())
    }
}
