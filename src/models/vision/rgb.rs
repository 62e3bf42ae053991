//! A decoded image, and which are refused.

use crate::error::{Error, Result};
use std::path::Path;

/// Most pixels of an image: Pillow warns of a decompression bomb above this number.
const MAX_PIXELS: u64 = 89_478_485;

/// Longest side of an image, in pixels.
pub(super) const MAX_SIDE: u32 = 32_768;

/// A decoded image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rgb {
    /// RGB8 [height, width, 3]
    pub pixels: Vec<u8>,
    /// In pixels.
    pub width: usize,
    /// In pixels.
    pub height: usize,
}

/// Refuses an image that is too large.
pub(super) fn check_size(path: &Path, width: u32, height: u32) -> Result<()> {
    let side = 1..=MAX_SIDE;
    let pixels = u64::from(width) * u64::from(height);
    if !side.contains(&width) || !side.contains(&height) || pixels > MAX_PIXELS {
        let what = format!(
            "has {width}x{height} pixels, outside the limits of 1 to {MAX_SIDE} a side and {MAX_PIXELS} in all; \
             scale it"
        );
        return Err(Error::input(path, what));
    }
    Ok(())
}

/// The error of an image of other colours, where they are not to be converted.
pub(super) fn not_rgb(path: &Path) -> Error {
    let what = "is not RGB, and the image processor has do_convert_rgb false; convert the image to RGB";
    Error::input(path, what)
}
