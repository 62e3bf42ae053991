//! Checkpoints in several files.

use std::collections::BTreeMap;
use std::path::Path;

use crate::{file_of, refusal, values};
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use serde_json::{Value, json};
use tempfile::TempDir;

fn write_shard(path: &Path, tensors: &[(&str, &[f32])]) {
    let tensors = tensors
        .iter()
        .map(|(name, values)| NewTensor::from_slice(*name, Dtype::F32, &[values.len()], values));
    write(path, &BTreeMap::new(), tensors.collect()).unwrap();
}

/// A folder with two shards, `a` in the first, `b` and `c` in the second, and `index` over them.
fn folder_with(index: &Value) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_shard(&folder.path().join("one.safetensors"), &[("a", &[1.0, 2.0])]);
    write_shard(&folder.path().join("two.safetensors"), &[("b", &[3.0]), ("c", &[4.0])]);
    std::fs::write(folder.path().join("model.safetensors.index.json"), index.to_string()).unwrap();
    folder
}

#[test]
fn shards_are_one_checkpoint() {
    let map = json!({ "a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors" });
    let folder = folder_with(&json!({ "metadata": { "total_size": 16 }, "weight_map": map }));
    let checkpoint = Checkpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.path(), folder.path());
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(values(&checkpoint, "a").0, [1.0, 2.0]);
    assert_eq!(values(&checkpoint, "c").0, [4.0]);
}

#[test]
fn what_stage_1_adds_is_of_the_checkpoint_too() {
    let map = json!({ "a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors" });
    let sharded = folder_with(&json!({ "weight_map": map }));
    let whole = tempfile::tempdir().unwrap();
    write_shard(&whole.path().join("model.safetensors"), &[("a", &[1.0, 2.0]), ("b", &[3.0]), ("c", &[4.0])]);
    for folder in [sharded, whole] {
        let stage1 = folder.path().join("stage1.safetensors");
        write_shard(&stage1, &[("temp", &[0.07]), ("cls.predictions.bias", &[5.0, 6.0])]);
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a", "b", "c", "cls.predictions.bias", "temp"]);
        assert_eq!(values(&checkpoint, "cls.predictions.bias").0, [5.0, 6.0]);
        assert_eq!(values(&checkpoint, "b").0, [3.0]);
        write_shard(&stage1, &[("temp", &[0.07]), ("b", &[3.0])]);
        let message = refusal(folder.path());
        assert!(message.contains("stage1.safetensors: tensor \"b\" is in another"), "{message}");
    }
}

#[test]
fn an_index_that_disagrees_with_its_shards_is_refused() {
    let cases = [
        (
            json!({ "a": "two.safetensors", "b": "one.safetensors", "c": "two.safetensors" }),
            "\"a\" is not in two",
        ),
        (json!({ "a": "one.safetensors", "b": "two.safetensors" }), "does not list tensor \"c\""),
        (json!({ "a": "one.safetensors", "d": "one.safetensors" }), "\"d\" is not in one"),
        (json!({ "a": "three.safetensors" }), "three.safetensors"),
        (json!({}), "lists 0 tensors"),
        (json!([]), "has no object \"weight_map\""),
    ];
    for (map, fragment) in cases {
        let folder = folder_with(&json!({ "weight_map": map }));
        let message = refusal(folder.path());
        assert!(message.contains(fragment), "{map}: \"{message}\" does not say \"{fragment}\"");
    }
    for (text, fragment) in [
        (r#"{"weight_map": {"a": "one.safetensors", "a": "two.safetensors"}}"#, "\"a\" comes twice"),
        ("[]", "has no object"),
        ("", "bad JSON: EOF"),
    ] {
        let folder = folder_with(&json!(null));
        std::fs::write(folder.path().join("model.safetensors.index.json"), text).unwrap();
        let message = refusal(folder.path());
        assert!(message.contains(fragment), "{text}: \"{message}\" does not say \"{fragment}\"");
    }
}

#[test]
fn shards_outside_the_folder_are_refused() {
    let long = "x".repeat(256);
    let names = [
        "",
        ".",
        "..",
        "../one.safetensors",
        "./one.safetensors",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "C:x",
        "a b",
        "a\0",
        "\u{e9}",
        ".hidden",
        "\u{1b}[2J",
        &long,
    ];
    for name in names {
        let folder = folder_with(&json!({ "weight_map": { "a": name } }));
        let message = refusal(folder.path());
        assert!(message.contains("is not a plain file name"), "{message}");
        assert!(!message.contains('\u{1b}'));
    }
    for value in [json!(1), json!(null), json!(["one.safetensors"])] {
        let folder = folder_with(&json!({ "weight_map": { "a": value } }));
        assert!(refusal(folder.path()).contains("is not a plain file name"));
    }
}

#[test]
fn a_tensor_in_two_shards_is_refused() {
    let folder = folder_with(&json!({ "weight_map": { "a": "one.safetensors", "b": "two.safetensors" } }));
    write_shard(&folder.path().join("two.safetensors"), &[("a", &[5.0]), ("b", &[3.0])]);
    assert!(refusal(folder.path()).contains("\"a\" is in another shard too"));
}

#[test]
fn a_thousand_shards_are_refused() {
    let map: BTreeMap<String, String> =
        (0..1000).map(|index| (format!("t{index}"), format!("{index}.safetensors"))).collect();
    let folder = folder_with(&json!({ "weight_map": map }));
    assert!(refusal(folder.path()).contains("1000 shards; at most 512"));
}

#[test]
fn folders_without_a_checkpoint_and_absent_paths_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert!(refusal(folder.path()).contains("holds neither model.safetensors nor"));
    assert!(refusal(&folder.path().join("absent")).contains("cannot open"));
    std::fs::create_dir(folder.path().join("model.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("not a regular file"));
}

#[cfg(unix)]
#[test]
fn pipes_devices_and_loops_are_refused_and_links_to_files_followed() {
    use std::os::unix::fs::symlink;
    let index = json!({ "weight_map": { "a": "shard.safetensors" } });
    for (target, fragment) in [
        ("/dev/zero", "not a regular file"),
        ("shard.safetensors", "cannot open"),
        ("/", "not a regular file"),
        ("pipe", "not a regular file"),
    ] {
        let folder = folder_with(&index);
        let pipe = folder.path().join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        symlink(target, folder.path().join("shard.safetensors")).unwrap();
        let message = refusal(folder.path());
        assert!(message.contains(fragment), "{target}: {message}");
    }
    let folder = tempfile::tempdir().unwrap();
    symlink("blob", folder.path().join("model.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("cannot open"), "a link to nothing is not taken for absent");
    let folder = folder_with(&index);
    symlink("one.safetensors", folder.path().join("shard.safetensors")).unwrap();
    assert_eq!(values(&Checkpoint::open(folder.path()).unwrap(), "a").0, [1.0, 2.0]);
}

#[test]
fn a_single_file_is_preferred_to_shards() {
    let folder = folder_with(&json!({ "weight_map": { "a": "one.safetensors" } }));
    std::fs::write(folder.path().join("model.safetensors"), file_of("{}", &[])).unwrap();
    assert_eq!(Checkpoint::open(folder.path()).unwrap().names().count(), 0);
}
