//! Resampling of RGB8 images, equal byte for byte to Pillow 12's `Image.resize`.
//!
//! The semantics are those of Pillow's `Resample.c`: every output pixel is a weighted sum of the
//! source pixels under a filter whose support grows with the reduction (antialiasing); the
//! weights are integers of 22 fraction bits; the columns are resampled first, into bytes, then
//! the rows.

/// The filter that weighs the source pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filter {
    /// The triangle filter.
    Bilinear,
    /// Keys' cubic convolution with a = -0.5.
    Bicubic,
}

impl Filter {
    /// Half the filter's width in source pixels, when nothing is reduced.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter's value at distance `x` from its centre.
    fn value(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear if x < 1.0 => 1.0 - x,
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// Fraction bits of a weight.
const PRECISION: u32 = 22;

/// One half in a weight's fixed point: sums start here, so that they round to nearest.
const HALF: i32 = 1 << (PRECISION - 1);

/// The source pixels of one output pixel along one axis.
struct Window {
    start: usize,
    weights: Vec<i32>,
}

/// The windows of all `to` output pixels over `from` source pixels.
fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    let inverse = 1.0 / filter_scale;
    let window = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let start = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let values: Vec<f64> =
            (start..end).map(|j| filter.value((j as f64 - centre + 0.5) * inverse)).collect();
        let sum: f64 = values.iter().sum();
        Window { start, weights: values.iter().map(|value| fixed_point(value / sum)).collect() }
    };
    (0..to).map(window).collect()
}

/// `weight` in fixed point, halves rounded away from zero.
fn fixed_point(weight: f64) -> i32 {
    (weight * f64::from(1 << PRECISION) + 0.5_f64.copysign(weight)) as i32
}

/// The byte nearest to a sum in fixed point that started at [`HALF`].
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

/// `sum + value * weight`. Neither operation can overflow: the weights of a window add up to one
/// and their magnitudes to less than 1.5, which leaves 255 times that below 2^31. Wrapping
/// operations keep the checks out of the innermost loops.
fn multiply_add(sum: i32, value: u8, weight: i32) -> i32 {
    sum.wrapping_add(i32::from(value).wrapping_mul(weight))
}

/// Resamples RGB8 pixels [height, width, 3] from `from` to `to`, both (height, width).
///
/// `rgb` holds `from.0 * from.1 * 3` bytes, and no side is zero.
pub(super) fn resize(rgb: &[u8], from: (usize, usize), to: (usize, usize), filter: Filter) -> Vec<u8> {
    let columns = resize_columns(rgb, from, to.1, filter);
    resize_rows(&columns, (from.0, to.1), to.0, filter)
}

/// Resamples every row of `rgb` [height, from width, 3] to `width` pixels.
fn resize_columns(rgb: &[u8], from: (usize, usize), width: usize, filter: Filter) -> Vec<u8> {
    let windows = windows(from.1, width, filter);
    let mut resized = vec![0; from.0 * width * 3];
    for (row, resized) in rgb.chunks_exact(from.1 * 3).zip(resized.chunks_exact_mut(width * 3)) {
        let (row, _) = row.as_chunks::<3>();
        let (resized, _) = resized.as_chunks_mut::<3>();
        for (window, pixel) in windows.iter().zip(resized) {
            let [mut red, mut green, mut blue] = [HALF; 3];
            for (&[r, g, b], &weight) in row[window.start..].iter().zip(&window.weights) {
                red = multiply_add(red, r, weight);
                green = multiply_add(green, g, weight);
                blue = multiply_add(blue, b, weight);
            }
            *pixel = [red, green, blue].map(to_byte);
        }
    }
    resized
}

/// Resamples every column of `rgb` [from height, width, 3] to `height` pixels.
fn resize_rows(rgb: &[u8], from: (usize, usize), height: usize, filter: Filter) -> Vec<u8> {
    let stride = from.1 * 3;
    let mut resized = vec![0; height * stride];
    let mut sums = vec![HALF; stride];
    for (window, resized) in windows(from.0, height, filter).iter().zip(resized.chunks_exact_mut(stride)) {
        sums.fill(HALF);
        for (row, &weight) in rgb.chunks_exact(stride).skip(window.start).zip(&window.weights) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum = multiply_add(*sum, value, weight);
            }
        }
        for (byte, &sum) in resized.iter_mut().zip(&sums) {
            *byte = to_byte(sum);
        }
    }
    resized
}
