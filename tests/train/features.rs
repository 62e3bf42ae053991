//! Features of an encoder that no preset has: the model is made for their shape and has no image encoder.

use crate::common::*;
use crate::paths::path;
use qformer::params::safetensors::{Dtype, NewTensor, write};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// 13 is no square and one, and nothing but 1 divides 41.
pub(crate) const SHAPE: [usize; 2] = [13, 41];

pub(crate) fn write_features(path: &Path, [tokens, width]: [usize; 2]) {
    let values: Vec<f32> = (0..10 * tokens * width).map(|i| ((i * i) as f32 * 0.37).sin()).collect();
    let tensor = NewTensor::from_slice("vision_output", Dtype::F32, &[10, tokens, width], &values);
    write(path, &BTreeMap::new(), vec![tensor]).unwrap();
}

/// A run of two steps on features of that shape.
fn trained() -> Workplace {
    let place = Workplace::new();
    write_features(&place.path("features.safetensors"), SHAPE);
    let told = ["note: the features have 13 tokens of width 41", "17 of width 64", "step 2/2"];
    run(&mut place.train("run", 2, &["--save-frequency", "1"])).with(0, &told);
    place
}

/// What the program prints, given these arguments after the checkpoint of a [`trained`] run.
fn printed(place: &Workplace, name: &str, arguments: &[&str]) -> String {
    let mut command = command();
    command.arg(name).arg("--model").arg(place.checkpoint("run", 2)).args(arguments);
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{name}: {ended:?}");
    String::from_utf8(ended.stdout).unwrap()
}

/// The program refuses the arguments, and tells the fragments in one line.
#[track_caller]
fn refused(place: &Workplace, name: &str, arguments: &[&str], told: &[&str]) {
    let mut command = command();
    command.arg(name).arg("--model").arg(place.checkpoint("run", 2)).args(arguments);
    let ended = run(&mut command).with(1, told);
    assert_eq!(ended.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{ended:?}");
}

fn shown(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_model_is_trained_on_features_of_any_shape_and_read_again_with_such() {
    let place = trained();
    let checkpoint = place.checkpoint("run", 2);
    let config: Value = serde_json::from_slice(&fs::read(checkpoint.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["vision_config"]["model_type"], "image_features");
    assert_eq!(config["vision_config"]["image_tokens"], SHAPE[0]);
    assert_eq!(config["vision_config"]["hidden_size"], SHAPE[1]);
    assert_eq!(config["qformer_config"]["encoder_hidden_size"], SHAPE[1]);
    // Nothing makes pixels for it.
    assert!(!checkpoint.join("preprocessor_config.json").exists());
    assert!(!checkpoint.join("processor_config.json").exists());
    let card = fs::read_to_string(checkpoint.join("README.md")).unwrap();
    assert!(
        card.contains("reads the features of images") && !card.contains("of transformers opens the folder"),
        "{card}"
    );

    let (features, captions) = (place.path("features.safetensors"), place.path("captions.jsonl"));
    let of_features = ["--features", shown(&features)];
    let output = place.path("embedded.safetensors");
    printed(&place, "embed", &[&of_features[..], &["--text", "a cat", "--output", shown(&output)]].concat());
    assert!(output.exists());
    let scores = printed(&place, "score", &[&of_features[..], &["--text", "a cat", "--json"]].concat());
    let scores: Value = serde_json::from_str(&scores).unwrap();
    assert_eq!(scores["itc"].as_array().unwrap().len(), 10);
    assert_eq!(printed(&place, "caption", &of_features).lines().count(), 10);
    let found = printed(
        &place,
        "evaluate",
        &[&of_features[..], &["--captions", shown(&captions), "--json"]].concat(),
    );
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap()["images"], 10);

    let report = command().args(["inspect", "--json"]).arg(&checkpoint).output().unwrap();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!(report["faults"], json!([]));
    let encoder = &report["components"][0];
    assert_eq!((&encoder["name"], &encoder["what"]), (&json!("image encoder"), &json!("none")));
    assert_eq!(encoder["obstacle"], "features are given");
}

#[test]
fn a_model_of_features_goes_on_with_such_and_resumes_with_the_same_bits() {
    let place = trained();
    let result = place.result("run", 2);
    fs::remove_dir_all(place.checkpoint("run", 2)).unwrap();
    run(&mut place.resume("run")).with(0, &["continuing from", "step 2/2"]);
    assert!(place.result("run", 2) == result);
    let checkpoint = place.checkpoint("run", 2);
    let mut go_on = command();
    go_on.args(["train", "stage1", "--steps", "1", "--batch-size", "4", "--model"]).arg(&checkpoint);
    go_on.arg("--features").arg(place.path("features.safetensors"));
    go_on.arg("--captions").arg(place.path("captions.jsonl"));
    let ended = run(go_on.arg("--output").arg(place.path("more"))).with(0, &["step 1/1"]);
    assert!(!ended.stderr.contains("note: the features"), "{}", ended.stderr);
    let config = |folder: &Path| fs::read(folder.join("config.json")).unwrap();
    assert_eq!(config(&place.checkpoint("more", 1)), config(&checkpoint));
}

#[test]
fn a_model_of_features_refuses_images_and_features_of_another_shape() {
    let place = trained();
    let image = path("tests/golden/retrieval/images/coffee.png");
    let captions = place.path("captions.jsonl");
    let output = place.path("embedded.safetensors");
    let told = ["step-00000002", "has no image encoder", "give features [images, 13, 41]"];
    let text = ["--text", "a cat"];
    let of_images = ["--images", shown(&image)];
    refused(&place, "embed", &[&of_images[..], &text, &["--output", shown(&output)]].concat(), &told);
    refused(&place, "score", &[&of_images[..], &text].concat(), &told);
    refused(&place, "caption", &of_images, &told);
    let pictures = place.path("pictures.jsonl");
    fs::write(&pictures, format!("{}\n", json!({ "image": image, "caption": ["a cup", "coffee"] }))).unwrap();
    let of_pictures = ["--data", shown(&pictures)];
    refused(&place, "evaluate", &of_pictures, &told);
    refused(
        &place,
        "encode",
        &[&of_pictures[..], &["--output", shown(&place.path("shards"))]].concat(),
        &told,
    );

    let other = place.path("other.safetensors");
    write_features(&other, [TOKENS, WIDTH]);
    let of_other = ["--features", shown(&other)];
    let told = ["other.safetensors", "[10, 17, 64]", "[images, 13, 41]"];
    refused(&place, "embed", &[&of_other[..], &text, &["--output", shown(&output)]].concat(), &told);
    refused(&place, "score", &[&of_other[..], &text].concat(), &told);
    refused(&place, "caption", &of_other, &told);
    let told = ["other.safetensors", "17 tokens of width 64", "13 of width 41"];
    refused(&place, "evaluate", &[&of_other[..], &["--captions", shown(&captions)]].concat(), &told);
    assert!(!output.exists());

    let checkpoint = place.checkpoint("run", 2);
    let train = |data: &[&str]| {
        let mut command = command();
        command.args(["train", "stage1", "--steps", "1", "--batch-size", "2", "--model"]).arg(&checkpoint);
        run(command.args(data).arg("--output").arg(place.path("more")))
    };
    train(&[&of_other[..], &["--captions", shown(&captions)]].concat()).with(1, &told);
    train(&of_pictures).with(1, &["has no image encoder", "give features [images, 13, 41]"]);
}
