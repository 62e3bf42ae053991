//! Decoding of JPEG by libjpeg's own code, as Pillow has it: the same pixels, byte for byte.

use super::rgb::{Rgb, check_size, not_rgb};
use crate::error::{Error, Result};
use mozjpeg::{ColorSpace, Decompress};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;

/// Most scans that are decoded. Progressive files have about ten; each costs a pass over the whole image, so a small
/// file of very many would take hours.
const MAX_SCANS: usize = 500;

/// Decodes a JPEG. Of one with wrong data in the middle the decoder makes what it can, as Pillow does.
pub(super) fn decode(path: &Path, bytes: &[u8], convert_rgb: bool) -> Result<Rgb> {
    let scans = scans(bytes)
        .ok_or_else(|| Error::input(path, "is truncated: a JPEG without its end; copy it again"))?;
    if scans > MAX_SCANS {
        let what = format!("has {scans} scans, and at most {MAX_SCANS} are decoded; save the image anew");
        return Err(Error::input(path, what));
    }
    // libjpeg ends at an error by its handler, which must not return: the crate's unwinds with the message.
    let decoded = catch_unwind(AssertUnwindSafe(|| read(path, bytes, convert_rgb)));
    decoded.unwrap_or_else(|payload| match payload.downcast::<String>() {
        Ok(message) => match message.strip_prefix("libjpeg fatal error: ") {
            Some(why) => Err(refused(path, why)),
            None => resume_unwind(message),
        },
        Err(panic) => resume_unwind(panic),
    })
}

fn refused(path: &Path, why: &str) -> Error {
    Error::input(path, format!("cannot be decoded: {why}; save the image anew"))
}

fn read(path: &Path, bytes: &[u8], convert_rgb: bool) -> Result<Rgb> {
    let failed = |error: io::Error| refused(path, &error.to_string());
    let header = Decompress::new_mem(bytes).map_err(failed)?;
    let (width, height) = header.size();
    check_size(path, side(width), side(height))?;
    let (space, channels) = match header.color_space() {
        ColorSpace::JCS_GRAYSCALE => (ColorSpace::JCS_GRAYSCALE, 1),
        ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => (ColorSpace::JCS_CMYK, 4),
        _ => (ColorSpace::JCS_RGB, 3),
    };
    if !convert_rgb && channels != 3 {
        return Err(not_rgb(path));
    }
    let size = width * height * channels;
    let mut samples = Vec::new();
    samples.try_reserve_exact(size).map_err(|_| Error::out_of_memory(size, "a decoded image"))?;
    samples.resize(size, 0);
    let mut image = header.to_colorspace(space).map_err(failed)?;
    image.read_scanlines_into::<u8>(&mut samples).map_err(failed)?;
    image.finish().map_err(failed)?;
    let pixels = match channels {
        1 => samples.into_iter().flat_map(|grey| [grey; 3]).collect(),
        4 => samples.as_chunks().0.iter().flat_map(rgb_of_cmyk).collect(),
        _ => samples,
    };
    Ok(Rgb { pixels, width, height })
}

/// A side as 32 bits; one that has more is beyond all limits.
fn side(pixels: usize) -> u32 {
    u32::try_from(pixels).unwrap_or(u32::MAX)
}

/// Pillow's conversion of inks, which a JPEG has inverted, as Adobe writes them.
fn rgb_of_cmyk(inverted: &[u8; 4]) -> [u8; 3] {
    let [c, m, y, k] = inverted.map(u32::from);
    [c, m, y].map(|ink| {
        // 255 − black, less its share that the ink takes: a·b/255, rounded.
        let product = (255 - ink) * k + 128;
        (k - ((product + (product >> 8)) >> 8)) as u8
    })
}

/// How many scans a JPEG's segments lead through to the end-of-image marker; none without that.
fn scans(jpeg: &[u8]) -> Option<usize> {
    let (mut rest, mut scans) = (jpeg, 0);
    while let Some(at) = rest.iter().position(|&byte| byte == 0xff) {
        rest = &rest[at + 1..];
        match *rest {
            [0xd9, ..] => return Some(scans),
            // A stuffed byte, a marker without a segment, or a fill byte before a marker.
            [0x00 | 0x01 | 0xd0..=0xd8 | 0xff, ..] => {}
            [marker, high, low, ..] => {
                scans += usize::from(marker == 0xda);
                let length = usize::from(u16::from_be_bytes([high, low]));
                rest = rest.get(1 + length..).unwrap_or_default();
            }
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::scans;

    #[test]
    fn an_end_of_image_inside_a_segment_does_not_end_the_jpeg() {
        let thumbnail = b"\xff\xd8\xff\xe1\x00\x06\xff\xd8\xff\xd9\xff\xda\x00\x02\x12\xff\x00\x34";
        assert_eq!(scans(thumbnail), None);
        assert_eq!(scans(&[&thumbnail[..], b"\xff\xd9trailing"].concat()), Some(1));
    }
}
