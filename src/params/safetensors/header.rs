//! The header of a `.safetensors` file, believed only where it agrees with the file's length.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::Path;

use ::safetensors::Dtype;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::input::{duplicate_key, json_error, printable};
use crate::params::bounds::{DIMENSIONS, NAME_BYTES, TENSORS};

/// Longest header read, in bytes: the limit of the format's own library.
const HEADER_BYTES: u64 = 100_000_000;
/// Most free-form metadata, keys and values, in bytes: room for the names of a million images.
pub(super) const METADATA_BYTES: usize = 32 << 20;
/// Most keys of the metadata, each of which takes far more memory than the file's shortest.
pub(super) const METADATA_KEYS: usize = 1 << 12;

/// What a header says, checked against the length of its file.
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, Entry>,
    pub(super) metadata: BTreeMap<String, String>,
}

/// One tensor of a [`Header`].
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Where its values begin, in bytes from the start of the file.
    pub(super) begin: u64,
}

/// Reads the header of the file at `path`, `length` bytes long.
pub(super) fn read(path: &Path, mut file: impl Read, length: u64) -> Result<Header> {
    let cut_short = |source| Error::io(path, "read the header of", source);
    let Some(after_length) = length.checked_sub(8) else {
        let what = format_args!("{length} bytes long; a safetensors file has at least 8");
        return Err(Error::input(path, what));
    };
    let mut stated = [0; 8];
    file.read_exact(&mut stated).map_err(cut_short)?;
    let stated = u64::from_le_bytes(stated);
    if stated > HEADER_BYTES || stated > after_length {
        let limit = HEADER_BYTES.min(after_length);
        let what = format_args!("states a header of {stated} bytes where at most {limit} can be");
        return Err(Error::input(path, what));
    }
    let header_bytes = usize::try_from(stated).expect("at most 100 MB");
    let mut bytes = vec![0; header_bytes];
    file.read_exact(&mut bytes).map_err(cut_short)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        Error::input(path, format_args!("header not UTF-8 at byte {}", error.valid_up_to() + 8))
    })?;
    if !text.starts_with('{') {
        return Err(Error::input(path, "header does not start with '{' at byte 8"));
    }
    let raw: RawHeader = serde_json::from_str(text).map_err(|error| json_error(path, &error))?;
    check_layout(path, raw, stated + 8, length)
}

/// Checks that the tensors fill the file after `data_begin` without gap or overlap.
fn check_layout(path: &Path, raw: RawHeader, data_begin: u64, length: u64) -> Result<Header> {
    let mut tensors: Vec<_> = raw.tensors.into_iter().collect();
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let mut end = data_begin;
    let mut placed = BTreeMap::new();
    for (name, RawTensor { dtype, shape: Shape(shape), data_offsets }) in tensors {
        let wrong = |what: fmt::Arguments<'_>| {
            Error::input(path, format_args!("tensor \"{}\": {what}", printable(&name)))
        };
        let Some(bytes) = byte_length(dtype, &shape) else {
            return Err(wrong(format_args!(
                "{dtype} of shape {shape:?} is not a whole number of bytes in 64 bits"
            )));
        };
        let begin = end;
        end = begin
            .checked_add(bytes)
            .filter(|&end| end <= length)
            .ok_or_else(|| wrong(format_args!("ends past the end of the file ({length} bytes)")))?;
        let stated = data_offsets.map(|offset| offset.checked_add(data_begin));
        if stated != [Some(begin), Some(end)] {
            let [from, to] = data_offsets;
            return Err(wrong(format_args!(
                "data_offsets {from}..{to}, but {dtype} of shape {shape:?} next in the file is at {}..{}",
                begin - data_begin,
                end - data_begin
            )));
        }
        placed.insert(name, Entry { dtype, shape, begin });
    }
    if end != length {
        let what = format_args!("{} bytes after the last tensor, from byte {end} on", length - end);
        return Err(Error::input(path, what));
    }
    Ok(Header { tensors: placed, metadata: raw.metadata })
}

/// Bytes that `shape` takes, or `None` if 64 bits do not hold them or they end within a byte.
pub(super) fn byte_length(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements =
        shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(u64::try_from(extent).ok()?))?;
    let bits = elements.checked_mul(u64::try_from(dtype.bitsize()).ok()?)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The header as JSON has it.
struct RawHeader {
    tensors: BTreeMap<String, RawTensor>,
    metadata: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: Dtype,
    shape: Shape,
    data_offsets: [u64; 2],
}

struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Extents;

        impl<'de> Visitor<'de> for Extents {
            type Value = Shape;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a list of extents")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut extents: A) -> std::result::Result<Shape, A::Error> {
                let mut shape = Vec::new();
                while let Some(extent) = extents.next_element()? {
                    if shape.len() == DIMENSIONS {
                        return Err(de::Error::custom(format_args!("more than {DIMENSIONS} dimensions")));
                    }
                    shape.push(extent);
                }
                Ok(Shape(shape))
            }
        }

        deserializer.deserialize_seq(Extents)
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = RawHeader;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut entries: A,
            ) -> std::result::Result<RawHeader, A::Error> {
                let mut tensors = BTreeMap::new();
                let mut metadata = None;
                while let Some(name) = entries.next_key::<String>()? {
                    if name == "__metadata__" {
                        if metadata.is_some() {
                            return Err(duplicate_key(&name));
                        }
                        metadata = Some(entries.next_value::<Metadata>()?.0);
                        continue;
                    }
                    if name.len() > NAME_BYTES {
                        return Err(de::Error::custom(format_args!("a name longer than {NAME_BYTES} bytes")));
                    }
                    if tensors.len() == TENSORS {
                        return Err(de::Error::custom(format_args!("more than {TENSORS} tensors")));
                    }
                    if tensors.contains_key(&name) {
                        return Err(duplicate_key(&name));
                    }
                    tensors.insert(name, entries.next_value()?);
                }
                Ok(RawHeader { tensors, metadata: metadata.unwrap_or_default() })
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

struct Metadata(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Metadata;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut pairs: A) -> std::result::Result<Metadata, A::Error> {
                let mut metadata = BTreeMap::new();
                let mut bytes = 0;
                while let Some((key, value)) = pairs.next_entry::<String, String>()? {
                    bytes += key.len() + value.len();
                    if bytes > METADATA_BYTES {
                        return Err(de::Error::custom(format_args!(
                            "more than {METADATA_BYTES} bytes of metadata"
                        )));
                    }
                    if metadata.contains_key(&key) {
                        return Err(duplicate_key(&key));
                    }
                    if metadata.len() == METADATA_KEYS {
                        return Err(de::Error::custom(format_args!(
                            "more than {METADATA_KEYS} keys of metadata"
                        )));
                    }
                    metadata.insert(key, value);
                }
                Ok(Metadata(metadata))
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}
