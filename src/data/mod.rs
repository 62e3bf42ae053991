//! What is learnt from: images with their captions, from files to batches.
//!
//! A [`Source`] says where a data set is, a [`Dataset`] is one opened, and a [`Loader`] makes batches of
//! it, ahead of the step that learns from them.

mod augment;
mod batches;
mod caption;
mod dataset;
mod draws;
mod loader;
mod producer;
mod sources;
mod text_list;

pub use augment::Augmentation;
pub use batches::{Loaded, LoaderOptions, Order};
pub use caption::clean_caption;
pub use dataset::{Dataset, Kind};
pub use loader::Loader;
pub use sources::Source;
pub use sources::features::{ENCODER, NAMES, VISION_OUTPUT};
pub use text_list::{Caption, Captions, TextList};

use crate::tensor::HostTensor;
use serde::{Deserialize, Serialize};

/// Examples for a step, in the order in which they are learnt.
#[derive(Clone, Debug, PartialEq)]
pub struct Examples {
    /// One image each.
    pub images: Images,
    /// Token ids, `[CLS]` first and `[SEP]` last.
    pub texts: Vec<Vec<u32>>,
    /// Which image of the data set each is; captions of one image are all positives.
    pub image_ids: Vec<u32>,
    /// What to call each in a message.
    pub names: Vec<String>,
}

/// Images as a model takes them.
#[derive(Clone, Debug, PartialEq)]
pub enum Images {
    /// [B, 3, S, S]
    Pixels(HostTensor),
    /// The image encoder's output before its last norm [B, N, W]
    Features(HostTensor),
}

/// Where a run stands in the endless stream of examples, epoch after epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Counted from 0.
    pub epoch: u64,
    /// How many of the epoch's examples are behind.
    pub example: u64,
}
