//! Reading what strangers wrote: files of bounded size, JSON without duplicate keys, and text made
//! safe to print.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Longest text that [`printable`] shows, in characters.
const PRINTED_CHARACTERS: usize = 200;

/// Most values (numbers, texts, objects, …) that [`parse_json`] accepts, a bound on its memory.
const VALUES: usize = 1 << 18;

/// Deepest nesting of objects and arrays that [`parse_json`] accepts.
const NESTING: usize = 16;

/// Opens a regular file (or a symbolic link to one) and returns it with its length in bytes.
///
/// # Errors
/// Fails if `path` cannot be opened or is a folder, pipe, socket or device: opening a pipe would
/// wait for a writer, and a device has no end.
pub(crate) fn open(path: &Path) -> Result<(File, u64)> {
    let cannot_open = |source| Error::io(path, "open", source);
    if !std::fs::metadata(path).map_err(cannot_open)?.is_file() {
        return Err(Error::input(path, "is not a regular file"));
    }
    let file = File::open(path).map_err(cannot_open)?;
    // The path may have been exchanged between the two calls: ask the open file itself.
    let metadata = file.metadata().map_err(cannot_open)?;
    if !metadata.is_file() {
        return Err(Error::input(path, "is not a regular file"));
    }
    Ok((file, metadata.len()))
}

/// [`open`] of a file that has to lie where `path` says: a symbolic link would make a folder that somebody else
/// wrote reach files outside it.
///
/// # Errors
/// Fails as [`open`] does, and if `path` is a symbolic link.
pub(crate) fn open_own(path: &Path) -> Result<(File, u64)> {
    if path.is_symlink() {
        return Err(Error::input(path, "is a symbolic link; put the file itself there"));
    }
    open(path)
}

/// Whether there is anything at `path`, be it a symbolic link to nothing: opening that, unlike taking
/// the file for absent, tells what is wrong.
pub(crate) fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// Reads a UTF-8 text file of at most `limit` bytes.
///
/// # Errors
/// Fails as [`open`] does, and if the file is larger or is not UTF-8.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_bytes(path, limit)?).map_err(|error| {
        Error::input(path, format_args!("not UTF-8 at byte {}", error.utf8_error().valid_up_to()))
    })
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// Fails as [`open`] does, and if the file is larger.
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let (file, length) = open(path)?;
    let mut bytes = Vec::new();
    // One byte past the limit tells a file that grew after its length was taken.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|source| Error::io(path, "read", source))?;
    let length = length.max(bytes.len() as u64);
    if length > limit {
        return Err(Error::input(path, format_args!("{length} bytes long; at most {limit} are read")));
    }
    Ok(bytes)
}

/// Parses JSON as [`serde_json`] does, but refuses an object that holds a key twice (where readers
/// differ in which they take) and more nesting or values than any configuration needs.
pub(crate) fn parse_json(path: &Path, text: &str) -> Result<Value> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    StrictValue { depth: 0, values_left: &Cell::new(VALUES) }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| json_error(path, &error))
}

/// `error` as the crate's own, its quotations from the file made safe to print.
pub(crate) fn json_error(path: &Path, error: &serde_json::Error) -> Error {
    Error::input(path, format_args!("bad JSON: {}", printable(&error.to_string())))
}

/// `text` with control, bidirectional and other invisible characters escaped, cut after 200
/// characters.
pub fn printable(text: &str) -> String {
    let mut shown = String::new();
    for (position, character) in text.chars().enumerate() {
        if position == PRINTED_CHARACTERS {
            shown.push('…');
            break;
        }
        match character {
            '"' | '\'' => shown.push(character),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

/// Deserialises any JSON value, strictly.
#[derive(Clone, Copy)]
struct StrictValue<'a> {
    depth: usize,
    values_left: &'a Cell<usize>,
}

impl StrictValue<'_> {
    fn inner<E: de::Error>(self) -> std::result::Result<Self, E> {
        if self.depth == NESTING {
            return Err(E::custom(format_args!("nested more than {NESTING} deep")));
        }
        Ok(Self { depth: self.depth + 1, ..self })
    }
}

impl<'de> DeserializeSeed<'de> for StrictValue<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<Value, D::Error> {
        let Some(values_left) = self.values_left.get().checked_sub(1) else {
            return Err(de::Error::custom(format_args!("more than {VALUES} values")));
        };
        self.values_left.set(values_left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for StrictValue<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> std::result::Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = sequence.next_element_seed(self.inner()?)? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> std::result::Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if map.contains_key(&key) {
                return Err(duplicate_key(&key));
            }
            let value = entries.next_value_seed(self.inner()?)?;
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// The complaint about an object that holds `key` twice.
pub(crate) fn duplicate_key<E: de::Error>(key: &str) -> E {
    E::custom(format_args!("the key \"{key}\" comes twice"))
}
