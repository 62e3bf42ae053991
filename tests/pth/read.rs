//! Values of valid files.

use super::archive::*;
use crate::paths::path;
use qformer::params::NamedCheckpoint;
use qformer::params::safetensors::{Checkpoint, Dtype};
use qformer::{Cpu, HostTensor, Matching, QFormer};
use std::fs;
use tempfile::TempDir;

fn golden(file: &str) -> std::path::PathBuf {
    path("tests/golden/pth").join(file)
}

/// A folder with the golden configuration and one of the golden checkpoints.
fn model(checkpoint: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "vocab.txt", checkpoint] {
        fs::copy(golden(file), folder.path().join(file)).unwrap();
    }
    folder
}

#[test]
fn a_checkpoint_of_lavis_holds_what_its_twin_in_safetensors_holds() {
    let (theirs, twin) =
        (Checkpoint::open(&golden("lavis.pth")), Checkpoint::open(&golden("model.safetensors")));
    let (theirs, twin) = (theirs.unwrap(), twin.unwrap());
    let dtype = |name| theirs.get(name).unwrap().dtype;
    assert_eq!(
        ["temp", "text_proj.weight", "vision_proj.weight", "itm_head.bias"].map(dtype),
        [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64]
    );
    assert_eq!(dtype("Qformer.bert.embeddings.position_ids"), Dtype::I64);
    let of =
        |name: &str| theirs.names().find(|&n| qformer::params::names::canonical(n).as_deref() == Some(name));
    let named = NamedCheckpoint::new(&theirs).unwrap();
    assert!(named.names().eq(twin.names()));
    for name in twin.names() {
        let stored = of(name).unwrap();
        assert_eq!(named.shape(name).unwrap(), twin.get(name).unwrap().shape, "{name}");
        assert_eq!(values(&theirs, stored), values(&twin, name), "{name}");
    }
}

#[test]
fn a_model_computes_the_same_from_either_file() {
    let scores = ["lavis.pth", "model.safetensors"].map(|checkpoint| {
        let model = QFormer::load(Cpu::<f32>::new(), model(checkpoint).path()).unwrap();
        let features = (0..2 * 5 * 16).map(|i| (i as f32).sin()).collect();
        let image = HostTensor::new(&[2, 5, 16], features).unwrap();
        let texts = [vec![2, 70, 71, 3], vec![2, 90, 3]];
        let pairs = [(0, 0), (0, 1), (1, 0), (1, 1)];
        let found = model.match_score(&image, &texts, &pairs, Matching::Classifier).unwrap();
        found.into_iter().map(|found| found.logits.unwrap()).collect::<Vec<_>>()
    });
    assert!(scores[0] == scores[1] && scores[0][0] != scores[0][1], "{scores:?}");
}

#[test]
fn a_folder_holds_one_such_file_and_other_checkpoints_come_first() {
    let folder = model("lavis.pth");
    let tensors = |folder: &TempDir| Checkpoint::open(folder.path()).unwrap().names().count();
    assert_eq!(tensors(&folder), tensors(&model("model.safetensors")) + 3);
    fs::copy(golden("lavis.pth"), folder.path().join("other.PT")).unwrap();
    let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("several .pth files"), "{error}");
    fs::copy(golden("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    assert_eq!(tensors(&folder), tensors(&model("model.safetensors")));
}

#[test]
fn views_of_any_strides_are_laid_out_row_by_row() {
    let view = |name, offset, shape, strides| View { name, elements: 60, offset, shape, strides, ..FOUR };
    let cases = [
        view("whole", 0, &[3, 4, 5], &[20, 5, 1]),
        view("turned", 0, &[5, 4, 3], &[1, 5, 20]),
        view("every other, from the eighth on", 7, &[3, 2], &[10, 2]),
        view("repeated", 4, &[6, 2], &[0, 3]),
        view("overlapping", 0, &[50, 11], &[1, 1]),
        view("a number", 59, &[], &[]),
        view("one, with a stride that means nothing", 58, &[1, 2], &[1_000_000, 1]),
        view("nothing", 60, &[4, 0, 7], &[i64::MAX, 3, 1]),
    ];
    let archive = Archive::checkpoint(state_dict(&cases), &[("0", counted(60))]);
    let (_folder, path) = on_disk(&archive.bytes);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(checkpoint.names().count(), cases.len());
    for View { name, offset, shape, strides, .. } in cases {
        // Place after place, by counting up the index from its last digit.
        let mut index = vec![0; shape.len()];
        let mut expected = Vec::new();
        for _ in 0..shape.iter().product::<i64>() {
            let place = offset + index.iter().zip(strides).map(|(i, stride)| i * stride).sum::<i64>();
            expected.push(place as f32);
            for (digit, extent) in index.iter_mut().zip(shape).rev() {
                *digit = (*digit + 1) % extent;
                if *digit > 0 {
                    break;
                }
            }
        }
        assert_eq!(values(&checkpoint, name), expected, "{name}");
        let mut middle = Vec::new();
        checkpoint.read_f32_range(name, 1..5, |_, block| middle.extend_from_slice(block)).unwrap();
        assert_eq!(middle, expected.iter().copied().skip(1).take(4).collect::<Vec<_>>(), "{name}");
    }
}

#[test]
fn pickles_of_protocol_4_are_read_too() {
    let short = |text: &str| [&[0x8c, text.len() as u8], text.as_bytes()].concat();
    let global = |module, name| [&short(module)[..], &short(name), b"\x93\x94"].concat();
    let pickle = [
        b"\x80\x04\x95\0\0\0\0\0\0\0\0",
        &global("collections", "OrderedDict")[..],
        b")R\x94(",
        &short("x"),
        b"\x94",
        &global("torch._utils", "_rebuild_tensor_v2"),
        b"((",
        &short("storage"),
        &global("torch", "FloatStorage"),
        &short("0"),
        b"\x94",
        &short("cuda:0"),
        b"K\x04tQK\x01K\x02\x85K\x02\x85\x89Nt\x94R",
        &short("the same"),
        // The tensor's arguments, kept as the sixth value.
        b"h\x03h\x06Ru.",
    ]
    .concat();
    let archive = Archive::checkpoint(pickle, &[("0", counted(4))]);
    let (_folder, path) = on_disk(&archive.bytes);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(values(&checkpoint, "x"), [1.0, 3.0]);
    assert_eq!(values(&checkpoint, "the same"), [1.0, 3.0]);
}

#[test]
fn a_storage_that_lost_its_checksum_is_told_when_it_is_read() {
    let second = View { name: "y", key: "1", ..FOUR };
    let pickle = state_dict(&[FOUR, second]);
    let mut archive = Archive::checkpoint(pickle, &[("0", counted(4)), ("1", counted(4))]);
    let last = archive.centrals[0] - 1;
    archive.bytes[last] ^= 1;
    let (_folder, path) = on_disk(&archive.bytes);
    let checkpoint = Checkpoint::open(&path).unwrap();
    assert_eq!(values(&checkpoint, "x"), [0.0, 1.0, 2.0, 3.0]);
    for _ in 0..2 {
        let error = checkpoint.read_f32("y", |_, _| panic!("values of unknown worth")).unwrap_err();
        assert!(error.to_string().contains("do not have their checksum"), "{error}");
    }
    // torch can be told to write none, which is a checksum of 0.
    archive.put(archive.locals[2] + 14, &[0; 4]);
    archive.put(archive.centrals[2] + 16, &[0; 4]);
    let (_folder, path) = on_disk(&archive.bytes);
    assert_eq!(values(&Checkpoint::open(&path).unwrap(), "y").len(), 4);
}
