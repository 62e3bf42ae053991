//! The image processor: from an image file to the pixel values the image encoder takes.
//!
//! Does what transformers' `BlipImageProcessor` does with Pillow 12: convert to RGB, resize to a
//! fixed height and width whatever the aspect ratio, rescale, normalise.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::decode;
use super::resize::{Filter, resize};
use super::rgb::MAX_SIDE;
use crate::error::{Error, Result};

pub use super::decode::EXTENSIONS;
pub use super::rgb::Rgb;

/// Greatest height and width of the pixel values.
const MAX_SIZE: usize = 4096;

/// Largest settings file read, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;

/// Largest image file read, in bytes.
pub const MAX_FILE: u64 = decode::MAX_FILE;

impl Rgb {
    /// Decodes the JPEG, PNG or WebP file `path`, converted to RGB; see [`ImageProcessor::read`].
    ///
    /// # Errors
    ///
    /// As `ImageProcessor::read`, but for what concerns its settings.
    pub fn read(path: &Path) -> Result<Self> {
        decode::read_rgb(path, true)
    }

    /// The same from a file's bytes; `path` is what messages call it.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        decode::decode_rgb(path, bytes, true)
    }
}

/// How a checkpoint wants its images: `BlipImageProcessor`'s settings.
///
/// ```
/// # fn main() -> qformer::Result<()> {
/// let processor = qformer::ImageProcessor::load("tests/golden/retrieval/model".as_ref())?;
/// let (height, width) = processor.size();
/// let pixels = processor.read("tests/golden/retrieval/images/coffee.png".as_ref())?;
/// assert_eq!(pixels.len(), 3 * height * width);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ImageProcessor {
    do_convert_rgb: bool,
    do_resize: bool,
    /// Height, width.
    size: (usize, usize),
    resample: Filter,
    do_rescale: bool,
    rescale_factor: f64,
    do_normalize: bool,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

impl ImageProcessor {
    /// BLIP-2's settings for images of `size` by `size` pixels (1 to 4096): bicubic, values from
    /// 0 to 1 normalised by CLIP's mean and standard deviation.
    pub fn blip2(size: usize) -> Self {
        Self {
            do_convert_rgb: true,
            do_resize: true,
            size: (size, size),
            resample: Filter::Bicubic,
            do_rescale: true,
            rescale_factor: 1.0 / 255.0,
            do_normalize: true,
            image_mean: [0.48145466, 0.4578275, 0.40821073],
            image_std: [0.26862954, 0.26130258, 0.27577711],
        }
    }

    /// The settings of the checkpoint folder `dir`: `image_processor` of its
    /// `processor_config.json` if there is one, else its `preprocessor_config.json`. A setting
    /// that is absent or null has `BlipImageProcessor`'s default.
    ///
    /// # Errors
    ///
    /// If neither file is there, if the one that counts is not a JSON object, and if it asks for
    /// what is not done here: another class of image processor, cropping, padding, a filter
    /// other than bilinear and bicubic, a size outside 1 to 4096.
    pub fn load(dir: &Path) -> Result<Self> {
        let nested = dir.join("processor_config.json");
        if nested.exists()
            && let Some(settings) = read_object(&nested)?.get("image_processor")
        {
            return Self::from_json(settings).map_err(|what| Error::input(&nested, what));
        }
        let flat = dir.join("preprocessor_config.json");
        if !flat.exists() {
            let what = "holds neither preprocessor_config.json nor a processor_config.json with an \
                        image_processor; copy one of them from the checkpoint";
            return Err(Error::input(dir, what));
        }
        Self::from_json(&Value::Object(read_object(&flat)?)).map_err(|what| Error::input(&flat, what))
    }

    /// The same for an image encoder that reads images of `side` by `side` pixels.
    ///
    /// # Errors
    ///
    /// As [`load`](Self::load), and if the images are of another size.
    pub fn load_for(dir: &Path, side: usize) -> Result<Self> {
        let processor = Self::load(dir)?;
        if processor.size() != (side, side) {
            let (height, width) = processor.size();
            let what = format!(
                "its image processor makes images of {height}x{width} pixels, but its image encoder reads \
                 {side}x{side}; set size in preprocessor_config.json"
            );
            return Err(Error::input(dir, what));
        }
        Ok(processor)
    }

    /// Height and width of the pixel values.
    pub fn size(&self) -> (usize, usize) {
        self.size
    }

    /// The settings as `preprocessor_config.json` holds them.
    pub fn to_json(&self) -> Value {
        json!({
            "image_processor_type": "BlipImageProcessor",
            "do_convert_rgb": self.do_convert_rgb,
            "do_resize": self.do_resize,
            "size": { "height": self.size.0, "width": self.size.1 },
            "resample": match self.resample { Filter::Bilinear => 2, Filter::Bicubic => 3 },
            "do_rescale": self.do_rescale,
            "rescale_factor": self.rescale_factor,
            "do_normalize": self.do_normalize,
            "image_mean": self.image_mean,
            "image_std": self.image_std,
        })
    }

    /// Pixel values [3, height, width] of the JPEG, PNG or WebP file `path`.
    ///
    /// The format is told by the first bytes, not by the name. As in Pillow, alpha is dropped
    /// without blending and samples of 16 bits keep their high byte; this holds for 16-bit
    /// greyscale too, which Pillow clips at 255 to almost all white. The EXIF orientation is not
    /// applied, as it is not in transformers nor in LAVIS: the pixels count as they are stored.
    /// A JPEG's pixels may differ from Pillow's by a few levels, its decoder being another.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, is not a regular file, is larger than 64 MiB, has a side
    /// above 32768 or more than 89478485 pixels, is not JPEG, PNG or WebP, is truncated or damaged, or
    /// is not RGB while `do_convert_rgb` is false (a palette counts as RGB); and see
    /// [`process`](Self::process).
    pub fn read(&self, path: &Path) -> Result<Vec<f32>> {
        self.decode(path, &decode::read_regular_file(path, MAX_FILE)?)
    }

    /// The same from a file's bytes; `path` is what messages call it.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub fn decode(&self, path: &Path, bytes: &[u8]) -> Result<Vec<f32>> {
        let image = decode::decode_rgb(path, bytes, self.do_convert_rgb)?;
        let resized = self.resized(&image.pixels, image.width, image.height);
        resized.map(|resized| self.normalize(&resized)).map_err(|what| Error::input(path, what))
    }

    /// Pixel values [3, height, width] of RGB8 pixels `rgb` [`height`, `width`, 3].
    ///
    /// # Errors
    ///
    /// If `rgb` has not `height * width * 3` bytes, a side is 0 or above 32768, or
    /// `do_resize` is false and the image has not the size asked for.
    pub fn process(&self, rgb: &[u8], width: usize, height: usize) -> Result<Vec<f32>> {
        self.resize(rgb, width, height).map(|resized| self.normalize(&resized))
    }

    /// The RGB8 pixels [height, width, 3] of the size asked for, of which [`normalize`](Self::normalize) makes the
    /// pixel values.
    ///
    /// # Errors
    ///
    /// As [`process`](Self::process).
    pub fn resize(&self, rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
        let side = 1..=MAX_SIDE as usize;
        if !side.contains(&width) || !side.contains(&height) {
            return Err(Error::value(format!(
                "an image of {width}x{height} pixels; sides go from 1 to {MAX_SIDE}"
            )));
        }
        if rgb.len() != width * height * 3 {
            let bytes = rgb.len();
            return Err(Error::value(format!(
                "{width}x{height} RGB pixels are not {bytes} bytes but 3 a pixel"
            )));
        }
        self.resized(rgb, width, height).map(Cow::into_owned).map_err(Error::value)
    }

    /// [`resize`](Self::resize) for sides and bytes that have been checked.
    fn resized<'a>(
        &self,
        rgb: &'a [u8],
        width: usize,
        height: usize,
    ) -> std::result::Result<Cow<'a, [u8]>, String> {
        self.validate()?;
        if self.do_resize {
            Ok(Cow::Owned(resize(rgb, (height, width), self.size, self.resample)))
        } else if (height, width) == self.size {
            Ok(Cow::Borrowed(rgb))
        } else {
            let (to_height, to_width) = self.size;
            Err(format!(
                "an image of {width}x{height} pixels, but the image processor has do_resize false; \
                 resize the image to {to_width}x{to_height}"
            ))
        }
    }

    /// Pixel values [3, height, width] of RGB8 pixels [height, width, 3].
    pub fn normalize(&self, rgb: &[u8]) -> Vec<f32> {
        let (pixels, _) = rgb.as_chunks::<3>();
        let mut values = Vec::with_capacity(rgb.len());
        for (channel, levels) in self.levels().iter().enumerate() {
            values.extend(pixels.iter().map(|pixel| levels[usize::from(pixel[channel])]));
        }
        values
    }

    /// The pixel value of every byte in every channel.
    fn levels(&self) -> [[f32; 256]; 3] {
        let factor = if self.do_rescale { self.rescale_factor } else { 1.0 };
        std::array::from_fn(|channel| {
            let (mean, std) = if self.do_normalize {
                (self.image_mean[channel], self.image_std[channel])
            } else {
                (0.0, 1.0)
            };
            std::array::from_fn(|byte| ((byte as f64 * factor - mean) / std) as f32)
        })
    }

    /// Says what is wrong with the settings.
    fn validate(&self) -> std::result::Result<(), String> {
        let (height, width) = self.size;
        if !(1..=MAX_SIZE).contains(&height) || !(1..=MAX_SIZE).contains(&width) {
            return Err(format!("size {height}x{width}; height and width go from 1 to {MAX_SIZE}"));
        }
        if self.rescale_factor <= 0.0 {
            return Err(format!("rescale_factor is {}; it must be above 0", self.rescale_factor));
        }
        if self.image_std.contains(&0.0) {
            return Err("image_std holds a zero; pixel values are divided by it".into());
        }
        if self.levels().as_flattened().iter().any(|value| !value.is_finite()) {
            return Err(
                "rescale_factor, image_mean and image_std give pixel values that are not finite".into()
            );
        }
        Ok(())
    }

    /// The settings in `json`, or what is wrong with them.
    fn from_json(json: &Value) -> std::result::Result<Self, String> {
        let settings = json.as_object().ok_or("image_processor is not a JSON object")?;
        refuse_unsupported(settings)?;
        let default = Self::blip2(384);
        let processor = Self {
            do_convert_rgb: flag(settings, "do_convert_rgb", default.do_convert_rgb)?,
            do_resize: flag(settings, "do_resize", default.do_resize)?,
            size: size(settings, default.size)?,
            resample: resample(settings, default.resample)?,
            do_rescale: flag(settings, "do_rescale", default.do_rescale)?,
            rescale_factor: match given(settings, "rescale_factor") {
                None => default.rescale_factor,
                Some(factor) => {
                    factor.as_f64().ok_or_else(|| unexpected("rescale_factor", factor, "a number"))?
                }
            },
            do_normalize: flag(settings, "do_normalize", default.do_normalize)?,
            image_mean: channels(settings, "image_mean", default.image_mean)?,
            image_std: channels(settings, "image_std", default.image_std)?,
        };
        processor.validate()?;
        Ok(processor)
    }
}

/// The JSON object in the file `path`.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let bytes = decode::read_regular_file(path, MAX_SETTINGS)?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::input(path, "is not a JSON object; copy it again from the checkpoint")),
        Err(error) => {
            Err(Error::input(path, format!("is not valid JSON: {error}; copy it again from the checkpoint")))
        }
    }
}

/// Refuses what `BlipImageProcessor` does not do, or does only when told to and is not done here.
fn refuse_unsupported(settings: &Map<String, Value>) -> std::result::Result<(), String> {
    if let Some(class) = given(settings, "image_processor_type")
        && !class.as_str().is_some_and(|name| name.starts_with("BlipImageProcessor"))
    {
        return Err(unexpected("image_processor_type", class, "\"BlipImageProcessor\""));
    }
    for name in ["do_center_crop", "do_pad"] {
        if flag(settings, name, false)? {
            return Err(format!("{name} is true, but images are only resized here; set it to false"));
        }
    }
    if given(settings, "crop_size").is_some() && given(settings, "do_center_crop").is_none() {
        return Err("crop_size is set, but images are not cropped here; remove it".into());
    }
    Ok(())
}

/// The setting `name`, unless it is absent or null.
fn given<'a>(settings: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    settings.get(name).filter(|value| !value.is_null())
}

fn unexpected(name: &str, value: &Value, expected: &str) -> String {
    format!("{name} is {value}; it must be {expected}")
}

fn flag(settings: &Map<String, Value>, name: &str, default: bool) -> std::result::Result<bool, String> {
    match given(settings, name) {
        None => Ok(default),
        Some(value) => value.as_bool().ok_or_else(|| unexpected(name, value, "true or false")),
    }
}

/// Height and width; one number stands for both.
fn size(
    settings: &Map<String, Value>,
    default: (usize, usize),
) -> std::result::Result<(usize, usize), String> {
    let Some(size) = given(settings, "size") else { return Ok(default) };
    let side = |value: &Value| value.as_u64().and_then(|side| usize::try_from(side).ok());
    let sides = match size {
        Value::Object(object) => object.get("height").and_then(side).zip(object.get("width").and_then(side)),
        number => side(number).map(|side| (side, side)),
    };
    sides.ok_or_else(|| unexpected("size", size, "{\"height\": .., \"width\": ..} in whole pixels"))
}

/// The filter, which Pillow numbers.
fn resample(settings: &Map<String, Value>, default: Filter) -> std::result::Result<Filter, String> {
    let Some(number) = given(settings, "resample") else { return Ok(default) };
    let name = match number.as_u64() {
        Some(2) => return Ok(Filter::Bilinear),
        Some(3) => return Ok(Filter::Bicubic),
        Some(0) => "nearest",
        Some(1) => "Lanczos",
        Some(4) => "box",
        Some(5) => "Hamming",
        _ => "unknown",
    };
    Err(format!("resample is {number} ({name}); it must be 2 (bilinear) or 3 (bicubic)"))
}

/// One number a channel.
fn channels(
    settings: &Map<String, Value>,
    name: &str,
    default: [f64; 3],
) -> std::result::Result<[f64; 3], String> {
    let Some(value) = given(settings, name) else { return Ok(default) };
    let numbers =
        value.as_array().and_then(|array| array.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
    numbers
        .and_then(|numbers| numbers.try_into().ok())
        .ok_or_else(|| unexpected(name, value, "a list of 3 numbers"))
}
