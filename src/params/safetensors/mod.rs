//! Checkpoints in the [safetensors](https://github.com/huggingface/safetensors) format: a strict
//! reader that never maps a file nor reads one whole, and an atomic writer. What `torch.save` wrote is
//! opened in the same way.
//!
//! A file is: the header's length (8 bytes, little-endian), the header (JSON: per tensor its dtype,
//! shape and place), then the tensors' values, little-endian, row-major, without gap or overlap.
//! Whatever a header states is checked against the file's length before memory is taken for it.

mod header;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use ::safetensors::Dtype;
use header::Header;
pub use write::{NewTensor, write};

use super::pth;
use crate::error::{Error, Result};
use crate::input::{self, printable};
use crate::params::bounds::TENSORS;

/// Name of a checkpoint's file within its folder.
pub const FILE_NAME: &str = "model.safetensors";
/// Name of the file that says which shard of a checkpoint holds which tensor.
pub const INDEX_FILE_NAME: &str = "model.safetensors.index.json";
/// Name of the file that holds, beside a checkpoint's, the tensors of stage 1 of training that transformers has
/// no place for: the temperature and the language-modelling head.
pub const STAGE1_FILE_NAME: &str = "stage1.safetensors";

/// Longest index file read, in bytes.
const INDEX_BYTES: u64 = 32 << 20;
/// Most shards of a checkpoint; each is kept open.
const SHARDS: usize = 512;

/// The tensors of a checkpoint: one `.safetensors` or `.pth` file, or the shards that a
/// `model.safetensors.index.json` names.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

/// Dtype and shape of a stored tensor, and where its values are.
#[derive(Debug)]
pub struct TensorInfo {
    /// Type of its elements.
    pub dtype: Dtype,
    /// Its extents, the slowest-varying first.
    pub shape: Vec<usize>,
    shard: usize,
    /// Where the first element is, in bytes from the start of the file.
    begin: u64,
    /// Elements between neighbours along each dimension; `None` if they lie row-major without gaps.
    strides: Option<Vec<usize>>,
    /// What a `.pth` file's checksum is of.
    storage: Option<Arc<pth::Storage>>,
}

impl TensorInfo {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Bytes that the values take in the file.
    pub fn bytes(&self) -> u64 {
        header::byte_length(self.dtype, &self.shape).expect("checked when the header was read")
    }
}

#[derive(Debug)]
struct Shard {
    path: PathBuf,
    file: File,
}

impl Checkpoint {
    /// Opens the checkpoint at `path`: one `.safetensors` or `.pth` (or `.pt`) file, or a folder that
    /// holds `model.safetensors` or `model.safetensors.index.json` with its shards, either with or
    /// without `stage1.safetensors`, or just one `.pth` file.
    ///
    /// Headers are read and checked; values are not. Nothing in a `.pth` file is executed.
    ///
    /// # Errors
    /// Fails if there is no such file, or if one is not a regular file or breaks the format's rules
    /// in any way: a header longer than its file or 100 MB, a key that comes twice, a gap, an
    /// overlap, bytes after the last tensor, a shard outside the folder, a tensor in another shard
    /// than the index says or in two files; a `.pth` file that is no zip archive of stored entries, that names
    /// anything but a state dict's parts, or whose tensors are not within their storages.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.is_dir() {
            return Self::open_shards(path, vec![path.to_owned()]);
        }
        let file = path.join(FILE_NAME);
        let index = path.join(INDEX_FILE_NAME);
        let mut checkpoint = if input::exists(&file) {
            Self::open_shards(path, vec![file])?
        } else if input::exists(&index) {
            Self::open_index(path, &index)?
        } else {
            return Self::open_shards(path, vec![only_pth(path)?]);
        };
        let stage1 = path.join(STAGE1_FILE_NAME);
        if input::exists(&stage1) {
            checkpoint.add(stage1)?;
        }
        Ok(checkpoint)
    }

    /// The file or folder that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of files that hold the tensors.
    pub fn files(&self) -> usize {
        self.shards.len()
    }

    /// Names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Dtype and shape of the tensor `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    /// The free-form texts of the header's `__metadata__`; of all shards' headers together.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn open_shards(path: &Path, files: Vec<PathBuf>) -> Result<Self> {
        let mut checkpoint = Self {
            path: path.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            metadata: BTreeMap::new(),
        };
        files.into_iter().try_for_each(|file| checkpoint.add(file))?;
        Ok(checkpoint)
    }

    /// Adds the tensors of the file at `path`.
    fn add(&mut self, path: PathBuf) -> Result<()> {
        let (file, length) = input::open(&path)?;
        let shard = self.shards.len();
        let (found, metadata): (BTreeMap<String, TensorInfo>, _) = if pth::is_named_so(&path) {
            let of_entry = |pth::Entry { dtype, shape, strides, begin, storage }| TensorInfo {
                dtype,
                shape,
                shard,
                begin,
                strides,
                storage: Some(storage),
            };
            let tensors = pth::read(&path, &file, length)?.into_iter();
            (tensors.map(|(name, entry)| (name, of_entry(entry))).collect(), BTreeMap::new())
        } else {
            let Header { tensors, metadata, data_begin } = header::read(&path, &file, length)?;
            let of_entry = |::safetensors::tensor::TensorInfo { dtype, shape, data_offsets }| TensorInfo {
                dtype,
                shape,
                shard,
                begin: data_begin + data_offsets.0 as u64,
                strides: None,
                storage: None,
            };
            let tensors = tensors.into_iter().map(|(name, entry)| (name, of_entry(entry)));
            (tensors.collect(), metadata.unwrap_or_default())
        };
        for (name, info) in found {
            if self.tensors.contains_key(&name) {
                let what = format_args!("tensor \"{}\" is in another shard too", printable(&name));
                return Err(Error::input(&path, what));
            }
            self.tensors.insert(name, info);
        }
        self.metadata.extend(metadata);
        self.shards.push(Shard { path, file });
        Ok(())
    }

    fn open_index(folder: &Path, index: &Path) -> Result<Self> {
        let shard_of = read_index(index)?;
        let names: BTreeSet<&String> = shard_of.values().collect();
        if names.len() > SHARDS {
            return Err(Error::input(
                index,
                format_args!("{} shards; at most {SHARDS} are read", names.len()),
            ));
        }
        let checkpoint =
            Self::open_shards(folder, names.into_iter().map(|name| folder.join(name)).collect())?;
        for (name, shard) in &shard_of {
            let found = checkpoint.tensors.get(name).map(|info| &checkpoint.shards[info.shard].path);
            if found != Some(&folder.join(shard)) {
                let what = format_args!("tensor \"{}\" is not in {shard}", printable(name));
                return Err(Error::input(index, what));
            }
        }
        if let Some(name) = checkpoint.names().find(|&name| !shard_of.contains_key(name)) {
            let what = format_args!("does not list tensor \"{}\" of its shards", printable(name));
            return Err(Error::input(index, what));
        }
        Ok(checkpoint)
    }
}

/// The `.pth` file of a folder that holds no other checkpoint.
fn only_pth(folder: &Path) -> Result<PathBuf> {
    let failed = |error| Error::io(folder, "list", error);
    let entries = folder.read_dir().map_err(failed)?.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    let mut found = entries.into_iter().map(|entry| entry.path()).filter(|path| pth::is_named_so(path));
    match (found.next(), found.next()) {
        (Some(path), None) => Ok(path),
        (None, _) => Err(Error::input(
            folder,
            format_args!("holds neither {FILE_NAME} nor {INDEX_FILE_NAME}, and no .pth file"),
        )),
        _ => Err(Error::input(folder, "holds several .pth files; leave one there")),
    }
}

/// The shard's file name of each tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>> {
    let wrong = |what: String| Err(Error::input(path, what));
    let json = input::parse_json(path, &input::read_text(path, INDEX_BYTES)?)?;
    let Some(weight_map) = json.get("weight_map").and_then(|map| map.as_object()) else {
        return wrong("has no object \"weight_map\"".into());
    };
    if weight_map.is_empty() || weight_map.len() > TENSORS {
        return wrong(format!("lists {} tensors; 1 to {} are read", weight_map.len(), TENSORS));
    }
    let mut shard_of = BTreeMap::new();
    for (name, shard) in weight_map {
        match shard.as_str() {
            Some(shard) if is_plain_file_name(shard) => shard_of.insert(name.clone(), shard.to_owned()),
            _ => return wrong(format!("{} is not a plain file name", printable(&shard.to_string()))),
        };
    }
    Ok(shard_of)
}

/// Whether `name` can only be a file of the folder it is joined to.
pub(crate) fn is_plain_file_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=255).contains(&name.len()) && name.bytes().all(plain) && !name.starts_with('.')
}
