//! RandAugment, as LAVIS's `blip_image_train` has it: two of ten operations, each done half of the time, at
//! level 5 of 10. Pixels are equal to LAVIS's, whose affine maps are those of OpenCV 4.5.

use crate::data::draws::Draws;

/// Operations that are drawn for an image.
const DRAWN: usize = 2;

/// What is drawn from.
const OPERATIONS: [Operation; 10] = [
    Operation::Identity,
    // Brightness and sharpness, whose factor 0.1 + 1.8·level/10 is 1 at this level.
    Operation::Identity,
    Operation::Identity,
    Operation::AutoContrast,
    Operation::Equalize,
    Operation::ShearX,
    Operation::ShearY,
    Operation::TranslateX,
    Operation::TranslateY,
    Operation::Rotate,
];

/// Pixels by which a row or a column is moved against the next; LAVIS has it in `f32`.
const SHEAR: f32 = 0.15;
/// Pixels by which an image is moved.
const TRANSLATION: f64 = 5.0;
/// Degrees by which an image is turned.
const ROTATION: f64 = 15.0;

/// What there is beyond the image's borders.
const FILL: u8 = 128;

/// Binary digits after the point of places, as they are computed …
const PLACE_BITS: i32 = 10;
/// … and as pixels are weighted by them.
const WEIGHT_BITS: i32 = 5;

/// One that takes a direction is done in either as often as in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Identity,
    AutoContrast,
    Equalize,
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
}

/// Changes the RGB8 pixels [height, width, 3] as drawn.
pub(super) fn rand_augment(pixels: &mut Vec<u8>, (height, width): (usize, usize), draws: &mut Draws) {
    for operation in [(); DRAWN].map(|()| OPERATIONS[draws.below(OPERATIONS.len() as u32) as usize]) {
        if draws.uniform(0.0, 1.0) < 0.5 {
            let direction = if draws.uniform(0.0, 1.0) < 0.5 { 1.0 } else { -1.0 };
            operation.apply(direction, pixels, (height, width));
        }
    }
}

impl Operation {
    fn apply(self, direction: f64, pixels: &mut Vec<u8>, size: (usize, usize)) {
        let shear = direction * f64::from(SHEAR);
        let translation = direction * TRANSLATION;
        let map = match self {
            Self::Identity => return,
            Self::AutoContrast => return change_levels(pixels, auto_contrast),
            Self::Equalize => return change_levels(pixels, equalize),
            Self::ShearX => Affine([[1.0, shear, 0.0], [0.0, 1.0, 0.0]]),
            Self::ShearY => Affine([[1.0, 0.0, 0.0], [shear, 1.0, 0.0]]),
            Self::TranslateX => Affine([[1.0, 0.0, -translation], [0.0, 1.0, 0.0]]),
            Self::TranslateY => Affine([[1.0, 0.0, 0.0], [0.0, 1.0, -translation]]),
            Self::Rotate => Affine::rotation(direction * ROTATION, size),
        };
        *pixels = map.apply(pixels, size);
    }
}

/// Replaces the levels of every channel by those of the table that `table` makes of their numbers.
fn change_levels(pixels: &mut [u8], table: impl Fn(&[usize; 256]) -> [u8; 256]) {
    let (pixels, _) = pixels.as_chunks_mut::<3>();
    for channel in 0..3 {
        let mut histogram = [0; 256];
        pixels.iter().for_each(|pixel| histogram[usize::from(pixel[channel])] += 1);
        let table = table(&histogram);
        pixels.iter_mut().for_each(|pixel| pixel[channel] = table[usize::from(pixel[channel])]);
    }
}

/// Every level as it is.
fn same() -> [u8; 256] {
    std::array::from_fn(|level| level as u8)
}

/// Stretches the levels to all from 0 to 255, as Pillow does. LAVIS means the same, but subtracts the lowest level
/// in eight bits: an image without black becomes white there.
fn auto_contrast(histogram: &[usize; 256]) -> [u8; 256] {
    let is_met = |level: &usize| histogram[*level] > 0;
    let (Some(low), Some(high)) = ((0..256).find(is_met), (0..256).rfind(is_met)) else { return same() };
    if low == high {
        return same();
    }
    let scale = 255.0 / (high - low) as f64;
    let offset = -(low as f64) * scale;
    // A cast keeps within the bounds.
    std::array::from_fn(|level| (level as f64 * scale + offset) as u8)
}

/// Makes the levels about equally frequent, as Pillow does.
fn equalize(histogram: &[usize; 256]) -> [u8; 256] {
    let highest = histogram.iter().rfind(|&&count| count > 0).copied().unwrap_or(0);
    let step = (histogram.iter().sum::<usize>() - highest) / 255;
    if step == 0 {
        return same();
    }
    let mut below = step / 2;
    std::array::from_fn(|level| {
        let equal = (below / step).min(255) as u8;
        below += histogram[level];
        equal
    })
}

/// Where places of an image go: x' = a·x + b·y + c and y' = d·x + e·y + f, by rows.
struct Affine([[f64; 3]; 2]);

impl Affine {
    /// Turns an image about its centre.
    fn rotation(degrees: f64, (height, width): (usize, usize)) -> Self {
        let (sine, cosine) = libm::sincos(degrees * std::f64::consts::PI / 180.0);
        let (x, y) = (width as f64 / 2.0, height as f64 / 2.0);
        Self([[cosine, sine, (1.0 - cosine) * x - sine * y], [-sine, cosine, sine * x + (1.0 - cosine) * y]])
    }

    fn inverse(&self) -> Self {
        let [[a, b, c], [d, e, f]] = self.0;
        let scale = 1.0 / (a * e - b * d);
        let [a, b, d, e] = [e * scale, -b * scale, -d * scale, a * scale];
        Self([[a, b, -a * c - b * f], [d, e, -d * c - e * f]])
    }

    /// The image with its pixels moved, each weighted from four by whole numbers.
    fn apply(&self, pixels: &[u8], (height, width): (usize, usize)) -> Vec<u8> {
        let Self([[a, b, c], [d, e, f]]) = self.inverse();
        let fixed = |place: f64| (place * f64::from(1 << PLACE_BITS)).round_ties_even() as i32;
        let (image, _) = pixels.as_chunks::<3>();
        let at = |x: i32, y: i32| match (usize::try_from(x), usize::try_from(y)) {
            (Ok(x), Ok(y)) if x < width && y < height => image[y * width + x],
            _ => [FILL; 3],
        };
        let spare = PLACE_BITS - WEIGHT_BITS;
        let half = 1 << (spare - 1);
        let mut moved = Vec::with_capacity(pixels.len());
        for row in 0..height {
            let begin = [fixed(b * row as f64 + c) + half, fixed(e * row as f64 + f) + half];
            for column in 0..width {
                let along = [fixed(a * column as f64), fixed(d * column as f64)];
                let [x, y] = std::array::from_fn(|axis| (begin[axis] + along[axis]) >> spare);
                let (left, top) = (x >> WEIGHT_BITS, y >> WEIGHT_BITS);
                let one = 1 << WEIGHT_BITS;
                let (right, lower) = (x & (one - 1), y & (one - 1));
                let weighted = [
                    ((one - right) * (one - lower), at(left, top)),
                    (right * (one - lower), at(left + 1, top)),
                    ((one - right) * lower, at(left, top + 1)),
                    (right * lower, at(left + 1, top + 1)),
                ];
                moved.extend((0..3).map(|channel| {
                    let sum: i32 = weighted.iter().map(|(w, pixel)| w * i32::from(pixel[channel])).sum();
                    ((sum + one * one / 2) >> (2 * WEIGHT_BITS)) as u8
                }));
            }
        }
        moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::draws::Purpose;
    use crate::models::vision::image::Rgb;
    use std::path::Path;

    fn golden(name: &str) -> Rgb {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/rand_augment");
        Rgb::read(&folder.join(format!("{name}.png"))).unwrap()
    }

    #[test]
    fn every_operation_makes_the_pixels_that_lavis_makes() {
        for (operation, direction, from, to) in [
            // make.py makes sure that LAVIS's brightness and sharpness do nothing either.
            (Operation::Identity, 1.0, "picture", "picture"),
            (Operation::AutoContrast, 1.0, "picture", "auto-contrast"),
            (Operation::AutoContrast, 1.0, "raised", "raised-auto-contrast"),
            (Operation::Equalize, 1.0, "picture", "equalize"),
            (Operation::ShearX, 1.0, "picture", "shear-x-plus"),
            (Operation::ShearX, -1.0, "picture", "shear-x-minus"),
            (Operation::ShearY, 1.0, "picture", "shear-y-plus"),
            (Operation::ShearY, -1.0, "picture", "shear-y-minus"),
            (Operation::TranslateX, 1.0, "picture", "translate-x-plus"),
            (Operation::TranslateX, -1.0, "picture", "translate-x-minus"),
            (Operation::TranslateY, 1.0, "picture", "translate-y-plus"),
            (Operation::TranslateY, -1.0, "picture", "translate-y-minus"),
            (Operation::Rotate, 1.0, "picture", "rotate-plus"),
            (Operation::Rotate, -1.0, "picture", "rotate-minus"),
        ] {
            let Rgb { mut pixels, width, height } = golden(from);
            operation.apply(direction, &mut pixels, (height, width));
            assert!(pixels == golden(to).pixels, "{to}");
        }
    }

    #[test]
    fn an_image_of_one_colour_keeps_its_levels() {
        for operation in [Operation::AutoContrast, Operation::Equalize] {
            let mut pixels = [7, 0, 255].repeat(600);
            operation.apply(1.0, &mut pixels, (20, 30));
            assert!(pixels == [7, 0, 255].repeat(600), "{operation:?}");
        }
    }

    #[test]
    fn two_of_the_operations_are_done_half_of_the_time_each() {
        let Rgb { pixels, width, height } = golden("raised");
        let augmented = |example| {
            let mut augmented = pixels.clone();
            let mut draws = Draws::new(42, Purpose::Augmentation, 0, example);
            rand_augment(&mut augmented, (height, width), &mut draws);
            augmented
        };
        let unchanged = (0..2000).filter(|&example| augmented(example) == pixels).count();
        // Each does something with 0.5·0.7: neither does with 0.65², or 845 times, with a standard deviation of 22.
        // A movement there and back leaves borders that differ.
        assert!((755..935).contains(&unchanged), "{unchanged}");
        assert_eq!(augmented(3), augmented(3));
    }
}
