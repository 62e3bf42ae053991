//! Lists of images with their captions: JSONL, and LAVIS's JSON. They are read as streams, of which only names
//! and captions are kept.

use std::fmt::{self, Display};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::data::text_list::{Captions, TextList};
use crate::error::{Error, Result};
use crate::input::{self, printable};

/// Longest line of a JSONL file, in bytes.
const LINE_BYTES: u64 = 16 << 20;

/// Bytes of a file read at once.
const BUFFER_BYTES: usize = 1 << 20;

/// Images by name, each with its captions.
#[derive(Debug, Default)]
pub(in crate::data) struct Listing {
    /// Blank where a record names no image.
    pub(in crate::data) names: TextList,
    pub(in crate::data) captions: Captions,
}

/// The JSON file at `path`, and whether it holds an array.
pub(in crate::data) fn open(path: &Path) -> Result<(impl BufRead, bool)> {
    let (file, _) = input::open(path)?;
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
    let start = reader.fill_buf().map_err(|error| Error::io(path, "read", error))?;
    let is_array = start.trim_ascii_start().starts_with(b"[");
    Ok((reader, is_array))
}

/// Takes the JSON of `reader` from its beginning to its end.
pub(in crate::data) fn read_json<'de, S: DeserializeSeed<'de>>(
    path: &Path,
    reader: impl Read,
    seed: S,
) -> Result<S::Value> {
    let mut json = serde_json::Deserializer::from_reader(reader);
    let read = seed.deserialize(&mut json).and_then(|value| json.end().map(|()| value));
    read.map_err(|error| match error.is_io() {
        true => Error::io(path, "read", error.into()),
        false => input::json_error(path, &error),
    })
}

/// The records of a JSONL file, or of a JSON array: an image each, whatever its name.
pub(in crate::data) fn read(path: &Path) -> Result<Listing> {
    let (mut reader, is_array) = open(path)?;
    let mut listing = Listing::default();
    if is_array {
        read_json(path, reader, Array(&mut listing))?;
        return Ok(listing);
    }
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut reader)
            .take(LINE_BYTES + 1)
            .read_until(b'\n', &mut line)
            .map_err(|error| Error::io(path, "read", error))? as u64;
        if length == 0 {
            return Ok(listing);
        }
        let number = listing.names.len() + 1;
        let wrong = |what: &dyn Display| {
            let expected = "a line is {\"image\": path, \"caption\": text or list of texts}";
            Err(Error::input(path, format_args!("line {number}: {what}; {expected}")))
        };
        if length > LINE_BYTES {
            return wrong(&format_args!("longer than {LINE_BYTES} bytes"));
        }
        let mut json = serde_json::Deserializer::from_slice(&line);
        if let Err(error) = Record(&mut listing).deserialize(&mut json).and_then(|()| json.end()) {
            return wrong(&format_args!("bad JSON: {}", printable(&error.to_string())));
        }
    }
}

/// The images of records, those of one name taken together.
pub(in crate::data) fn merged(path: &Path, records: Listing) -> Result<Listing> {
    let Listing { names, mut captions } = records;
    if let Some(index) = names.iter().position(str::is_empty) {
        return Err(Error::input(path, format_args!("line {} names no \"image\"", index + 1)));
    }
    let mut order: Vec<u32> = (0..names.len() as u32).collect();
    order.sort_unstable_by(|&a, &b| names.get(a as usize).cmp(names.get(b as usize)).then(a.cmp(&b)));
    // The first record of the same name, then that one's number.
    let mut numbers = vec![0; names.len()];
    for same in order.chunk_by(|&a, &b| names.get(a as usize) == names.get(b as usize)) {
        same.iter().for_each(|&record| numbers[record as usize] = same[0]);
    }
    let mut merged = TextList::default();
    for (record, name) in names.iter().enumerate() {
        let first = numbers[record] as usize;
        numbers[record] = match first == record {
            true => {
                merged.push(name).map_err(|what| Error::input(path, what))?;
                merged.len() as u32 - 1
            }
            false => numbers[first],
        };
    }
    captions.renumber(&numbers);
    Ok(Listing { names: merged, captions })
}

/// Reads an array of records.
struct Array<'a>(&'a mut Listing);

impl<'de> DeserializeSeed<'de> for Array<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Array<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of {\"image\": path, \"caption\": text or list of texts}")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut records: A) -> std::result::Result<(), A::Error> {
        while records.next_element_seed(Record(self.0))?.is_some() {}
        Ok(())
    }
}

/// Reads a record.
struct Record<'a>(&'a mut Listing);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Field {
    Image,
    Caption,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for Record<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Record<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> std::result::Result<(), A::Error> {
        let Listing { names, captions } = self.0;
        let mut image: Option<Option<String>> = None;
        let mut has_captions = false;
        while let Some(field) = fields.next_key()? {
            match field {
                Field::Image if image.is_some() => return Err(A::Error::duplicate_field("image")),
                Field::Image => image = Some(fields.next_value()?),
                Field::Caption if has_captions => return Err(A::Error::duplicate_field("caption")),
                Field::Caption => {
                    fields.next_value_seed(Texts { image: names.len() as u32, captions })?;
                    has_captions = true;
                }
                Field::Other => drop(fields.next_value::<IgnoredAny>()?),
            }
        }
        if !has_captions {
            return Err(A::Error::missing_field("caption"));
        }
        names.push(&image.flatten().unwrap_or_default()).map_err(A::Error::custom)
    }
}

/// Reads an image's captions, a text or a list of texts.
pub(in crate::data) struct Texts<'a> {
    pub(in crate::data) image: u32,
    pub(in crate::data) captions: &'a mut Captions,
}

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> std::result::Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a caption that is a text or a list of texts")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> std::result::Result<(), E> {
        self.captions.push(self.image, text).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut texts: A) -> std::result::Result<(), A::Error> {
        while let Some(text) = texts.next_element::<String>()? {
            self.captions.push(self.image, &text).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}
