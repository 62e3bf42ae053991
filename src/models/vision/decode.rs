//! Decoding of JPEG, PNG and WebP files from strangers into RGB8 pixels.

use std::io::{Cursor, Read};
use std::panic::{UnwindSafe, catch_unwind};
use std::path::Path;

use image::codecs::png::PngDecoder;
use image::codecs::webp::WebPDecoder;
use image::{ColorType, ImageDecoder, ImageError, Limits};

use super::jpeg;
use super::rgb::{Rgb, check_size, not_rgb};
use crate::error::{Error, Result};
use crate::input;

/// How the names of image files end.
pub const EXTENSIONS: [&str; 4] = ["jpg", "jpeg", "png", "webp"];

/// Largest image file read, in bytes.
pub(super) const MAX_FILE: u64 = 64 << 20;

/// Memory a decoder may take for the rows in flight and for metadata, in bytes.
const MAX_DECODER_MEMORY: u64 = 64 << 20;

/// The bytes of the regular file `path`, which may be `limit` bytes long.
pub(super) fn read_regular_file(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, _) = input::open(path)?;
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, "read", e))?;
    if bytes.len() as u64 > limit {
        let what = format!("is larger than the {limit} bytes that are read; give a smaller file");
        return Err(Error::input(path, what));
    }
    Ok(bytes)
}

/// Decodes the JPEG, PNG or WebP file `path`; see [`decode_rgb`].
pub(super) fn read_rgb(path: &Path, convert_rgb: bool) -> Result<Rgb> {
    decode_rgb(path, &read_regular_file(path, MAX_FILE)?, convert_rgb)
}

/// Decodes a JPEG, PNG or WebP image, which messages call `path`; its first bytes, not its name, tell which
/// it is. Of an animation it is the first frame.
///
/// Without `convert_rgb`, greyscale images and images with alpha are errors.
pub(super) fn decode_rgb(path: &Path, bytes: &[u8], convert_rgb: bool) -> Result<Rgb> {
    contain_panic(path, || {
        if bytes.starts_with(b"\x89PNG\r\n\x1a\n") {
            let mut limits = Limits::no_limits();
            limits.max_alloc = Some(MAX_DECODER_MEMORY);
            let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits);
            decode(path, decoder, convert_rgb)
        } else if bytes.starts_with(b"\xff\xd8\xff") {
            jpeg::decode(path, bytes, convert_rgb)
        } else if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            decode(path, WebPDecoder::new(Cursor::new(bytes)), convert_rgb)
        } else if bytes.is_empty() {
            Err(Error::input(path, "is empty; give a JPEG, PNG or WebP image"))
        } else {
            Err(Error::input(
                path,
                "is neither JPEG, PNG nor WebP by its first bytes; convert it to one of them",
            ))
        }
    })
}

/// Runs `decode` and turns a panic in it into an error of `path`.
fn contain_panic<T>(path: &Path, decode: impl FnOnce() -> Result<T> + UnwindSafe) -> Result<T> {
    catch_unwind(decode)
        .unwrap_or_else(|_| Err(Error::input(path, "makes the image decoder fail; save the image anew")))
}

/// The pixels of an image whose header has been read.
fn decode(path: &Path, decoder: image::ImageResult<impl ImageDecoder>, convert_rgb: bool) -> Result<Rgb> {
    let refuse = |error| match error {
        ImageError::Limits(_) => Error::input(
            path,
            "has rows or metadata that are too large; scale it down and strip the metadata",
        ),
        error => Error::input(path, format!("cannot be decoded: {error}; save the image anew")),
    };
    let decoder = decoder.map_err(refuse)?;
    let (width, height) = decoder.dimensions();
    check_size(path, width, height)?;
    let color = decoder.color_type();
    if !convert_rgb && !matches!(color, ColorType::Rgb8 | ColorType::Rgb16) {
        return Err(not_rgb(path));
    }
    let size = decoder.total_bytes() as usize;
    let mut pixels = Vec::new();
    pixels.try_reserve_exact(size).map_err(|_| Error::out_of_memory(size, "a decoded image"))?;
    pixels.resize(size, 0);
    decoder.read_image(&mut pixels).map_err(refuse)?;
    Ok(Rgb { pixels: to_rgb8(pixels, color), width: width as usize, height: height as usize })
}

/// `pixels` as RGB8: grey repeated, alpha dropped, the high byte of 16-bit samples.
fn to_rgb8(pixels: Vec<u8>, color: ColorType) -> Vec<u8> {
    let channels = usize::from(color.channel_count());
    let sample = usize::from(color.bytes_per_pixel()) / channels;
    if (channels, sample) == (3, 1) {
        return pixels;
    }
    // Samples of 16 bits come in the machine's byte order.
    let high = if cfg!(target_endian = "little") { sample - 1 } else { 0 };
    let step = if color.has_color() { sample } else { 0 };
    pixels
        .chunks_exact(channels * sample)
        .flat_map(|pixel| [pixel[high], pixel[high + step], pixel[high + 2 * step]])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_in_a_decoder_is_an_error_that_names_the_file() {
        let error = contain_panic::<()>(Path::new("cat.jpg"), || panic!("planted")).unwrap_err();
        assert!(error.to_string().starts_with("cat.jpg: makes the image decoder fail"), "{error}");
    }
}
