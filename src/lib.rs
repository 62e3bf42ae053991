//! BLIP-2's Querying Transformer: 32 learned queries read a frozen image encoder's features through
//! cross-attention and speak to text through masked shared self-attention.
//!
//! ```
//! use qformer::{DeviceName, Image, Pipeline};
//!
//! # fn main() -> qformer::Result<()> {
//! let pipeline = Pipeline::open("tests/golden/retrieval/model", DeviceName::Auto)?;
//! let photographs = [Image::File("tests/golden/retrieval/images/coffee.png".as_ref())];
//! let images = pipeline.image_features(&photographs)?;
//! let texts = pipeline.text_features(&["a cup of coffee", "two dogs run in the snow"])?;
//! let similarity = pipeline.similarity(&images, &texts)?;
//! assert_eq!(similarity.shape(), [1, 2]);
//! # Ok(())
//! # }
//! ```
//!
//! # A tour
//! A [`Pipeline`] is a checkpoint opened once, on a device chosen when the program runs. It takes images as files, bytes or
//! pixels, and texts as words, and gives features, similarities, matching scores, captions, answers and attention maps. Under
//! it are the models, each generic in its device:
//!
//! | step | type | from → to |
//! |---|---|---|
//! | read a photograph | [`ImageProcessor`] | file → pixels [B, 3, S, S] |
//! | encode it | [`VisionEncoder`] | pixels → image features [B, N, W] |
//! | read a text | [`Tokenizer`] | text → token ids |
//! | query | [`QFormer`] | image features, token ids → features, similarities, matching scores |
//! | speak | [`models::language::LanguageModel`] | query outputs, prompts → texts, by a frozen OPT or T5 |
//! | caption | [`Captioner`] | image features → captions, by the Q-Former's own language-modelling head |
//!
//! What the encoder makes of images can stay on the device ([`DeviceTensor`]) or be kept on the host ([`HostTensor`]), so
//! that the encoder, by far the larger part, need not run twice. Training is [`train`].
//!
//! The letters of shapes are explained in [`config`].
//!
//! How the crate is built, and how to add an operation, a layer or a model, is told in [`architecture`].
//!
//! # Errors
//! Whatever comes from outside, be it a file, a shape or a token, is checked and refused with an
//! [`Error`] that names it; panics are for mistakes of this crate's own.

// What only those reach is not dead for others.
#![cfg_attr(not(feature = "engine"), allow(dead_code, unused_imports, unreachable_pub))]

#[doc = include_str!("architecture.md")]
pub mod architecture {}
pub mod config;
pub mod data;
pub mod error;
pub mod evaluate;
pub mod generate;
mod input;
pub mod models;
pub mod params;
pub mod pipeline;
pub mod tokenizer;
pub mod train;

// The engine: public for this crate's own programs, tests and benchmarks.
#[cfg(feature = "engine")]
pub mod device;
#[cfg(feature = "engine")]
pub mod layers;
#[cfg(feature = "engine")]
pub mod memory;
#[cfg(feature = "engine")]
pub mod ops;
#[cfg(feature = "engine")]
pub mod output;
#[cfg(feature = "engine")]
pub mod random;
#[cfg(feature = "engine")]
pub mod tensor;

#[cfg(not(feature = "engine"))]
mod device;
#[cfg(not(feature = "engine"))]
mod layers;
#[cfg(not(feature = "engine"))]
mod memory;
#[cfg(not(feature = "engine"))]
mod ops;
#[cfg(not(feature = "engine"))]
mod output;
#[cfg(not(feature = "engine"))]
mod random;
#[cfg(not(feature = "engine"))]
mod tensor;

pub use config::Config;
pub use device::Cpu;
#[cfg(feature = "cuda")]
pub use device::Cuda;
pub use error::{Error, Result};
pub use memory::{DeviceTensor, PlacedTensor, Shaped, TensorInput};
pub use models::qformer::{Caption, Captioner, ImageFeatures, Match, Matching, QFormer};
pub use models::vision::encoder::VisionEncoder;
pub use models::vision::image::ImageProcessor;
pub use ops::Backend;
pub use pipeline::{
    Chat, DeviceName, GeneratedText, Image, Images, OnDevice, Parts, Pipeline, PipelineBuilder, Ranked,
    TextTask, VisionOutput, WeightType,
};
pub use tensor::HostTensor;
pub use tokenizer::Tokenizer;

/// The README's examples, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
