//! Checkpoint files: what is read, what is refused, and what is written.

mod safetensors {
    mod hostile;
    mod read;
    mod shards;
    mod straight;
    mod write;
}

use std::path::{Path, PathBuf};

use qformer::params::safetensors::Checkpoint;
use tempfile::TempDir;

/// The bytes of a file with the header `header` and the data `data`.
fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

/// A folder of its own with a file that holds `bytes`.
fn on_disk(bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

/// The complaint about the checkpoint at `path`.
fn refusal(path: &Path) -> String {
    match Checkpoint::open(path) {
        Ok(_) => panic!("accepted: {}", path.display()),
        Err(error) => error.to_string(),
    }
}

/// All values of the tensor `name`, and how many are not finite.
fn values(checkpoint: &Checkpoint, name: &str) -> (Vec<f32>, usize) {
    let mut all = Vec::new();
    let not_finite = checkpoint
        .read_f32(name, |first, block| {
            assert_eq!(first, all.len(), "blocks come in order");
            all.extend_from_slice(block);
        })
        .unwrap();
    (all, not_finite)
}

/// A sequence of pseudo-random 64-bit numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> usize {
        (self.next() % limit) as usize
    }
}
