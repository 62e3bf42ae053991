//! Building archives and pickles, good and bad.

use qformer::params::safetensors::Checkpoint;
use std::path::PathBuf;
use tempfile::TempDir;

/// A zip archive and where its records are.
#[derive(Clone)]
pub(crate) struct Archive {
    pub(crate) bytes: Vec<u8>,
    /// The entries' own headers.
    pub(crate) locals: Vec<usize>,
    /// The entries' headers in the central directory.
    pub(crate) centrals: Vec<usize>,
    pub(crate) end: usize,
}

impl Archive {
    /// Stored entries, as Python's zipfile writes them.
    pub(crate) fn of(entries: &[(&str, Vec<u8>)]) -> Self {
        let (mut bytes, mut locals, mut directory, mut centrals) = (vec![], vec![], vec![], vec![]);
        for (name, data) in entries {
            let mut facts = vec![0, 0, 0, 0, 0, 0, 0, 0];
            facts.extend(crc32fast::hash(data).to_le_bytes());
            facts.extend([(data.len() as u32).to_le_bytes(), (data.len() as u32).to_le_bytes()].concat());
            facts.extend((name.len() as u16).to_le_bytes());
            facts.extend([0, 0]);
            let begin = bytes.len();
            locals.push(begin);
            bytes.extend(b"PK\x03\x04\x14\0");
            bytes.extend(&facts);
            bytes.extend(name.as_bytes());
            bytes.extend(data);
            centrals.push(directory.len());
            directory.extend(b"PK\x01\x02\x14\0\x14\0");
            directory.extend(&facts);
            directory.extend([0; 10]);
            directory.extend((begin as u32).to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let begin = bytes.len();
        bytes.extend(&directory);
        let end = bytes.len();
        bytes.extend(b"PK\x05\x06\0\0\0\0");
        let count = (entries.len() as u16).to_le_bytes();
        bytes.extend([count, count].concat());
        bytes.extend((directory.len() as u32).to_le_bytes());
        bytes.extend((begin as u32).to_le_bytes());
        bytes.extend([0, 0]);
        let centrals = centrals.into_iter().map(|at| begin + at).collect();
        Self { bytes, locals, centrals, end }
    }

    /// A checkpoint with this pickle and these storages.
    pub(crate) fn checkpoint(pickle: Vec<u8>, storages: &[(&str, Vec<u8>)]) -> Self {
        let names: Vec<String> = storages.iter().map(|(key, _)| format!("archive/data/{key}")).collect();
        let storages = names.iter().zip(storages).map(|(name, (_, data))| (&name[..], data.clone()));
        let entries: Vec<_> = [("archive/data.pkl", pickle)].into_iter().chain(storages).collect();
        Self::of(&entries)
    }

    pub(crate) fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// A folder of its own with a file that holds `bytes`.
pub(crate) fn on_disk(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pth");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The complaint about a file of these bytes.
#[track_caller]
pub(crate) fn refusal(bytes: &[u8]) -> String {
    let (_folder, path) = on_disk(bytes);
    match Checkpoint::open(&path) {
        Ok(opened) => panic!("accepted: {opened:?}"),
        Err(error) => error.to_string(),
    }
}

#[track_caller]
pub(crate) fn assert_refused(bytes: &[u8], fragment: &str) {
    let refusal = refusal(bytes);
    assert!(refusal.contains(fragment), "{fragment:?} is not in {refusal:?}");
    assert!(refusal.len() < 1000 && !refusal.contains(|c: char| c.is_control()), "{refusal:?}");
}

/// A view of a storage, as a pickle tells it.
#[derive(Clone)]
pub(crate) struct View<'a> {
    pub(crate) name: &'a str,
    /// Such as "FloatStorage".
    pub(crate) storage: &'a str,
    pub(crate) key: &'a str,
    pub(crate) elements: i64,
    pub(crate) offset: i64,
    pub(crate) shape: &'a [i64],
    pub(crate) strides: &'a [i64],
}

/// Pickles an integer, as LONG1.
pub(crate) fn integer(number: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &number.to_le_bytes()].concat()
}

/// Pickles a text, as BINUNICODE.
pub(crate) fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn integers(numbers: &[i64]) -> Vec<u8> {
    let numbers: Vec<u8> = numbers.iter().flat_map(|&number| integer(number)).collect();
    [b"(", &numbers[..], b"t"].concat()
}

/// Pickles a tensor.
pub(crate) fn tensor(view: &View<'_>) -> Vec<u8> {
    let View { storage, key, elements, offset, shape, strides, .. } = view;
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage")[..],
        format!("ctorch\n{storage}\n").as_bytes(),
        &text(key),
        &text("cpu"),
        &integer(*elements),
        b"tQ",
        &integer(*offset),
        &integers(shape),
        &integers(strides),
        b"\x89ccollections\nOrderedDict\n)RtR",
    ]
    .concat()
}

/// The pickle of a state dict by itself.
pub(crate) fn state_dict(views: &[View<'_>]) -> Vec<u8> {
    let items: Vec<u8> = views.iter().flat_map(|view| [text(view.name), tensor(view)].concat()).collect();
    [b"\x80\x02}(", &items[..], b"u."].concat()
}

/// Four numbers, 0 to 3, as the tensor "x".
pub(crate) const FOUR: View<'_> =
    View { name: "x", storage: "FloatStorage", key: "0", elements: 4, offset: 0, shape: &[4], strides: &[1] };

/// 0.0, 1.0, … as they lie in memory.
pub(crate) fn counted(elements: usize) -> Vec<u8> {
    (0..elements).flat_map(|i| (i as f32).to_le_bytes()).collect()
}

/// A good checkpoint with the tensor "x".
pub(crate) fn four() -> Archive {
    Archive::checkpoint(state_dict(&[FOUR]), &[("0", counted(4))])
}

/// All values of the tensor `name`.
pub(crate) fn values(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    let mut all = Vec::new();
    checkpoint
        .read_f32(name, |first, block| {
            assert_eq!(first, all.len(), "blocks come in order");
            all.extend_from_slice(block);
        })
        .unwrap();
    all
}
