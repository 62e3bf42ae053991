//! A run's folder: what is in it stays, or is told.

use crate::common::*;
use crate::faults::tear;
use crate::paths::path;
use crate::pictures::write_pictures;
use qformer::params::safetensors::{Dtype, NewTensor, write};
use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};

#[test]
fn torn_checkpoints_do_not_count_among_those_that_are_kept() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let result = place.result("run", 6);
    tear(&place.checkpoint("run", 6).join("optimizer.safetensors"));
    // One of a later step, of which nothing was written but its name.
    fs::create_dir(place.checkpoint("run", 100)).unwrap();
    let told = [
        "optimizer.safetensors: its checksum is",
        "put aside as torn-step-00000006",
        "step-00000003 before it",
    ];
    run(place.resume("run").args(["--keep", "1"]))
        .with(0, &told)
        .with(0, &["put aside as torn-step-00000100"]);
    let left = ["latest", "step-00000006", "torn-step-00000006", "torn-step-00000100"];
    assert_eq!(place.checkpoints("run"), left);
    assert!(place.result("run", 6) == result);
    let ended = run(&mut place.resume("run")).with(0, &["continuing from"]);
    assert!(!ended.stderr.contains("warning"), "{}", ended.stderr);
    // An older one is told of, too; it lacks a file.
    copy_folder(&place.checkpoint("run", 6), &place.checkpoint("run", 2));
    change_state(&place.checkpoint("run", 2), |state| state["global_step"] = 2.into());
    fs::remove_file(place.checkpoint("run", 2).join("config.json")).unwrap();
    let ended = run(&mut place.resume("run")).with(0, &["config.json", "put aside as torn-step-00000002"]);
    assert!(!ended.stderr.contains("before it"), "{}", ended.stderr);
}

#[test]
fn a_finished_run_tidies_up() {
    let place = Workplace::new();
    run(&mut place.train("run", 9, &["--keep", "3"])).with(0, &[]);
    assert_eq!(place.checkpoints("run").len(), 4);
    run(place.resume("run").args(["--keep", "1"])).with(0, &["done; the model is"]);
    assert_eq!(place.checkpoints("run"), ["latest", "step-00000009"]);
}

#[test]
fn one_process_trains_in_a_folder() {
    let place = Workplace::new();
    let output = place.path("run");
    let mut child = start(&mut place.train("run", 100_000, &[]), &output, 3);
    let told = [&*format!("another process is training in {}", output.display()), "give another --output"];
    run(&mut place.resume("run")).with(1, &told);
    run(&mut place.train("run", 100_000, &[])).with(2, &["is not empty"]);
    child.kill().unwrap();
    child.wait().unwrap();
    // The lock has gone with its process.
    let child = start(&mut place.resume("run"), &output, 12);
    signal(&child, "-TERM");
    Ended::of(child.wait_with_output().unwrap()).with(75, &["is saved"]);
    let steps = place.steps("run");
    assert!(steps.iter().zip(1..).all(|(line, step)| line["step"] == step));
}

#[test]
fn of_two_runs_begun_at_once_in_a_folder_one_is_refused() {
    let place = Workplace::new();
    let begin = || {
        let mut command = place.train("run", 30, &[]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let ended = [begin(), begin()].map(|child| Ended::of(child.wait_with_output().unwrap()));
    assert_eq!(ended.iter().filter(|ended| ended.code == Some(0)).count(), 1, "{ended:?}");
    let refused = ended.iter().find(|ended| ended.code != Some(0)).unwrap();
    let told = ["is not empty", "another process is training in"];
    assert!(told.iter().any(|told| refused.stderr.contains(told)), "{refused:?}");
    assert_eq!(place.steps("run").len(), 30);
}

#[test]
fn features_that_changed_are_refused() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    fs::remove_dir_all(place.checkpoint("run", 6)).unwrap();
    let file = place.path("features.safetensors");
    let original = fs::read(&file).unwrap();
    let shape = [10, TOKENS, WIDTH];
    let write_features = |values: &[f32]| {
        let tensor = NewTensor::from_slice("vision_output", Dtype::F32, &shape, values);
        write(&file, &BTreeMap::new(), vec![tensor]).unwrap();
    };
    let mut rotated = values();
    rotated.rotate_left(TOKENS * WIDTH);
    let mut scaled = values();
    scaled[3 * TOKENS * WIDTH..4 * TOKENS * WIDTH].iter_mut().for_each(|value| *value *= 1.01);
    for other in [rotated, scaled] {
        write_features(&other);
        run(&mut place.resume("run"))
            .with(1, &["is not the one that the run was begun with", "features differ"]);
    }
    write_features(&values());
    assert!(fs::read(&file).unwrap() == original);
    run(&mut place.resume("run")).with(0, &["step 6/6"]);
}

#[test]
fn settings_that_are_lost_are_told() {
    let place = Workplace::new();
    run(&mut place.train("run", 3, &[])).with(0, &[]);
    fs::remove_file(place.path("run/config.toml")).unwrap();
    let before = place.entries("run");
    let told = ["has checkpoints, but config.toml with the run's settings is gone", "put it back", "--model"];
    run(&mut place.resume("run")).with(2, &told);
    run(&mut place.train("run", 3, &["--resume"])).with(2, &told);
    assert_eq!(place.entries("run"), before);
}

#[test]
fn checkpoints_that_are_lost_are_told_and_the_metrics_stay() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    fs::remove_dir_all(place.path("run/checkpoints")).unwrap();
    let before = fs::read(place.path("run/metrics.jsonl")).unwrap();
    let told =
        ["metrics.jsonl: tells of the checkpoint after step 3", "checkpoints are gone", "put them back"];
    for _ in 0..2 {
        run(&mut place.resume("run")).with(1, &told);
        assert!(fs::read(place.path("run/metrics.jsonl")).unwrap() == before);
        assert!(place.path("run/config.toml").exists());
    }
}

#[test]
fn a_run_without_a_checkpoint_begins_again_and_keeps_its_settings() {
    let place = Workplace::new();
    let mut child = start(&mut place.train("run", 6, &["--save-frequency", "100"]), &place.path("run"), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    let _ = fs::remove_dir_all(place.path("run/checkpoints"));
    // Something is in the way at first.
    fs::rename(place.path("run/metrics.jsonl"), place.path("metrics")).unwrap();
    fs::create_dir(place.path("run/metrics.jsonl")).unwrap();
    run(&mut place.resume("run")).with(1, &["metrics.jsonl: is not a regular file"]);
    fs::remove_dir(place.path("run/metrics.jsonl")).unwrap();
    run(&mut place.resume("run")).with(0, &["no checkpoint was written yet", "step 6/6"]);
    assert_eq!(place.steps("run").len(), 6);
}

#[test]
fn metrics_that_are_damaged_are_kept_by_another_name() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let file = place.path("run/metrics.jsonl");
    let whole = fs::read_to_string(&file).unwrap();
    let damaged = whole.replacen("\"step\":2", "\"step\"!2", 1);
    fs::write(&file, damaged.clone() + "{\"event\": \"tor").unwrap();
    let told = ["metrics.jsonl: left out 1 line that cannot be read; damaged-metrics.jsonl is as it was"];
    run(&mut place.resume("run")).with(0, &told);
    assert_eq!(
        fs::read_to_string(place.path("run/damaged-metrics.jsonl")).unwrap(),
        damaged + "{\"event\": \"tor"
    );
    let steps: Vec<_> = place.steps("run").iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, [1, 3, 4, 5, 6]);
}

#[test]
fn files_by_names_of_unfinished_ones_are_in_nobodys_way() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let result = place.result("run", 6);
    fs::remove_dir_all(place.checkpoint("run", 6)).unwrap();
    fs::create_dir(place.path("run/.qformer-folder")).unwrap();
    fs::write(place.path("run/.qformer-abc123"), "left by a process that was killed").unwrap();
    let checkpoints = place.path("run/checkpoints");
    for name in [".step-x", ".step-00000006.partial", "step-4", "step-notes"] {
        fs::write(checkpoints.join(name), "a file").unwrap();
    }
    fs::create_dir(checkpoints.join(".latest.new")).unwrap();
    run(&mut place.resume("run")).with(0, &["step 6/6"]);
    assert!(place.result("run", 6) == result);
    let left = [".step-x", "latest", "step-00000003", "step-00000006", "step-4", "step-notes"];
    assert_eq!(place.checkpoints("run"), left);
    assert!(place.path("run/.qformer-folder").exists() && !place.path("run/.qformer-abc123").exists());
}

#[test]
fn an_image_encoder_that_is_torn_can_be_put_back() {
    let place = Workplace::new();
    write_pictures(&place);
    let train = |output: &str, steps: &str| -> Command {
        let mut command = command();
        command.args([
            "train",
            "stage1",
            "--batch-size",
            "3",
            "--save-frequency",
            "1",
            "--steps",
            steps,
            "--model",
        ]);
        command.arg(path("tests/golden/retrieval/model")).arg("--data").arg(place.path("data.jsonl"));
        command.arg("--output").arg(place.path(output));
        command
    };
    run(&mut train("run", "2")).with(0, &[]);
    // One file by three names.
    tear(&place.path("run/image-encoder.safetensors"));
    let told = [
        "no checkpoint is whole",
        "image encoder, which all checkpoints share",
        "a new run from the same model",
    ];
    run(&mut place.resume("run")).with(1, &told);
    run(&mut train("new", "1")).with(0, &[]);
    let shard = place.checkpoint("run", 2).join("model-00002-of-00002.safetensors");
    fs::remove_file(&shard).unwrap();
    fs::copy(place.path("new/image-encoder.safetensors"), &shard).unwrap();
    run(&mut place.resume("run")).with(0, &["continuing from"]);
    // The run's own file is written anew, so that later checkpoints are whole.
    let encoder = fs::read(place.path("run/image-encoder.safetensors")).unwrap();
    assert!(encoder == fs::read(shard).unwrap());
}
