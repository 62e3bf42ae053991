//! The header of a `.safetensors` file, believed only where it agrees with the file's length.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io::Read;
use std::path::Path;

use ::safetensors::Dtype;
use ::safetensors::tensor::TensorInfo;
use serde::Deserialize;
use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};

use crate::error::{self, Error};
use crate::input::{duplicate_key, json_error, printable};
use crate::params::bounds::{DIMENSIONS, NAME_BYTES, TENSORS};

/// Longest header read, in bytes: the limit of the format's own library.
const HEADER_BYTES: u64 = 100_000_000;
/// Most free-form metadata, keys and values, in bytes: room for the names of a million images.
pub(super) const METADATA_BYTES: usize = 32 << 20;
/// Most keys of the metadata, each of which takes far more memory than the file's shortest.
pub(super) const METADATA_KEYS: usize = 1 << 12;

/// What a header says, checked against the length of its file.
#[derive(Default)]
pub(super) struct Header {
    pub(super) tensors: BTreeMap<String, TensorInfo>,
    pub(super) metadata: Option<BTreeMap<String, String>>,
    /// Where the tensors' values begin, in bytes from the start of the file: `data_offsets` count from there.
    pub(super) data_begin: u64,
}

/// Reads the header of the file at `path`, `length` bytes long.
pub(super) fn read(path: &Path, mut file: impl Read, length: u64) -> error::Result<Header> {
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
    let Object(mut header) =
        serde_json::from_str::<Object<Header>>(text).map_err(|error| json_error(path, &error))?;
    header.data_begin = stated + 8;
    check_layout(path, &header, length)?;
    Ok(header)
}

/// Checks that the tensors fill the file after its header without gap or overlap. The format's own library does not
/// say where a tensor should be.
fn check_layout(path: &Path, header: &Header, length: u64) -> error::Result<()> {
    let mut tensors: Vec<_> = header.tensors.iter().collect();
    tensors.sort_by_key(|(_, tensor)| tensor.data_offsets);
    let data_bytes = length - header.data_begin;
    let mut end = 0_u64;
    for (name, TensorInfo { dtype, shape, data_offsets: (from, to) }) in tensors {
        let wrong = |what: fmt::Arguments<'_>| {
            Error::input(path, format_args!("tensor \"{}\": {what}", printable(name)))
        };
        let Some(bytes) = byte_length(*dtype, shape) else {
            return Err(wrong(format_args!(
                "{dtype} of shape {shape:?} is not a whole number of bytes in 64 bits"
            )));
        };
        let begin = end;
        end = begin
            .checked_add(bytes)
            .filter(|&end| end <= data_bytes)
            .ok_or_else(|| wrong(format_args!("ends past the end of the file ({length} bytes)")))?;
        if [*from as u64, *to as u64] != [begin, end] {
            return Err(wrong(format_args!(
                "data_offsets {from}..{to}, but {dtype} of shape {shape:?} next in the file is at {begin}..{end}"
            )));
        }
    }
    if end != data_bytes {
        let (left, from) = (data_bytes - end, header.data_begin + end);
        return Err(Error::input(
            path,
            format_args!("{left} bytes after the last tensor, from byte {from} on"),
        ));
    }
    Ok(())
}

/// Bytes that `shape` takes, or `None` if 64 bits do not hold them or they end within a byte.
pub(super) fn byte_length(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let elements =
        shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(u64::try_from(extent).ok()?))?;
    let bits = elements.checked_mul(u64::try_from(dtype.bitsize()).ok()?)?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

/// The library's [`TensorInfo`], which by itself lets pass fields that the format does not have, and shapes as long
/// as the file.
#[derive(Deserialize)]
#[serde(remote = "TensorInfo", deny_unknown_fields)]
struct StrictInfo {
    dtype: Dtype,
    #[serde(deserialize_with = "bounded_shape")]
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

#[derive(Deserialize)]
struct Tensor(#[serde(with = "StrictInfo")] TensorInfo);

fn bounded_shape<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<usize>, D::Error> {
    struct Extents;

    impl<'de> Visitor<'de> for Extents {
        type Value = Vec<usize>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a list of extents")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut extents: A) -> Result<Vec<usize>, A::Error> {
            let mut shape = Vec::new();
            while let Some(extent) = extents.next_element()? {
                if shape.len() == DIMENSIONS {
                    return Err(de::Error::custom(format_args!("more than {DIMENSIONS} dimensions")));
                }
                shape.push(extent);
            }
            Ok(shape)
        }
    }

    deserializer.deserialize_seq(Extents)
}

/// What an object is read into, entry by entry: the library's `Metadata` takes the last of equal keys, and any number.
trait Entries: Default {
    /// What its values are.
    const VALUES: &'static str;

    /// Takes the value of `key`, which comes next.
    fn add<'de, A: MapAccess<'de>>(&mut self, key: String, entries: &mut A) -> Result<(), A::Error>;
}

struct Object<T>(T);

impl<'de, T: Entries> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs<T>(T);

        impl<'de, T: Entries> Visitor<'de> for Pairs<T> {
            type Value = Object<T>;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(formatter, "an object of {}", T::VALUES)
            }

            fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Object<T>, A::Error> {
                while let Some(key) = entries.next_key()? {
                    self.0.add(key, &mut entries)?;
                }
                Ok(Object(self.0))
            }
        }

        deserializer.deserialize_map(Pairs(T::default()))
    }
}

impl Entries for Header {
    const VALUES: &'static str = "tensors";

    fn add<'de, A: MapAccess<'de>>(&mut self, name: String, entries: &mut A) -> Result<(), A::Error> {
        if name == "__metadata__" {
            let Object(metadata) = entries.next_value::<Object<Metadata>>()?;
            if self.metadata.replace(metadata.values).is_some() {
                return Err(duplicate_key(&name));
            }
        } else if name.len() > NAME_BYTES {
            return Err(de::Error::custom(format_args!("a name longer than {NAME_BYTES} bytes")));
        } else if self.tensors.len() == TENSORS {
            return Err(de::Error::custom(format_args!("more than {TENSORS} tensors")));
        } else {
            match self.tensors.entry(name) {
                Entry::Occupied(tensor) => return Err(duplicate_key(tensor.key())),
                Entry::Vacant(tensor) => tensor.insert(entries.next_value::<Tensor>()?.0),
            };
        }
        Ok(())
    }
}

#[derive(Default)]
struct Metadata {
    values: BTreeMap<String, String>,
    bytes: usize,
}

impl Entries for Metadata {
    const VALUES: &'static str = "strings";

    fn add<'de, A: MapAccess<'de>>(&mut self, key: String, entries: &mut A) -> Result<(), A::Error> {
        if self.values.contains_key(&key) {
            return Err(duplicate_key(&key));
        }
        if self.values.len() == METADATA_KEYS {
            return Err(de::Error::custom(format_args!("more than {METADATA_KEYS} keys of metadata")));
        }
        let value: String = entries.next_value()?;
        self.bytes += key.len() + value.len();
        if self.bytes > METADATA_BYTES {
            return Err(de::Error::custom(format_args!("more than {METADATA_BYTES} bytes of metadata")));
        }
        self.values.insert(key, value);
        Ok(())
    }
}
