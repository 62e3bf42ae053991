//! What a user gets wrong: told in one line, with nothing left in the way of the next attempt.

use crate::common::*;
use crate::paths::path;
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use std::collections::BTreeMap;
use std::fs;

/// `train stage1` with these arguments and an output folder fails with `code` and tells the fragments.
#[track_caller]
fn is_refused(place: &Workplace, arguments: &[&str], code: i32, told: &[&str]) {
    let mut command = command();
    command.args(["train", "stage1", "--steps", "2", "--batch-size", "4"]).args(arguments);
    let ended = run(command.arg("--output").arg(place.path("run"))).with(code, told);
    assert_eq!(ended.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{ended:?}");
    assert_eq!(place.path("run").read_dir().map_or(0, Iterator::count), 0, "{ended:?}");
}

fn shown(place: &Workplace, name: &str) -> String {
    place.path(name).to_str().unwrap().to_owned()
}

/// A folder with these files of the golden model.
fn model(place: &Workplace, name: &str, files: &[&str]) -> String {
    fs::create_dir(place.path(name)).unwrap();
    for file in files {
        fs::copy(path("tests/golden/retrieval/model").join(file), place.path(name).join(file)).unwrap();
    }
    shown(place, name)
}

#[test]
fn data_that_do_not_fit_are_refused() {
    let place = Workplace::new();
    let [features, captions] = ["features.safetensors", "captions.jsonl"].map(|name| shown(&place, name));
    let of_shape = |name: &str, [tokens, width]: [usize; 2]| {
        let values = vec![0.0; 10 * tokens * width];
        let tensor = NewTensor::from_slice("vision_output", Dtype::F32, &[10, tokens, width], &values);
        write(&place.path(name), &BTreeMap::new(), vec![tensor]).unwrap();
        shown(&place, name)
    };
    let [narrow, short] =
        [of_shape("narrow.safetensors", [TOKENS, 32]), of_shape("short.safetensors", [5, WIDTH])];
    let few = shown(&place, "few.jsonl");
    fs::write(&few, "{\"caption\": \"a cat\"}\n").unwrap();
    let wrong = shown(&place, "wrong.jsonl");
    fs::write(
        &wrong,
        "{\"image\": \"a.png\", \"caption\": \"a cat\"}\n{\"image\": \"b.png\", \"caption\": 3}\n",
    )
    .unwrap();
    let of = |features, captions| ["--preset", "tiny", "--features", features, "--captions", captions];
    let refused = |arguments: &[&str], code, told: &[&str]| is_refused(&place, arguments, code, told);
    refused(&of("no.safetensors", &captions), 1, &["cannot open no.safetensors"]);
    for (file, found) in [(&narrow, "17 tokens of width 32"), (&short, "5 tokens of width 64")] {
        let told =
            [&**file, "\"vision_output\"", found, "but the model reads 17 of width 64", "qformer encode"];
        let golden = path("tests/golden/retrieval/model");
        let model = ["--model", golden.to_str().unwrap(), "--features", file, "--captions", &captions];
        refused(&model, 1, &told);
    }
    refused(&of(&features, &few), 1, &["few.jsonl: has 1 line, but the features have 10 rows"]);
    refused(&of(&captions, &captions), 1, &["captions.jsonl"]);
    refused(&["--preset", "tiny", "--data", &wrong], 1, &["wrong.jsonl: line 2: bad JSON"]);
    refused(&["--preset", "tiny"], 2, &["no data set is given; give --data, or --features"]);
    refused(&["--features", &features, "--captions", &captions], 2, &["give --model DIR or --preset"]);
    fs::write(&wrong, "{\"image\": \"a.png\", \"caption\": \"a cat\"}\n").unwrap();
    refused(
        &["--preset", "tiny", "--data", &wrong],
        2,
        &["without a trained image encoder", "--vision-model DIR"],
    );
}

#[test]
fn models_that_lack_something_are_refused() {
    let place = Workplace::new();
    let [features, captions] = ["features.safetensors", "captions.jsonl"].map(|name| shown(&place, name));
    let data = ["--features", &features, "--captions", &captions];
    let refused = |model: &str, told: &[&str]| {
        is_refused(&place, &[&["--model", model], &data[..]].concat(), 1, told);
    };
    let silent = model(&place, "silent", &["config.json", "model.safetensors"]);
    refused(&silent, &["silent: holds neither tokenizer.json nor vocab.txt; copy bert-base-uncased's"]);
    let empty = model(&place, "empty", &["config.json", "tokenizer.json"]);
    refused(&empty, &["holds neither model.safetensors"]);
    // A zip, but not PyTorch's, and a file that is none.
    fs::write(place.path("empty/x.pth"), b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    refused(&empty, &["x.pth: "]);
    fs::write(place.path("empty/x.pth"), "no checkpoint").unwrap();
    refused(&empty, &["x.pth: "]);
    // The features of a run have no image encoder, so neither has its checkpoint.
    run(&mut place.train("features", 1, &[])).with(0, &[]);
    let trained = place.checkpoint("features", 1).to_str().unwrap().to_owned();
    let image = path("tests/golden/retrieval/images/coffee.png");
    let pictures = shown(&place, "pictures.jsonl");
    fs::write(
        &pictures,
        format!("{}\n", serde_json::json!({"image": image, "caption": ["a cup", "coffee"]})),
    )
    .unwrap();
    let told = ["has no image encoder", "training on features leave it out", "--features"];
    is_refused(&place, &["--model", &trained, "--data", &pictures], 1, &told);
    // Nothing of all that is in the way of the right command.
    run(&mut place.train("run", 1, &[])).with(0, &["step 1/1"]);
}

#[test]
fn features_of_another_image_encoder_are_told_of() {
    let place = Workplace::new();
    let golden = path("tests/golden/retrieval/model");
    let values = vec![0.5; 10 * TOKENS * WIDTH];
    let features = place.path("other.safetensors");
    let tensor = NewTensor::from_slice("vision_output", Dtype::F32, &[10, TOKENS, WIDTH], &values);
    let encoder = BTreeMap::from([("encoder".to_owned(), "crc32:00000000".to_owned())]);
    write(&features, &encoder, vec![tensor]).unwrap();
    assert!(Checkpoint::open(&golden).unwrap().names().any(|name| name.starts_with("vision_model.encoder.")));
    let mut command = command();
    command.args(["train", "stage1", "--steps", "1", "--batch-size", "4", "--model"]).arg(&golden);
    command.arg("--features").arg(&features).arg("--captions").arg(place.path("captions.jsonl"));
    let told = ["warning: the features are of another image encoder (crc32:00000000) than"];
    run(command.arg("--output").arg(place.path("run"))).with(0, &told);
}

#[test]
fn what_changes_no_number_may_change_when_a_run_goes_on() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    fs::remove_dir_all(place.checkpoint("run", 6)).unwrap();
    let more = ["--save-frequency", "1", "--keep", "3", "--max-bad-samples", "9", "--log-every-n-steps", "2"];
    run(place.resume("run").args(more)).with(0, &["step 4/6", "step 6/6"]);
    assert_eq!(place.checkpoints("run"), ["latest", "step-00000004", "step-00000005", "step-00000006"]);
    run(place.resume("run").args(["--batch-size", "8"])).with(2, &["--batch-size 8 contradicts the run in"]);
}
