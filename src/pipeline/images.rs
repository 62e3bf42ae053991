//! Images, from wherever they come, and what the image encoder makes of them.

use super::Pipeline;
use super::engine::{Encoded, Engine, Input};
use crate::error::{Error, Result};
use crate::models::vision::image::{ImageProcessor, Rgb};
use crate::tensor::HostTensor;
use rayon::prelude::*;
use std::path::Path;
use std::sync::Arc;

/// An image as a program has it.
#[derive(Clone, Copy, Debug)]
pub enum Image<'a> {
    /// A JPEG, PNG or WebP file.
    File(&'a Path),
    /// The bytes of such a file.
    Bytes(&'a [u8]),
    /// Pixels.
    Rgb(&'a Rgb),
}

impl Image<'_> {
    /// Pixel values [3, S, S]; `number` is what messages call an image without a name.
    fn pixels(self, number: usize, processor: &ImageProcessor) -> Result<Vec<f32>> {
        let name = || format!("image {number}");
        match self {
            Self::File(path) => processor.read(path),
            Self::Bytes(bytes) => processor.decode(name().as_ref(), bytes),
            Self::Rgb(Rgb { pixels, width, height }) => processor
                .process(pixels, *width, *height)
                .map_err(|error| Error::value(format!("{}: {error}", name()))),
        }
    }
}

/// Pixel values [images, 3, S, S], decoded on all cores; the first of the images is number `first`.
pub(super) fn pixels(images: &[Image<'_>], first: usize, processor: &ImageProcessor) -> Result<HostTensor> {
    let numbered = images.par_iter().enumerate();
    let decoded: Vec<Result<Vec<f32>>> =
        numbered.map(|(index, image)| image.pixels(first + index, processor)).collect();
    let (height, width) = processor.size();
    let mut pixels = Vec::with_capacity(images.len() * 3 * height * width);
    for image in decoded {
        pixels.extend(image?);
    }
    HostTensor::new(&[images.len(), 3, height, width], pixels)
}

/// Images as the image encoder leaves them [I, N, W], before the last norm: read once, they can be embedded, matched and
/// captioned without being encoded again.
pub struct VisionOutput(Held);

enum Held {
    Host(HostTensor),
    /// On the device of the engine that encoded it.
    Device(Encoded, Arc<dyn Engine>),
}

impl From<HostTensor> for VisionOutput {
    /// Features [I, N, W] that an image encoder made earlier.
    fn from(features: HostTensor) -> Self {
        Self(Held::Host(features))
    }
}

impl VisionOutput {
    pub(super) fn on_device(encoded: Encoded, engine: Arc<dyn Engine>) -> Self {
        Self(Held::Device(encoded, engine))
    }

    /// The features [I, N, W] on the host, to be kept.
    ///
    /// # Errors
    /// Fails as the device does.
    pub fn to_host(&self) -> Result<HostTensor> {
        match &self.0 {
            Held::Host(features) => Ok(features.clone()),
            Held::Device(encoded, engine) => engine.to_host(encoded),
        }
    }

    /// Calls `read` with the features where `engine` finds them.
    fn read<R>(&self, engine: &Arc<dyn Engine>, read: impl FnOnce(Input<'_>) -> Result<R>) -> Result<R> {
        match &self.0 {
            Held::Host(features) => read(Input::Host(features)),
            Held::Device(encoded, home) if Arc::ptr_eq(home, engine) => read(Input::Device(encoded)),
            Held::Device(encoded, home) => read(Input::Host(&home.to_host(encoded)?)),
        }
    }
}

/// The images of a call: as a program has them, any number, or encoded before.
pub enum Images<'a> {
    /// To be encoded, a batch at a time.
    Raw(&'a [Image<'a>]),
    /// Encoded before.
    Encoded(&'a VisionOutput),
}

impl<'a> From<&'a [Image<'a>]> for Images<'a> {
    fn from(images: &'a [Image<'a>]) -> Self {
        Self::Raw(images)
    }
}

impl<'a, const COUNT: usize> From<&'a [Image<'a>; COUNT]> for Images<'a> {
    fn from(images: &'a [Image<'a>; COUNT]) -> Self {
        Self::Raw(images)
    }
}

impl<'a> From<&'a Vec<Image<'a>>> for Images<'a> {
    fn from(images: &'a Vec<Image<'a>>) -> Self {
        Self::Raw(images)
    }
}

impl<'a> From<&'a VisionOutput> for Images<'a> {
    fn from(images: &'a VisionOutput) -> Self {
        Self::Encoded(images)
    }
}

impl Images<'_> {
    /// Calls `read` with one batch after the other, and the number of the first image in it. It is called once at least:
    /// of no images, with none.
    pub(super) fn for_each_batch(
        self,
        pipeline: &Pipeline,
        mut read: impl FnMut(Input<'_>, usize) -> Result<()>,
    ) -> Result<()> {
        match self {
            Self::Encoded(output) => output.read(&pipeline.engine, |input| read(input, 0)),
            Self::Raw([]) => {
                let vision = &pipeline.config().vision;
                let none = HostTensor::new(&[0, vision.image_tokens(), vision.width()], Vec::new())?;
                read(Input::Host(&none), 0)
            }
            Self::Raw(images) => {
                for (batch, some) in images.chunks(pipeline.batch_size).enumerate() {
                    let first = batch * pipeline.batch_size;
                    let pixels = pixels(some, first, pipeline.image_processor()?)?;
                    read(Input::Device(&pipeline.engine.encode(&pixels)?), first)?;
                }
                Ok(())
            }
        }
    }
}
