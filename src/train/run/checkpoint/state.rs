//! Where a run stood, and whether the files of its checkpoint are those that were written.

use super::{OPTIMIZER_FILE_NAME, SHARDS, STATE_FILE_NAME};
use crate::config;
use crate::data::Position;
use crate::error::{Error, Result};
use crate::input;
use crate::output::write_json;
use crate::params::safetensors::{FILE_NAME, INDEX_FILE_NAME, is_plain_file_name};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

/// Largest state file read, in bytes.
const STATE_BYTES: u64 = 256 << 20;
/// Largest other file of a checkpoint, in bytes: several times what BLIP-2's largest model takes.
const FILE_BYTES: u64 = 64 << 30;
/// Key of the state file's checksum of all else that it says.
const OWN_SUM: &str = "crc32";

/// Where a run stood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// Steps done.
    pub global_step: usize,
    /// Where the next step's data begin.
    pub position: Position,
    /// Of everything random, which is a function of it and the step.
    pub seed: u32,
    /// [`Dataset::fingerprint`](crate::data::Dataset::fingerprint) of what is learnt from.
    pub dataset: u32,
    /// Faults of the samples left out so far, which count against what is allowed.
    pub unreadable: Vec<String>,
    /// Every other file of the folder, by name.
    pub files: BTreeMap<String, FileSum>,
}

/// What is known of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSum {
    /// Its length.
    pub bytes: u64,
    /// CRC-32 of its bytes, in hexadecimal digits.
    pub crc32: String,
}

impl FileSum {
    /// Reads the file at `path`.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let failed = |error| Error::io(path, "read", error);
        let (file, bytes) = input::open_own(path)?;
        if bytes > FILE_BYTES {
            return Err(Error::input(
                path,
                format_args!("{bytes} bytes long; at most {FILE_BYTES} are read"),
            ));
        }
        let mut file = file.take(bytes);
        let mut hasher = crc32fast::Hasher::new();
        let mut block = vec![0; 1 << 20];
        loop {
            match file.read(&mut block).map_err(failed)? {
                0 => return Ok(Self { bytes, crc32: format!("{:08x}", hasher.finalize()) }),
                count => hasher.update(&block[..count]),
            }
        }
    }
}

impl State {
    /// The state of the checkpoint in `folder`, whose files are there with the lengths that they had; what is in
    /// them was not looked at.
    ///
    /// # Errors
    /// Fails, naming the file, if one is torn, missing, or not a file of the folder itself.
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE_FILE_NAME);
        input::open_own(&path)?;
        let mut json = input::parse_json(&path, &input::read_text(&path, STATE_BYTES)?)?;
        let written = json.as_object_mut().and_then(|object| object.remove(OWN_SUM));
        let found = own_sum(&json);
        if written.as_ref().and_then(Value::as_str) != Some(&found) {
            let written = written.unwrap_or_default();
            let what =
                format_args!("its checksum is \"{found}\", but it says {written}; it was changed or is torn");
            return Err(Error::input(&path, what));
        }
        let state: Self = serde_json::from_value(json).map_err(|error| Error::input(&path, error))?;
        if folder.file_name().is_none_or(|name| *name != *super::folder::name_of(state.global_step)) {
            let what = format_args!("says step {}, but its folder another", state.global_step);
            return Err(Error::input(&path, what));
        }
        let is_listed = |name: &&str| state.files.contains_key(*name);
        let model: &[&str] =
            if is_listed(&FILE_NAME) { &[FILE_NAME] } else { &[INDEX_FILE_NAME, SHARDS[0], SHARDS[1]] };
        let needed = [config::FILE_NAME, OPTIMIZER_FILE_NAME].iter().chain(model);
        if let Some(name) = needed.copied().find(|name| !is_listed(name)) {
            let what = format_args!("its list of files lacks {name}, which belongs to every checkpoint");
            return Err(Error::input(&path, what));
        }
        for (name, sum) in &state.files {
            if !is_plain_file_name(name) {
                let name = input::printable(name);
                return Err(Error::input(&path, format_args!("\"{name}\" is not a plain file name")));
            }
            let path = folder.join(name);
            let (_, found) = input::open_own(&path)?;
            if found != sum.bytes {
                let what = format_args!("{found} bytes long, but {STATE_FILE_NAME} says {}", sum.bytes);
                return Err(Error::input(&path, what));
            }
        }
        Ok(state)
    }

    /// Checks the bytes of all files in `folder`.
    pub(super) fn check_sums(&self, folder: &Path) -> Result<()> {
        self.files.iter().try_for_each(|(name, sum)| {
            let path = folder.join(name);
            let found = FileSum::of(&path)?;
            if found == *sum {
                return Ok(());
            }
            let (found, written) = (found.crc32, input::printable(&sum.crc32));
            let what = format_args!("its checksum is {found}, but {STATE_FILE_NAME} says {written}");
            Err(Error::input(&path, what))
        })
    }

    /// Refuses a file in `folder` that does not belong to the checkpoint, but for hidden ones.
    pub(super) fn check_no_others(&self, folder: &Path) -> Result<()> {
        for entry in folder.read_dir().map_err(|error| Error::io(folder, "list", error))? {
            let name = entry.map_err(|error| Error::io(folder, "list", error))?.file_name();
            let name = name.to_string_lossy();
            if *name != *STATE_FILE_NAME && !name.starts_with('.') && !self.files.contains_key(&*name) {
                let what = format_args!(
                    "is not one of the checkpoint's files, which {STATE_FILE_NAME} lists; move it out of the folder"
                );
                return Err(Error::input(&folder.join(&*name), what));
            }
        }
        Ok(())
    }

    /// Writes the state to `folder`.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        let mut json = serde_json::to_value(self).expect("plain data");
        json[OWN_SUM] = own_sum(&json).into();
        write_json(&folder.join(STATE_FILE_NAME), &json)
    }
}

/// CRC-32 of a value's text without spaces, its keys sorted, in hexadecimal digits.
fn own_sum(value: &Value) -> String {
    format!("{:08x}", crc32fast::hash(value.to_string().as_bytes()))
}
