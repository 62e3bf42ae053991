//! What becomes of an image before it is learnt from.

use std::ops::Range;

use super::draws::Draws;
use crate::error::Result;
use crate::vision::image::{ImageProcessor, Rgb};

/// How images are changed at random, anew in every epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Augmentation {
    /// Not at all: the image processor's own view.
    None,
    /// LAVIS's `blip2_image_train`: a random crop of half to all of the area and of 3:4 to 4:3, scaled
    /// to the processor's size, and mirrored half of the time.
    Blip2Train,
}

/// Share of the area that a crop has.
const SCALE: Range<f64> = 0.5..1.0;
/// Width to height of a crop.
const RATIO: Range<f64> = 3.0 / 4.0..4.0 / 3.0;
/// Crops tried before the image is cropped in its centre.
const ATTEMPTS: usize = 10;

/// A part of an image, in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Crop {
    top: usize,
    left: usize,
    height: usize,
    width: usize,
}

impl Augmentation {
    /// Pixel values [3, S, S] of `image`.
    pub(super) fn pixel_values(
        self,
        image: &Rgb,
        processor: &ImageProcessor,
        draws: &mut Draws,
    ) -> Result<Vec<f32>> {
        match self {
            Self::None => processor.process(&image.pixels, image.width, image.height),
            Self::Blip2Train => {
                let crop = Crop::draw(image.height, image.width, draws);
                let mut values = processor.process(&crop.of(image), crop.width, crop.height)?;
                if draws.uniform(0.0, 1.0) < 0.5 {
                    values.chunks_exact_mut(processor.size().1).for_each(<[f32]>::reverse);
                }
                Ok(values)
            }
        }
    }
}

impl Crop {
    /// As torchvision's `RandomResizedCrop` draws it.
    fn draw(height: usize, width: usize, draws: &mut Draws) -> Self {
        let area = (height * width) as f64;
        for _ in 0..ATTEMPTS {
            let target = area * draws.uniform(SCALE.start, SCALE.end);
            let ratio = draws.uniform(RATIO.start.ln(), RATIO.end.ln()).exp();
            let crop_width = (target * ratio).sqrt().round_ties_even() as usize;
            let crop_height = (target / ratio).sqrt().round_ties_even() as usize;
            if (1..=width).contains(&crop_width) && (1..=height).contains(&crop_height) {
                // Sides of images are below 2^32.
                let top = draws.below((height - crop_height + 1) as u32) as usize;
                let left = draws.below((width - crop_width + 1) as u32) as usize;
                return Self { top, left, height: crop_height, width: crop_width };
            }
        }
        Self::central(height, width)
    }

    /// The largest part in the centre whose shape is within the limits.
    fn central(height: usize, width: usize) -> Self {
        let ratio = width as f64 / height as f64;
        let (crop_height, crop_width) = if ratio < RATIO.start {
            ((width as f64 / RATIO.start).round_ties_even() as usize, width)
        } else if ratio > RATIO.end {
            (height, (height as f64 * RATIO.end).round_ties_even() as usize)
        } else {
            (height, width)
        };
        let (top, left) = ((height - crop_height) / 2, (width - crop_width) / 2);
        Self { top, left, height: crop_height, width: crop_width }
    }

    /// RGB8 pixels [height, width, 3] of this part of `image`.
    fn of(self, image: &Rgb) -> Vec<u8> {
        let rows = image.pixels.chunks_exact(image.width * 3).skip(self.top).take(self.height);
        rows.flat_map(|row| &row[self.left * 3..(self.left + self.width) * 3]).copied().collect()
    }
}
