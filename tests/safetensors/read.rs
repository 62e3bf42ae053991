//! Values of valid files.

use std::fs::OpenOptions;

use crate::{Random, file_of, on_disk, values};
use half::{bf16, f16};
use qformer::params::safetensors::{Checkpoint, Dtype};
use safetensors::SafeTensors;

#[test]
fn the_golden_checkpoint_reads_as_the_formats_own_library_reads_it() {
    let path = "tests/golden/retrieval/model/model.safetensors";
    let bytes = std::fs::read(path).unwrap();
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    let ours = Checkpoint::open("tests/golden/retrieval/model".as_ref()).unwrap();
    assert_eq!(ours.metadata()["format"], "pt");
    let names: Vec<&str> = ours.names().collect();
    assert!(names.is_sorted());
    assert_eq!(names.len(), theirs.len());
    for (name, tensor) in theirs.tensors() {
        let info = ours.get(&name).unwrap();
        assert_eq!((info.dtype, &info.shape[..]), (tensor.dtype(), tensor.shape()));
        let expected: Vec<f32> =
            tensor.data().chunks(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect();
        assert_eq!(values(&ours, &name), (expected, 0), "{name}");
    }
    assert!(ours.get("no_such_tensor").is_none());
    assert!(
        ours.read_f32("no_such\n", |_, _| {})
            .unwrap_err()
            .to_string()
            .contains("has no tensor \"no_such\\n\"")
    );
}

/// A file whose only tensor, `x`, is `data`, begun at byte `misalignment` modulo 8.
fn file_with(dtype: &str, elements: usize, data: &[u8], misalignment: usize) -> Vec<u8> {
    let end = data.len();
    let mut header =
        format!(r#"{{"x":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[0,{end}]}}}}"#);
    while header.len() % 8 != misalignment {
        header.push(' ');
    }
    file_of(&header, data)
}

#[test]
fn every_float_dtype_reads_at_every_alignment() {
    let numbers = [0.0, -0.0, 1.0, -1.5, 0.099_975_586, 65504.0, 6.0e-8, -3.0];
    let stored: [(&str, Vec<u8>, Vec<f32>); 4] = [
        ("F32", numbers.iter().flat_map(|x: &f32| x.to_le_bytes()).collect(), numbers.to_vec()),
        ("F64", numbers.iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect(), numbers.to_vec()),
        (
            "F16",
            numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            numbers.iter().map(|&x| f16::from_f32(x).to_f32()).collect(),
        ),
        (
            "BF16",
            numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            numbers.iter().map(|&x| bf16::from_f32(x).to_f32()).collect(),
        ),
    ];
    for (dtype, data, expected) in stored {
        for misalignment in 0..8 {
            let (_folder, path) = on_disk(&file_with(dtype, numbers.len(), &data, misalignment));
            let (read, not_finite) = values(&Checkpoint::open(&path).unwrap(), "x");
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!((bits(&read), not_finite), (bits(&expected), 0), "{dtype}");
        }
    }
}

#[test]
fn a_tensor_of_several_blocks_is_streamed_in_order() {
    let mut random = Random(2);
    // Ten blocks and one more element.
    let numbers: Vec<f64> = (0..327_681).map(|_| random.below(1 << 20) as f64).collect();
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let (_folder, path) = on_disk(&file_with("F64", numbers.len(), &data, 0));
    let checkpoint = Checkpoint::open(&path).unwrap();
    let mut blocks = 0;
    checkpoint
        .read_f32("x", |_, block| {
            assert!(block.len() <= 1 << 15);
            blocks += 1;
        })
        .unwrap();
    assert_eq!(blocks, 11);
    let expected: Vec<f32> = numbers.iter().map(|&number| number as f32).collect();
    assert!(values(&checkpoint, "x").0 == expected);
}

#[test]
fn values_that_are_not_finite_are_counted() {
    let numbers = [1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE / 2.0, f32::MAX];
    let data: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let (_folder, path) = on_disk(&file_with("F32", numbers.len(), &data, 0));
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "x").1, 3);
    // Finite in the file, but not as f32.
    let (_folder, path) = on_disk(&file_with("F64", 1, &1e300_f64.to_le_bytes(), 0));
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "x").1, 1);
}

#[test]
fn integers_are_listed_but_not_read_as_floats() {
    let (_folder, path) = on_disk(&file_with("I64", 1, &[0; 8], 0));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.get("x").unwrap().dtype, Dtype::I64);
    let message = checkpoint.read_f32("x", |_, _| {}).unwrap_err().to_string();
    assert!(message.contains("tensor \"x\" is I64; F32, F16, BF16 and F64 are read"), "{message}");
}

#[test]
fn empty_and_scalar_tensors_are_read() {
    let header = r#"{"empty":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]},"temp":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;
    let (_folder, path) = on_disk(&file_of(header, &0.07_f32.to_le_bytes()));
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(values(&checkpoint, "empty"), (vec![], 0));
    assert_eq!(values(&checkpoint, "temp"), (vec![0.07], 0));
}

#[test]
fn a_file_cut_short_after_it_was_opened_is_an_error() {
    let data = vec![0; 4 << 20];
    let (_folder, path) = on_disk(&file_with("F32", 1 << 20, &data, 0));
    let checkpoint = Checkpoint::open(&path).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(2 << 20).unwrap();
    let mut elements = 0;
    let message = checkpoint.read_f32("x", |_, block| elements += block.len()).unwrap_err().to_string();
    assert!(message.contains("ends within tensor \"x\""), "{message}");
    assert!(elements < 1 << 20);
}

#[test]
fn a_file_that_changes_length_while_it_is_read_never_ends_the_process() {
    let bytes = file_with("F32", 1 << 20, &vec![0; 4 << 20], 0);
    let (_folder, path) = on_disk(&bytes);
    let checkpoint = Checkpoint::open(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    std::thread::scope(|scope| {
        let race = scope.spawn(|| {
            for _ in 0..200 {
                file.set_len(1 << 20).unwrap();
                file.set_len(bytes.len() as u64).unwrap();
            }
        });
        let mut outcomes = Vec::new();
        while !race.is_finished() {
            outcomes
                .push(checkpoint.read_f32("x", |_, block| assert!(block.iter().all(|&value| value == 0.0))));
        }
        let expected = |outcome: &qformer::Result<usize>| match outcome {
            Ok(not_finite) => *not_finite == 0,
            Err(error) => error.to_string().contains("ends within"),
        };
        assert!(outcomes.iter().all(expected));
    });
}
