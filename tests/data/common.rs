//! Small data sets in a folder of their own.

use half::bf16;
use image::{Rgb, RgbImage};
use qformer::Tokenizer;
use qformer::data::{Dataset, Source, VISION_OUTPUT};
use qformer::params::safetensors::{Dtype, NewTensor, write};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub(crate) struct Workplace(TempDir);

impl Workplace {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A JSONL data set of these lines.
    pub(crate) fn jsonl(&self, lines: &[&str]) -> Source {
        Source::Jsonl(self.write("data.jsonl", lines.join("\n")))
    }

    /// A picture in the file `name`.
    pub(crate) fn picture(&self, name: &str, seed: u32) -> PathBuf {
        self.write(name, png(seed))
    }

    /// Features [rows, 2, 4] that count on from `first`.
    pub(crate) fn features(&self, name: &str, rows: usize, first: usize) -> PathBuf {
        let path = self.path(name);
        let values: Vec<f32> = (0..rows * 8).map(|i| (first * 8 + i) as f32).collect();
        let tensor = NewTensor::from_slice(VISION_OUTPUT, Dtype::BF16, &[rows, 2, 4], &values);
        write(&path, &BTreeMap::new(), vec![tensor]).unwrap();
        path
    }

    pub(crate) fn tokenizer(&self) -> Tokenizer {
        let folder = self.path("tokenizer");
        fs::create_dir_all(&folder).unwrap();
        Tokenizer::write_tiny(&folder).unwrap();
        Tokenizer::load(&folder).unwrap()
    }
}

/// The row of features that [`Workplace::features`] writes for image `number`.
pub(crate) fn row(number: usize) -> Vec<f32> {
    (number * 8..number * 8 + 8).map(|value| bf16::from_f32(value as f32).to_f32()).collect()
}

/// A picture of 20 to 27 by 16 pixels.
pub(crate) fn png(seed: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32| [x * 9 + seed, y * 13 + 2 * seed, x * y + 3 * seed].map(|value| value as u8);
    let image = RgbImage::from_fn(20 + seed % 8, 16, |x, y| Rgb(pixel(x, y)));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// A tar archive of these entries.
pub(crate) fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, *bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Names with captions, in the data set's order.
pub(crate) fn examples(dataset: &Dataset) -> Vec<(String, String)> {
    let of =
        |caption: qformer::data::Caption<'_>| (dataset.name(caption.image as usize), caption.text.to_owned());
    dataset.captions().iter().map(of).collect()
}

#[track_caller]
pub(crate) fn is(dataset: &Dataset, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|&(name, text)| (name.to_owned(), text.to_owned())).collect();
    assert_eq!(examples(dataset), expected);
}

/// Opening the data set fails with all the `fragments`.
#[track_caller]
pub(crate) fn is_refused(source: &Source, fragments: &[&str]) {
    let error = Dataset::open(source).unwrap_err().to_string();
    for fragment in fragments {
        assert!(error.contains(fragment), "{fragment:?} is not in {error:?}");
    }
}

pub(crate) fn shown(path: &Path) -> String {
    path.display().to_string()
}
