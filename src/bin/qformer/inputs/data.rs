//! Where a command's data set is.

use clap::Args;
use qformer::data::Source;
use qformer::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A data set of images, or of the image encoder's output.
#[derive(Args, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct DataArguments {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) images: ImageDataArguments,
    /// The image encoder's output in place of images, as qformer encode writes it or of any other encoder
    /// (vision_output [images, tokens, width]): one file or all shards in their order
    #[arg(long, value_name = "FILE", num_args = 1.., requires = "captions", conflicts_with = "data")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) features: Vec<PathBuf>,
    /// JSONL whose line i holds the captions of row i of --features
    #[arg(long, value_name = "FILE", requires = "features")]
    pub(crate) captions: Option<PathBuf>,
}

/// A data set of images.
#[derive(Args, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub(crate) struct ImageDataArguments {
    /// Images with captions: a .jsonl of {"image": path, "caption": text or list}, a .json of COCO,
    /// Karpathy or LAVIS, or .tar shards of webdataset (or the folder they are in)
    #[arg(long, value_name = "PATH", num_args = 1..)]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) data: Vec<PathBuf>,
    /// Folder that the images' names in a .json are relative to [default: the file's]
    #[arg(long, value_name = "DIR", requires = "data")]
    pub(crate) image_root: Option<PathBuf>,
    /// Split to take, of a .json that has splits; restval is part of train
    #[arg(long, value_name = "NAME", requires = "data")]
    pub(crate) split: Option<String>,
}

impl DataArguments {
    /// The data set that was asked for.
    pub(crate) fn source(&self) -> Result<Source> {
        match &self.captions {
            Some(captions) if !self.features.is_empty() => {
                Ok(Source::Features { features: self.features.clone(), captions: captions.clone() })
            }
            _ if self.images.data.is_empty() => {
                Err(Error::usage("no data set is given; give --data, or --features with --captions"))
            }
            _ => self.images.source(),
        }
    }
}

impl ImageDataArguments {
    /// The data set that was asked for.
    pub(crate) fn source(&self) -> Result<Source> {
        if self.data.is_empty() {
            return Err(Error::usage("no data set is given; give --data"));
        }
        Source::of_images(&self.data, self.image_root.as_deref(), self.split.as_deref())
    }
}
