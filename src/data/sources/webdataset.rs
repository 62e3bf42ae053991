//! Tar shards of samples: indexed once, then read where they are needed.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::de::{Deserialize, DeserializeSeed, Deserializer};
use tar::Archive;

use super::records::Texts;
use crate::data::text_list::Captions;
use crate::error::{Error, Result};
use crate::input;
use crate::models::vision::image::{EXTENSIONS, MAX_FILE, Rgb};

/// Tar's unit: headers are one, and contents are filled up to whole ones.
const BLOCK: u64 = 512;

/// Longest text or description read of a sample, in bytes.
const TEXT_BYTES: u64 = 1 << 20;

/// Longest name of an entry, in bytes: that of a path.
const NAME_BYTES: usize = 4096;

/// The samples of all shards, in their order.
#[derive(Debug)]
pub(in crate::data) struct Shards {
    paths: Vec<PathBuf>,
    samples: Vec<Place>,
}

#[derive(Debug)]
struct Place {
    /// Index of its shard.
    shard: usize,
    /// The image's entry; the samples's name where it has no image.
    entry: String,
    /// The image's bytes within the shard.
    image: Option<Range<u64>>,
}

/// What a shard's entries tell of a sample.
#[derive(Debug, Default)]
struct Sample {
    name: String,
    image: Option<(String, Range<u64>)>,
    text: Option<String>,
    /// Of its `.json`.
    captions: Option<Captions>,
}

/// What is read of a sample's `.json`.
#[derive(serde::Deserialize)]
struct Description {
    caption: Option<OwnTexts>,
}

/// The texts of one image.
struct OwnTexts(Captions);

impl<'de> Deserialize<'de> for OwnTexts {
    fn deserialize<D: Deserializer<'de>>(json: D) -> std::result::Result<Self, D::Error> {
        let mut captions = Captions::default();
        Texts { image: 0, captions: &mut captions }.deserialize(json)?;
        Ok(Self(captions))
    }
}

impl Shards {
    /// Indexes the shards; returns them with every sample's texts, a blank one where it has none.
    pub(in crate::data) fn open(paths: &[PathBuf]) -> Result<(Self, Captions)> {
        let indexed: Vec<Result<Vec<Sample>>> = paths.par_iter().map(|path| index(path)).collect();
        let (mut samples, mut texts) = (Vec::new(), Captions::default());
        for (shard, found) in indexed.into_iter().enumerate() {
            for Sample { name, image, text, captions } in found? {
                let number = samples.len() as u32;
                let pushed = match (text, captions) {
                    (Some(text), _) => texts.push(number, &text),
                    (None, Some(captions)) => {
                        captions.iter().try_for_each(|caption| texts.push(number, caption.text))
                    }
                    (None, None) => texts.push(number, ""),
                };
                pushed.map_err(|what| Error::input(&paths[shard], what))?;
                let (entry, image) = match image {
                    Some((entry, place)) => (entry, Some(place)),
                    None => (name, None),
                };
                samples.push(Place { shard, entry, image });
            }
        }
        Ok((Self { paths: paths.to_vec(), samples }, texts))
    }

    /// Number of samples.
    pub(in crate::data) fn samples(&self) -> usize {
        self.samples.len()
    }

    /// `shard.tar/entry`
    pub(in crate::data) fn name(&self, image: usize) -> String {
        let Place { shard, entry, .. } = &self.samples[image];
        let shard = self.paths[*shard].file_name().unwrap_or_default();
        format!("{}/{entry}", shard.to_string_lossy())
    }

    /// Decodes an image.
    pub(in crate::data) fn picture(&self, image: usize) -> Result<Rgb> {
        let Place { shard, entry, image } = &self.samples[image];
        let path = &self.paths[*shard];
        let name = path.join(entry);
        let Some(place) = image else {
            return Err(Error::input(&name, "has no .jpg, .jpeg, .png or .webp beside its text"));
        };
        let length = place.end - place.start;
        if length > MAX_FILE {
            let what = format!("is larger than the {MAX_FILE} bytes that are read; give a smaller file");
            return Err(Error::input(&name, what));
        }
        let cannot_read = |error| Error::io(&name, "read", error);
        let (mut file, _) = input::open(path)?;
        file.seek(SeekFrom::Start(place.start)).map_err(cannot_read)?;
        let mut bytes = vec![0; length as usize];
        file.read_exact(&mut bytes).map_err(cannot_read)?;
        Rgb::decode(&name, &bytes)
    }
}

/// The samples of one shard: those with an image or a text.
fn index(path: &Path) -> Result<Vec<Sample>> {
    let (file, length) = input::open(path)?;
    let broken = |error| Error::input(path, format_args!("cannot be read as a tar archive: {error}"));
    let mut archive: Archive<File> = Archive::new(file);
    let mut samples: Vec<Sample> = Vec::new();
    let mut numbers = HashMap::new();
    let mut end = 0;
    for entry in archive.entries_with_seek().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let (start, size) = (entry.raw_file_position(), entry.size());
        end = start.saturating_add(size.div_ceil(BLOCK).saturating_mul(BLOCK));
        if end > length {
            break;
        }
        let name = entry.path_bytes();
        if name.len() > NAME_BYTES {
            return Err(Error::input(path, format_args!("has a name longer than {NAME_BYTES} bytes")));
        }
        let name = String::from_utf8_lossy(&name).into_owned();
        let Some((sample, ending)) = split_name(&name) else { continue };
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let number = *numbers.entry(sample.to_owned()).or_insert_with(|| {
            samples.push(Sample { name: sample.to_owned(), ..Sample::default() });
            samples.len() - 1
        });
        let sample = &mut samples[number];
        let mut read = || {
            let mut bytes = Vec::new();
            entry.by_ref().take(TEXT_BYTES).read_to_end(&mut bytes).map_err(broken).map(|_| bytes)
        };
        match &*ending.to_ascii_lowercase() {
            image if EXTENSIONS.contains(&image) && sample.image.is_none() => {
                sample.image = Some((name, start..start + size));
            }
            "txt" => sample.text = Some(text_of(&read()?)),
            "json" => {
                let description: Option<Description> = serde_json::from_slice(&read()?).ok();
                sample.captions =
                    description.and_then(|json| json.caption).map(|OwnTexts(captions)| captions);
            }
            _ => {}
        }
    }
    // An archive ends with a block of zeros.
    if end.saturating_add(BLOCK) > length {
        return Err(Error::input(path, "is truncated: a tar archive without its end; copy it again"));
    }
    samples.retain(|sample| sample.image.is_some() || sample.text.is_some() || sample.captions.is_some());
    Ok(samples)
}

/// Bytes as text, of which not more than was read is kept, though what is not UTF-8 takes more room.
fn text_of(bytes: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    if let Some((end, _)) =
        text.char_indices().find(|(start, character)| start + character.len_utf8() > bytes.len())
    {
        text.truncate(end);
    }
    text
}

/// A sample's name, the entry's up to the first dot of its last part, and what follows the dot.
fn split_name(entry: &str) -> Option<(&str, &str)> {
    let file = entry.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file + entry[file..].find('.')?;
    Some((&entry[..dot], &entry[dot + 1..]))
}
