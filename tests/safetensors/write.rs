//! Written files.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use crate::{Random, values};
use half::{bf16, f16};
use qformer::Error;
use qformer::output::write_atomically;
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use safetensors::SafeTensors;

fn no_metadata() -> BTreeMap<String, String> {
    BTreeMap::new()
}

/// Names of the files in `folder`.
fn files_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn values_survive_being_written_and_read_in_every_dtype() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut random = Random(3);
    // More than one block of each tensor.
    let numbers: Vec<f32> = (0..300_001).map(|_| random.below(1 << 20) as f32 / 1024.0 - 512.0).collect();
    let small = [0.07];
    let tensors = vec![
        NewTensor::from_slice("half", Dtype::F16, &[300_001], &numbers),
        NewTensor::from_slice("brain", Dtype::BF16, &[300_001, 1], &numbers),
        NewTensor::from_slice("single", Dtype::F32, &[1, 300_001], &numbers),
        NewTensor::from_slice("temp", Dtype::F32, &[], &small),
        NewTensor::from_slice("empty", Dtype::F32, &[3, 0], &[]),
    ];
    write(&path, &BTreeMap::from([("made_by".into(), "a test".into())]), tensors).unwrap();
    let read = Checkpoint::open(&path).unwrap();
    assert_eq!(read.metadata()["format"], "pt");
    assert_eq!(read.metadata()["made_by"], "a test");
    assert_eq!(read.names().collect::<Vec<_>>(), ["brain", "empty", "half", "single", "temp"]);
    assert_eq!(read.get("brain").unwrap().shape, [300_001, 1]);
    assert!(values(&read, "single").0 == numbers);
    assert!(
        values(&read, "half").0 == numbers.iter().map(|&x| f16::from_f32(x).to_f32()).collect::<Vec<_>>()
    );
    assert!(
        values(&read, "brain").0 == numbers.iter().map(|&x| bf16::from_f32(x).to_f32()).collect::<Vec<_>>()
    );
    assert_eq!(values(&read, "temp").0, small);
    assert!(values(&read, "empty").0.is_empty());
    assert_eq!(files_in(folder.path()), ["model.safetensors"]);
}

#[test]
fn the_formats_own_library_reads_what_is_written_and_finds_it_aligned() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let tensors = vec![
        NewTensor::from_slice("a", Dtype::BF16, &[3], &[1.0, 2.0, 3.0]),
        NewTensor::from_slice("b", Dtype::F32, &[1], &[4.0]),
    ];
    write(&path, &no_metadata(), tensors).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    let (header_bytes, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header_bytes % 8, 0);
    assert_eq!(metadata.info("b").unwrap().data_offsets, (0, 4));
    assert_eq!(metadata.info("a").unwrap().data_offsets, (4, 10));
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.tensor("b").unwrap().data(), 4.0_f32.to_le_bytes());
    assert_eq!(theirs.tensor("a").unwrap().data(), [0x80, 0x3f, 0x00, 0x40, 0x40, 0x40]);
}

#[test]
fn values_are_made_block_by_block_when_it_is_their_turn() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let mut largest = 0;
    let tensor = NewTensor::new("x", Dtype::F32, &[1_000_000], |first, block| {
        largest = largest.max(block.len());
        for (value, index) in block.iter_mut().zip(first..) {
            *value = index as f32;
        }
        Ok(())
    });
    write(&path, &no_metadata(), vec![tensor]).unwrap();
    assert!(largest <= 1 << 18);
    let expected: Vec<f32> = (0..1_000_000).map(|index| index as f32).collect();
    assert!(values(&Checkpoint::open(&path).unwrap(), "x").0 == expected);
}

#[test]
fn a_write_that_fails_half_way_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for old in [None, Some(b"the old file")] {
        if let Some(old) = old {
            std::fs::write(&path, old).unwrap();
        }
        let mut blocks = 0;
        let tensor = NewTensor::new("x", Dtype::F32, &[1_000_000], |_, _| {
            blocks += 1;
            if blocks == 3 { Err(Error::value("no more values")) } else { Ok(()) }
        });
        let message = write(&path, &no_metadata(), vec![tensor]).unwrap_err().to_string();
        assert_eq!(message, "no more values");
        assert_eq!(std::fs::read(&path).ok().as_deref(), old.map(|old| &old[..]));
        assert_eq!(files_in(folder.path()).len(), usize::from(old.is_some()));
    }
}

#[test]
fn a_panic_half_way_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, "old").unwrap();
    let outcome = std::panic::catch_unwind(|| {
        write_atomically(&path, |file| {
            file.write_all(b"new").unwrap();
            panic!("half-way");
        })
    });
    assert!(outcome.is_err());
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(files_in(folder.path()), ["config.json"]);
}

#[test]
fn a_file_is_replaced_and_readable_by_whom_the_system_lets_read_new_files() {
    let folder = tempfile::tempdir().unwrap();
    let [atomic, plain] = ["atomic", "plain"].map(|name| folder.path().join(name));
    for text in ["old, and longer", "new"] {
        write_atomically(&atomic, |file| {
            file.write_all(text.as_bytes()).unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(std::fs::read_to_string(&atomic).unwrap(), text);
    }
    std::fs::write(&plain, "").unwrap();
    let permissions = |path| std::fs::metadata(path).unwrap().permissions();
    assert_eq!(permissions(&atomic), permissions(&plain));
}

#[test]
fn what_cannot_be_written_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let one = [1.0];
    let refused = |tensors, fragment: &str| {
        let message = write(&path, &no_metadata(), tensors).unwrap_err().to_string();
        assert!(message.contains(fragment), "\"{message}\" does not say \"{fragment}\"");
    };
    let tensor = |name, dtype, values| NewTensor::from_slice(name, dtype, &[1], values);
    refused(
        vec![tensor("a", Dtype::F32, &one), tensor("a", Dtype::F16, &one)],
        "tensor \"a\": the name is taken",
    );
    refused(vec![tensor("a", Dtype::I64, &one)], "I64 is not written");
    refused(vec![NewTensor::new("a", Dtype::F32, &[usize::MAX, 2], |_, _| Ok(()))], "too large");
    refused(vec![tensor("a", Dtype::F16, &[65_520.0])], "6.552e4 is out of F16's range");
    refused(vec![tensor("a", Dtype::BF16, &[f32::MIN])], "is out of BF16's range");
    assert_eq!(files_in(folder.path()).len(), 0);
    // The largest numbers that round to finite ones, and what was infinite before, are written.
    let largest = f32::from_bits(0x7f7f_7fff);
    for (dtype, value) in [(Dtype::F16, 65_519.0), (Dtype::BF16, largest), (Dtype::F16, f32::INFINITY)] {
        let tensor = NewTensor::from_slice("a", dtype, &[1], std::slice::from_ref(&value));
        write(&path, &no_metadata(), vec![tensor]).unwrap();
        let (read, not_finite) = values(&Checkpoint::open(&path).unwrap(), "a");
        assert_eq!(not_finite == 0, value.is_finite(), "{read:?}");
    }
    let absent = folder.path().join("absent").join("model.safetensors");
    let message = write(&absent, &no_metadata(), vec![]).unwrap_err().to_string();
    assert!(message.contains("cannot write") && message.contains("absent"), "{message}");
}
