//! Checkpoints as `torch.save` writes them, such as LAVIS's `.pth` files: a zip archive of a pickle, that tells
//! the tensors, and of their storages, as they lie in memory. Nothing in them is ever executed.
//!
//! Values are read from the file when they are asked for, as those of safetensors are.

mod pickle;
mod value;
mod zip;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ::safetensors::Dtype;

use super::bounds::{NAME_BYTES, TENSORS, read_exact_at};
use crate::error::{Error, Result};
use crate::input::printable;
use value::{Pickle, Tensor, Value};

/// Longest pickle read, in bytes: that of a checkpoint with its optimiser's state is below a megabyte.
const PICKLE_BYTES: u64 = 64 << 20;
/// Most elements of all tensors for each byte of the file: views may share a storage or repeat its elements, but
/// reading them all must not take for ever.
const ELEMENTS_PER_BYTE: u64 = 16;
/// Bytes read at once where a checksum is computed.
const BLOCK_BYTES: usize = 1 << 18;

/// One tensor.
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Elements between neighbours along each dimension; `None` if they lie row-major without gaps.
    pub(super) strides: Option<Vec<usize>>,
    /// Where its first element is, in bytes from the start of the file.
    pub(super) begin: u64,
    pub(super) storage: Arc<Storage>,
}

/// Where a storage is in the file.
#[derive(Debug)]
pub(super) struct Storage {
    begin: u64,
    bytes: u64,
    /// CRC-32; 0 if there is none.
    crc: u32,
    /// Whether the bytes are known to have that checksum.
    verified: AtomicBool,
}

/// Whether the file's name says that it is such a checkpoint.
pub(super) fn is_named_so(path: &Path) -> bool {
    path.extension()
        .is_some_and(|extension| ["pth", "pt"].iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

/// The tensors of the state dict in the file at `path`, `length` bytes long: what it holds under "model", as
/// LAVIS has it, or itself.
pub(super) fn read(path: &Path, file: &File, length: u64) -> Result<BTreeMap<String, Entry>> {
    refuse_older_formats(path, file, length)?;
    let entries = zip::entries(path, file, length)?;
    let pickles: Vec<&str> = entries
        .keys()
        .filter_map(|name| name.strip_suffix("/data.pkl").filter(|folder| !folder.contains('/')))
        .collect();
    let &[folder] = &pickles[..] else {
        let what = format_args!("holds {} pickles called */data.pkl; a checkpoint has one", pickles.len());
        return Err(Error::input(path, what));
    };
    let archive = Archive { path, file, length, folder, entries: &entries };
    if entries.contains_key(&format!("{folder}/byteorder")) && archive.whole("byteorder", 16)? != b"little" {
        return Err(Error::input(path, "its numbers are not little-endian; save it anew on such a machine"));
    }
    let bytes = archive.whole("data.pkl", PICKLE_BYTES)?;
    let pickle = pickle::read(&bytes)
        .map_err(|what| Error::input(path, format_args!("data.pkl, {}", printable(&what))))?;
    archive.tensors(&pickle)
}

/// Tells what the file is if it is one of PyTorch's other formats.
fn refuse_older_formats(path: &Path, file: &File, length: u64) -> Result<()> {
    let mut start = [0; 262];
    let start = &mut start[..usize::try_from(length.min(262)).expect("few")];
    read_exact_at(file, start, 0).map_err(|error| Error::io(path, "read", error))?;
    let format = match start {
        [b'P', b'K', 3, 4, ..] => return Ok(()),
        [0x80, ..] => "in the format of PyTorch before 1.6",
        _ if start.ends_with(b"ustar") => "a tar archive, PyTorch's first format",
        _ => "not a zip archive as torch.save writes it",
    };
    let remedy = "load it with torch and save its state dict with torch.save or safetensors";
    Err(Error::input(path, format_args!("{format}; {remedy}")))
}

struct Archive<'a> {
    path: &'a Path,
    file: &'a File,
    length: u64,
    folder: &'a str,
    entries: &'a BTreeMap<String, zip::Entry>,
}

impl Archive<'_> {
    /// All bytes of an entry, at most `limit`.
    fn whole(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let zip::Entry { begin, bytes, crc } = self.entries[&format!("{}/{name}", self.folder)];
        if bytes > limit {
            let what = format_args!("{name} has {bytes} bytes; at most {limit} are read");
            return Err(Error::input(self.path, what));
        }
        let mut whole = vec![0; usize::try_from(bytes).expect("within the limit")];
        read_exact_at(self.file, &mut whole, begin).map_err(|error| Error::io(self.path, "read", error))?;
        if crc != 0 && crc != crc32fast::hash(&whole) {
            return Err(Error::input(self.path, format_args!("{name} does not have its checksum")));
        }
        Ok(whole)
    }

    fn tensors(&self, pickle: &Pickle<'_>) -> Result<BTreeMap<String, Entry>> {
        let no_dict = || Error::input(self.path, "holds no dict of tensors, by itself or under \"model\"");
        let Value::Dict(whole) = pickle.root() else { return Err(no_dict()) };
        let model = whole.iter().rev().find(|[key, _]| pickle.text(*key) == Some("model"));
        let state = match model.map(|&[_, value]| pickle.get(value)) {
            Some(Value::Dict(model)) => model,
            _ => whole,
        };
        let mut storages = BTreeMap::new();
        let mut tensors = BTreeMap::new();
        let mut elements = 0_u64;
        for &[key, value] in state {
            let &Value::Tensor(tensor) = pickle.get(value) else { continue };
            let name = pickle.text(key).filter(|name| name.len() <= NAME_BYTES);
            let name = name.ok_or_else(|| {
                Error::input(self.path, format_args!("a tensor without a name of at most {NAME_BYTES} bytes"))
            })?;
            let wrong = |what: String| {
                Error::input(self.path, format_args!("tensor \"{}\": {what}", printable(name)))
            };
            let &Value::Storage(storage) = pickle.get(tensor.storage) else {
                unreachable!("checked when it was read")
            };
            let place = self.place(pickle, storage, &mut storages).map_err(wrong)?;
            let entry = entry(pickle, tensor, storage, place).map_err(wrong)?;
            elements = elements.saturating_add(entry.shape.iter().product::<usize>() as u64);
            if elements / ELEMENTS_PER_BYTE > self.length {
                return Err(wrong("the tensors hold far more elements than the file".into()));
            }
            if tensors.len() == TENSORS {
                return Err(Error::input(self.path, format_args!("more than {TENSORS} tensors")));
            }
            if tensors.insert(name.to_owned(), entry).is_some() {
                return Err(wrong("comes twice".into()));
            }
        }
        if tensors.is_empty() { Err(no_dict()) } else { Ok(tensors) }
    }

    /// Where a storage is; `known` holds those asked for before.
    fn place<'p>(
        &self,
        pickle: &Pickle<'p>,
        storage: value::Storage,
        known: &mut BTreeMap<&'p str, Arc<Storage>>,
    ) -> std::result::Result<Arc<Storage>, String> {
        let elements = pickle.size(storage.elements);
        let key = pickle.text(storage.key).expect("checked when it was read");
        let entry = self.entries.get(&format!("{}/data/{key}", self.folder));
        let &zip::Entry { begin, bytes, crc } =
            entry.ok_or_else(|| format!("there is no storage \"{}\"", printable(key)))?;
        if elements.checked_mul(element_bytes(storage.dtype)) != Some(bytes) {
            return Err(format!(
                "its storage has {bytes} bytes, not {elements} elements of {}",
                storage.dtype
            ));
        }
        let new = || Arc::new(Storage { begin, bytes, crc, verified: AtomicBool::new(false) });
        Ok(known.entry(key).or_insert_with(new).clone())
    }
}

fn element_bytes(dtype: Dtype) -> u64 {
    dtype.bitsize() as u64 / 8
}

/// A tensor that lies within its storage.
fn entry(
    pickle: &Pickle<'_>,
    tensor: Tensor,
    storage: value::Storage,
    place: Arc<Storage>,
) -> std::result::Result<Entry, String> {
    let (offset, stored) = (pickle.size(tensor.offset), pickle.size(storage.elements));
    let (shape, strides) = (&pickle.sizes(tensor.shape), &pickle.sizes(tensor.strides));
    if shape.len() != strides.len() {
        return Err(format!("has {} extents and {} strides", shape.len(), strides.len()));
    }
    let end = end(offset, shape, strides).filter(|&end| end <= stored);
    let elements = shape.iter().try_fold(1_u64, |product, &extent| product.checked_mul(extent));
    let (Some(_), Some(_)) = (end, elements) else {
        return Err(format!(
            "shape {shape:?} with strides {strides:?} from element {offset} on is not within the {stored} of its \
             storage"
        ));
    };
    let fits = |numbers: &[u64]| numbers.iter().map(|&n| usize::try_from(n)).collect();
    let (Ok(shape), Ok(strides)): (std::result::Result<Vec<usize>, _>, std::result::Result<Vec<usize>, _>) =
        (fits(shape), fits(strides))
    else {
        return Err("is too large for this machine".into());
    };
    Ok(Entry {
        dtype: storage.dtype,
        strides: (!is_row_major(&shape, &strides)).then_some(strides),
        shape,
        begin: place.begin + offset * element_bytes(storage.dtype),
        storage: place,
    })
}

/// One past the last element that the view reads; of an empty view, its offset.
fn end(offset: u64, shape: &[u64], strides: &[u64]) -> Option<u64> {
    if shape.contains(&0) {
        return Some(offset);
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |last, (&extent, &stride)| last.checked_add((extent - 1).checked_mul(stride)?))?;
    last.checked_add(1)
}

/// Whether the elements lie one after the other; a stride along an extent of 1 means nothing.
fn is_row_major(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.contains(&0)
        || shape.iter().zip(strides).rev().all(|(&extent, &stride)| {
            let fits = extent == 1 || stride == expected;
            expected *= extent;
            fits
        })
}

impl Storage {
    /// Reads the whole storage once, and compares its checksum.
    pub(super) fn verify(&self, path: &Path, file: &File) -> Result<()> {
        if self.crc == 0 || self.verified.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut hasher = crc32fast::Hasher::new();
        let mut block = vec![0; BLOCK_BYTES];
        let (mut begin, end) = (self.begin, self.begin + self.bytes);
        while begin < end {
            let count = block.len().min(usize::try_from(end - begin).unwrap_or(usize::MAX));
            read_exact_at(file, &mut block[..count], begin)
                .map_err(|error| Error::io(path, "read", error))?;
            hasher.update(&block[..count]);
            begin += count as u64;
        }
        if hasher.finalize() != self.crc {
            let what = format_args!("bytes {} to {end} do not have their checksum; copy it anew", self.begin);
            return Err(Error::input(path, what));
        }
        self.verified.store(true, Ordering::Relaxed);
        Ok(())
    }
}
