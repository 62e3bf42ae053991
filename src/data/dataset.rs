//! A data set, opened and indexed: any image and any caption can be had at any time.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::clean_caption;
use super::sources::features::Features;
use super::sources::records::{self, Listing};
use super::sources::webdataset::Shards;
use super::sources::{Source, coco};
use super::text_list::{Caption, Captions, TextList};
use crate::error::{Error, Result};
use crate::models::vision::image::{ImageProcessor, Rgb};
use crate::output::{counted, folder_of};
use crate::tensor::HostTensor;

/// What the images of a data set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Image files.
    Pictures,
    /// The image encoder's output.
    Features {
        /// N
        tokens: usize,
        /// W
        width: usize,
    },
}

/// Images with their captions. Names and captions are in memory, images are not.
#[derive(Debug)]
pub struct Dataset {
    images: Images,
    captions: Captions,
    /// Of names and captions.
    fingerprint: u32,
}

#[derive(Debug)]
enum Images {
    Files {
        folder: PathBuf,
        names: TextList,
    },
    Shards(Shards),
    /// Names are empty where the captions file has none.
    Features {
        features: Features,
        names: TextList,
    },
}

impl Dataset {
    /// Opens and indexes the data set. Whether its images can be read shows when they are.
    ///
    /// # Errors
    /// Fails if a file is missing, broken (lines are named by their numbers) or truncated, if features
    /// and captions are not of one number or of different images, and if there is no image at all.
    pub fn open(source: &Source) -> Result<Self> {
        match source {
            Source::Jsonl(path) => {
                let listing = records::merged(path, records::read(path)?)?;
                Self::of_files(path, folder_of(path), listing)
            }
            Source::Coco { annotations, images, split } => {
                let listing = coco::read(annotations, split.as_deref())?;
                Self::of_files(annotations, images, listing)
            }
            Source::WebDataset(paths) => {
                let Some(first) = paths.first() else { return Err(Error::usage("no tar shard is given")) };
                let (shards, captions) = Shards::open(paths)?;
                Self::new(first, Images::Shards(shards), captions)
            }
            Source::Features { features, captions } => Self::of_features(features, captions),
        }
    }

    fn of_files(path: &Path, folder: &Path, listing: Listing) -> Result<Self> {
        let images = Images::Files { folder: folder.to_owned(), names: listing.names };
        Self::new(path, images, listing.captions)
    }

    fn of_features(paths: &[PathBuf], captions: &Path) -> Result<Self> {
        let features = Features::open(paths)?;
        let Listing { names, captions: texts } = records::read(captions)?;
        if names.len() != features.images() {
            return Err(Error::input(
                captions,
                format_args!(
                    "has {}, but the features have {}; line i holds the captions of row i",
                    counted(names.len(), "line"),
                    counted(features.images(), "row")
                ),
            ));
        }
        features.check_names(captions, &names)?;
        Self::new(captions, Images::Features { features, names }, texts)
    }

    fn new(path: &Path, images: Images, captions: Captions) -> Result<Self> {
        let mut dataset = Self { images, captions, fingerprint: 0 };
        if dataset.images() == 0 {
            return Err(Error::input(path, "holds no image"));
        }
        if u32::try_from(dataset.images().max(dataset.captions.len())).is_err() {
            return Err(Error::input(path, "has more than 4294967295 images or captions; split it"));
        }
        dataset.fingerprint = dataset.hash();
        Ok(dataset)
    }

    fn hash(&self) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        let mut add = |number: usize, text: &str| {
            hasher.update(&(number as u64).to_le_bytes());
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        (0..self.images()).for_each(|image| add(image, &self.name(image)));
        self.captions.iter().for_each(|Caption { image, text }| add(image as usize, text));
        hasher.finalize()
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        match &self.images {
            Images::Files { names, .. } => names.len(),
            Images::Shards(shards) => shards.samples(),
            Images::Features { features, .. } => features.images(),
        }
    }

    /// What the data set calls an image: its path as it stands there, `shard.tar/entry`, or, of features
    /// whose captions name no image, `features.safetensors row 3`.
    ///
    /// # Panics
    /// Panics if the data set has no such image.
    pub fn name(&self, image: usize) -> String {
        match &self.images {
            Images::Files { names, .. } => names.get(image).to_owned(),
            Images::Shards(shards) => shards.name(image),
            Images::Features { features, names } => match names.get(image) {
                "" => features.name(image),
                name => name.to_owned(),
            },
        }
    }

    /// The examples, in the data set's order. A sample of a tar shard without a text has a blank one.
    pub fn captions(&self) -> &Captions {
        &self.captions
    }

    /// What is learnt from caption `caption`, and evaluated: of pictures, the text as LAVIS cleans it
    /// ([`clean_caption`]); of features, the text as it stands, since `qformer encode` has written it cleaned.
    ///
    /// # Panics
    /// Panics if the data set has no such caption.
    pub fn text(&self, caption: usize) -> Cow<'_, str> {
        let text = self.captions.text(caption);
        match self.kind() {
            Kind::Pictures => Cow::Owned(clean_caption(text)),
            Kind::Features { .. } => Cow::Borrowed(text),
        }
    }

    /// What the images are.
    pub fn kind(&self) -> Kind {
        match &self.images {
            Images::Files { .. } | Images::Shards(_) => Kind::Pictures,
            Images::Features { features, .. } => {
                Kind::Features { tokens: features.tokens, width: features.width }
            }
        }
    }

    /// Checks that features are what a model reads: `tokens` of `width` an image. Pictures always are.
    ///
    /// # Errors
    /// Fails if they are of another shape.
    pub fn check_features(&self, [tokens, width]: [usize; 2]) -> Result<()> {
        match &self.images {
            Images::Features { features, .. } => features.check_shape([tokens, width]),
            _ => Ok(()),
        }
    }

    /// Which image encoder's output the features are, if they tell.
    pub fn encoder(&self) -> Option<&str> {
        match &self.images {
            Images::Features { features, .. } => features.encoder(),
            _ => None,
        }
    }

    /// A checksum by which a data set is known again: of all names and captions and, of features, of 32 values of
    /// every image, at places that differ from image to image. So features of other images, of another encoder or in
    /// another order are noticed, and a single value that was changed is not. What is in pictures' files is not looked at.
    ///
    /// # Errors
    /// Fails if features cannot be read.
    pub fn fingerprint(&self) -> Result<u32> {
        match &self.images {
            Images::Features { features, .. } => features.fingerprint(self.fingerprint),
            _ => Ok(self.fingerprint),
        }
    }

    /// Decodes an image.
    ///
    /// # Errors
    /// Fails, naming the file or entry, if it cannot be read or decoded; if the data set has no such image, and
    /// if it has features.
    pub fn picture(&self, image: usize) -> Result<Rgb> {
        self.check_image(image)?;
        match &self.images {
            Images::Files { folder, names } => Rgb::read(&folder.join(names.get(image))),
            Images::Shards(shards) => shards.picture(image),
            Images::Features { features, .. } => Err(Error::usage(format!(
                "{} is of features, not of a picture; open a data set of pictures, or read the features",
                features.name(image)
            ))),
        }
    }

    /// Pixel values [B, 3, S, S] of images as they are evaluated, decoded on all cores.
    ///
    /// # Errors
    /// As [`picture`](Self::picture).
    pub fn pixels(&self, images: &[usize], processor: &ImageProcessor) -> Result<HostTensor> {
        let decoded: Vec<Result<Vec<f32>>> =
            images.par_iter().map(|&image| self.pixel_values(image, processor)).collect();
        let (height, width) = processor.size();
        let mut values = Vec::with_capacity(images.len() * 3 * height * width);
        for image in decoded {
            values.extend(image?);
        }
        HostTensor::new(&[images.len(), 3, height, width], values)
    }

    /// Pixel values [3, S, S] of an image as it is evaluated.
    ///
    /// # Errors
    /// As [`picture`](Self::picture).
    pub fn pixel_values(&self, image: usize, processor: &ImageProcessor) -> Result<Vec<f32>> {
        let Rgb { pixels, width, height } = self.picture(image)?;
        processor.process(&pixels, width, height)
    }

    /// The image encoder's output [B, N, W] of images.
    ///
    /// # Errors
    /// Fails if a file cannot be read, if a value is infinite or not a number, if the data set has no such
    /// image, and if it has pictures.
    pub fn features(&self, images: &[usize]) -> Result<HostTensor> {
        let Images::Features { features, .. } = &self.images else {
            return Err(Error::usage(
                "the data set is of pictures, not of features; open features, or encode the pictures",
            ));
        };
        let mut values = Vec::with_capacity(images.len() * features.tokens * features.width);
        for &image in images {
            self.check_image(image)?;
            features.read(image, &mut values)?;
        }
        HostTensor::new(&[images.len(), features.tokens, features.width], values)
    }

    fn check_image(&self, image: usize) -> Result<()> {
        let images = self.images();
        if image < images {
            return Ok(());
        }
        Err(Error::usage(format!(
            "image {image} is not in the data set, which has {}, counted from 0",
            counted(images, "image")
        )))
    }
}
