//! What becomes of an image before it is learnt from.

mod rand_augment;

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::data::draws::Draws;
use crate::error::Result;
use crate::models::vision::image::{ImageProcessor, Rgb};
use rand_augment::rand_augment;

/// How images are changed at random, anew in every epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Not at all: the image processor's own view.
    None,
    /// LAVIS's `blip2_image_train`: a random crop of half to all of the area and of 3:4 to 4:3, scaled
    /// to the processor's size, and mirrored half of the time.
    Blip2Train,
    /// LAVIS's `blip_image_train`: the same, then RandAugment.
    BlipTrain,
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
        if self == Self::None {
            return processor.process(&image.pixels, image.width, image.height);
        }
        let crop = Crop::draw(image.height, image.width, draws);
        let mut pixels = processor.resize(&crop.of(image), crop.width, crop.height)?;
        if draws.uniform(0.0, 1.0) < 0.5 {
            let (all, _) = pixels.as_chunks_mut::<3>();
            all.chunks_exact_mut(processor.size().1).for_each(<[[u8; 3]]>::reverse);
        }
        if self == Self::BlipTrain {
            rand_augment(&mut pixels, processor.size(), draws);
        }
        Ok(processor.normalize(&pixels))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::draws::Purpose;

    fn draws(example: u32) -> Draws {
        Draws::new(42, Purpose::Augmentation, 0, example)
    }

    fn gradient(height: usize, width: usize) -> Rgb {
        let pixel = |at: usize| [at % width, at / width, at * at].map(|value| value as u8);
        Rgb { pixels: (0..height * width).flat_map(pixel).collect(), width, height }
    }

    #[test]
    fn crops_have_half_to_all_of_the_area_and_reach_every_border() {
        let (height, width) = (200, 230);
        let (mut areas, mut borders) = (0.0, [false; 4]);
        for example in 0..2000 {
            let crop = Crop::draw(height, width, &mut draws(example));
            let Crop { top, left, .. } = crop;
            let share = (crop.height * crop.width) as f64 / (height * width) as f64;
            let ratio = crop.width as f64 / crop.height as f64;
            assert!(top + crop.height <= height && left + crop.width <= width, "{crop:?}");
            // Sides are rounded to whole pixels of more than a hundred: by less than half a percent each.
            assert!((0.495..=1.0).contains(&share) && (0.744..=1.344).contains(&ratio), "{crop:?}");
            areas += share / 2000.0;
            let at = [top == 0, left == 0, top + crop.height == height, left + crop.width == width];
            borders.iter_mut().zip(at).for_each(|(seen, at)| *seen |= at);
        }
        // Uniform from 0.5 to 1 but for the large ones that do not fit in their shape.
        assert!((0.68..0.75).contains(&areas) && borders == [true; 4], "{areas} {borders:?}");
    }

    #[test]
    fn as_many_crops_are_wide_as_are_high() {
        let wide = |&example: &u32| {
            let crop = Crop::draw(1000, 1000, &mut draws(example));
            crop.width > crop.height
        };
        let wide = (0..2000).filter(wide).count();
        // 1000, with a standard deviation of 22; 1140 if ratios were drawn evenly from 3:4 to 4:3.
        assert!((930..1070).contains(&wide), "{wide}");
    }

    #[test]
    fn the_older_recipe_sees_the_same_crop_and_then_augments_it() {
        let (image, processor) = (gradient(40, 30), ImageProcessor::blip2(16));
        let view = |augmentation: Augmentation, example| {
            augmentation.pixel_values(&image, &processor, &mut draws(example)).unwrap()
        };
        let same = |&example: &u32| {
            view(Augmentation::BlipTrain, example) == view(Augmentation::Blip2Train, example)
        };
        let same = (0..200).filter(same).count();
        // 85 and a few whose levels are spread already, with a standard deviation of 7.
        assert!((57..130).contains(&same), "{same}");
    }

    #[test]
    fn an_image_too_long_for_any_crop_is_cropped_in_its_centre() {
        let crop = |height, width| {
            let Crop { top, left, height, width } = Crop::draw(height, width, &mut draws(0));
            [top, left, height, width]
        };
        assert_eq!(crop(30, 300), [0, 130, 30, 40]);
        assert_eq!(crop(300, 30), [130, 0, 40, 30]);
        assert_eq!(crop(1, 1), [0, 0, 1, 1]);
        assert_eq!(crop(1, 9), [0, 4, 1, 1]);
    }

    #[test]
    fn a_view_is_the_crop_scaled_and_half_of_them_are_mirrored() {
        let (image, processor) = (gradient(40, 30), ImageProcessor::blip2(8));
        let mut mirrored = 0;
        for example in 0..200 {
            let values =
                Augmentation::Blip2Train.pixel_values(&image, &processor, &mut draws(example)).unwrap();
            let Crop { top, left, height, width } = Crop::draw(40, 30, &mut draws(example));
            let part: Vec<u8> = (top..top + height)
                .flat_map(|row| image.pixels[(row * 30 + left) * 3..][..width * 3].to_vec())
                .collect();
            let mut expected = processor.process(&part, width, height).unwrap();
            if values != expected {
                expected.chunks_mut(8).for_each(<[f32]>::reverse);
                mirrored += 1;
            }
            assert_eq!(values, expected);
        }
        // 100, with a standard deviation of 7.
        assert!((70..130).contains(&mirrored), "{mirrored}");
    }
}
