//! Lists of images with their captions: JSONL, LAVIS's JSON, COCO's and Karpathy's.

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::input::{self, printable};

/// Longest line of a JSONL file, in bytes.
const LINE_BYTES: u64 = 16 << 20;

/// The split that Karpathy's `restval` is part of, as in LAVIS.
const TRAIN: &str = "train";

/// An image and what is said of it.
#[derive(Debug, Deserialize)]
pub(super) struct Record {
    pub(super) image: Option<String>,
    #[serde(rename = "caption")]
    pub(super) captions: Texts,
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "caption is neither a text nor a list of texts")]
pub(super) enum Texts {
    One(String),
    Many(Vec<String>),
}

impl Texts {
    pub(super) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

/// Images by name, each with its captions.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub(super) names: Vec<String>,
    /// An image's number and a text each.
    pub(super) captions: Vec<(usize, String)>,
}

impl Listing {
    fn add(&mut self, name: String, texts: impl IntoIterator<Item = String>) {
        let image = self.names.len();
        self.names.push(name);
        self.captions.extend(texts.into_iter().map(|text| (image, text)));
    }
}

/// The records of a JSONL file, or of a JSON array.
pub(super) fn read(path: &Path) -> Result<Vec<Record>> {
    let (file, _) = input::open(path)?;
    let mut reader = BufReader::with_capacity(1 << 20, file);
    let cannot_read = |error| Error::io(path, "read", error);
    if reader.fill_buf().map_err(cannot_read)?.trim_ascii_start().starts_with(b"[") {
        let mut text = Vec::new();
        reader.read_to_end(&mut text).map_err(cannot_read)?;
        return serde_json::from_slice(&text).map_err(|error| input::json_error(path, &error));
    }
    let mut records = Vec::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        let length =
            (&mut reader).take(LINE_BYTES + 1).read_until(b'\n', &mut line).map_err(cannot_read)? as u64;
        if length == 0 {
            return Ok(records);
        }
        let wrong = |what: &dyn Display| {
            let number = records.len() + 1;
            let expected = "a line is {\"image\": path, \"caption\": text or list of texts}";
            Err(Error::input(path, format_args!("line {number}: {what}; {expected}")))
        };
        if length > LINE_BYTES {
            return wrong(&format_args!("longer than {LINE_BYTES} bytes"));
        }
        match serde_json::from_slice(&line) {
            Ok(record) => records.push(record),
            Err(error) => return wrong(&format_args!("bad JSON: {}", printable(&error.to_string()))),
        }
    }
}

/// The images of records, those of one name taken together.
pub(super) fn listing(path: &Path, records: Vec<Record>) -> Result<Listing> {
    let mut numbers = HashMap::new();
    let mut listing = Listing::default();
    for (index, Record { image, captions }) in records.into_iter().enumerate() {
        let Some(name) = image.filter(|name| !name.is_empty()) else {
            return Err(Error::input(path, format_args!("line {} names no \"image\"", index + 1)));
        };
        let image = *numbers.entry(name).or_insert_with_key(|name| {
            listing.names.push(name.clone());
            listing.names.len() - 1
        });
        listing.captions.extend(captions.into_vec().into_iter().map(|text| (image, text)));
    }
    Ok(listing)
}

/// COCO's captions JSON, or Karpathy's.
#[derive(Deserialize)]
struct Coco {
    images: Vec<CocoImage>,
    #[serde(default)]
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct CocoImage {
    id: Option<Id>,
    file_name: Option<String>,
    filepath: Option<String>,
    filename: Option<String>,
    split: Option<String>,
    #[serde(default)]
    sentences: Vec<Sentence>,
}

#[derive(Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(untagged, expecting = "an id is neither a whole number nor a text")]
enum Id {
    Number(u64),
    Text(String),
}

#[derive(Deserialize)]
struct Annotation {
    image_id: Id,
    caption: String,
}

#[derive(Deserialize)]
struct Sentence {
    raw: String,
}

impl CocoImage {
    /// Its path below the folder of images.
    fn name(&self) -> Option<String> {
        match (&self.filepath, &self.filename, &self.file_name) {
            (Some(folder), Some(file), _) => Some(format!("{folder}/{file}")),
            (None, Some(name), _) | (_, None, Some(name)) => Some(name.clone()),
            (_, None, None) => None,
        }
    }

    fn is_of(&self, split: &str) -> bool {
        let own = match self.split.as_deref() {
            Some("restval") => Some(TRAIN),
            own => own,
        };
        own == Some(split)
    }
}

/// The images of a COCO, Karpathy or LAVIS JSON file; of one with splits, those of `split`.
pub(super) fn read_coco(path: &Path, split: Option<&str>) -> Result<Listing> {
    let (mut file, _) = input::open(path)?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(|error| Error::io(path, "read", error))?;
    let broken = |error| input::json_error(path, &error);
    if text.trim_ascii_start().starts_with(b"[") {
        if let Some(split) = split {
            let what = format!("its images have no splits, of which {split} could be taken");
            return Err(Error::input(path, what));
        }
        return listing(path, serde_json::from_slice(&text).map_err(broken)?);
    }
    let Coco { images, annotations } = serde_json::from_slice(&text).map_err(broken)?;
    let images = choose_split(path, images, split)?;
    let mut listing = Listing::default();
    let mut numbers = HashMap::new();
    for (index, image) in images.into_iter().enumerate() {
        let Some(name) = image.name() else {
            let what = format!("image {index} has neither \"file_name\" nor \"filename\"");
            return Err(Error::input(path, what));
        };
        if let Some(id) = image.id
            && numbers.insert(id, index).is_some()
        {
            return Err(Error::input(path, format_args!("image {index} has the id of an earlier one")));
        }
        listing.add(name, image.sentences.into_iter().map(|sentence| sentence.raw));
    }
    for (index, Annotation { image_id, caption }) in annotations.into_iter().enumerate() {
        let Some(&image) = numbers.get(&image_id) else {
            let what = format!("annotation {index} is of {image_id:?}, which is the id of no image");
            return Err(Error::input(path, printable(&what)));
        };
        listing.captions.push((image, caption));
    }
    // COCO's annotations are in no order; an image's stay in theirs.
    listing.captions.sort_by_key(|&(image, _)| image);
    Ok(listing)
}

/// The images of `split`, or all if there are no splits.
fn choose_split(path: &Path, images: Vec<CocoImage>, split: Option<&str>) -> Result<Vec<CocoImage>> {
    let mut splits: Vec<&str> = images.iter().filter_map(|image| image.split.as_deref()).collect();
    splits.sort_unstable();
    splits.dedup();
    let Some(split) = split else {
        return match splits[..] {
            [] => Ok(images),
            _ => {
                let what = format!("has the splits {}; choose one with --split", splits.join(", "));
                Err(Error::input(path, printable(&what)))
            }
        };
    };
    if !images.iter().any(|image| image.is_of(split)) {
        let what = format!("has no image of split {split}; its splits are: {}", splits.join(", "));
        return Err(Error::input(path, printable(&what)));
    }
    Ok(images.into_iter().filter(|image| image.is_of(split)).collect())
}
