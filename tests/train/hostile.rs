//! Run folders that strangers wrote: refused in a line, whatever they name.

use crate::common::*;
use qformer::train::Run;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What a stranger writes into a checkpoint's state.
type Change = fn(&mut Value);

/// What is said of the run in `folder`, whose checkpoint of step 3 is whole: the warnings, or the error.
fn told(folder: &Path) -> String {
    let mut warnings = Vec::new();
    match Run::reopen(folder, &mut |warning| warnings.push(warning)) {
        Ok(run) => {
            assert_eq!(run.saved().unwrap().state.global_step, 3);
            warnings.join("\n")
        }
        Err(error) => error.to_string(),
    }
}

/// A run of 6 steps in the folder "run", and what `change` did to the checkpoint after the last, in the folder `name`.
fn changed(place: &Workplace, name: &str, change: impl FnOnce(&Path)) -> std::path::PathBuf {
    let folder = place.path(name);
    copy_folder(&place.path("run"), &folder);
    change(&place.checkpoint(name, 6));
    folder
}

fn make_pipe(path: &Path) {
    let _ = fs::remove_file(path);
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn every_byte_of_the_state_is_covered() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let checkpoint = place.checkpoint("run", 6);
    let state = fs::read(checkpoint.join("trainer_state.json")).unwrap();
    for at in (0..state.len() - 1).step_by(5) {
        let mut torn = state.clone();
        torn[at] ^= 1 << (at % 7);
        fs::write(checkpoint.join("trainer_state.json"), torn).unwrap();
        let told = told(&place.path("run"));
        assert!(told.contains("trainer_state.json"), "byte {at}: {told:?}");
        fs::rename(place.path("run/checkpoints/torn-step-00000006"), &checkpoint).unwrap();
    }
}

#[test]
fn a_checkpoint_has_all_its_files_and_no_others() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let changes: [(&str, Change, &str); 8] = [
        ("empty", |state| state["files"] = json!({}), "its list of files lacks config.json"),
        (
            "less",
            |state| drop(state["files"].as_object_mut().unwrap().remove("optimizer.safetensors")),
            "lacks optimizer",
        ),
        (
            "more",
            |state| state["files"]["absent.json"] = json!({"bytes": 3, "crc32": "00000000"}),
            "absent.json",
        ),
        (
            "device",
            |state| state["files"]["/dev/zero"] = json!({"bytes": 0, "crc32": "00000000"}),
            "\"/dev/zero\" is not a plain",
        ),
        (
            "outside",
            |state| state["files"]["../latest"] = json!({"bytes": 0, "crc32": "00000000"}),
            "is not a plain file name",
        ),
        ("long", |state| state["files"]["config.json"]["bytes"] = json!(u64::MAX), "config.json: "),
        ("key", |state| state["x"] = json!(1), "unknown field `x`"),
        ("step", |state| state["global_step"] = json!(u64::MAX), "but its folder another"),
    ];
    for (name, change, expected) in changes {
        let folder = changed(&place, name, |checkpoint| change_state(checkpoint, change));
        let told = told(&folder);
        assert!(told.contains(expected) && told.contains("put aside"), "{name}: {told}");
    }
    let folder =
        changed(&place, "stranger", |checkpoint| fs::write(checkpoint.join("vocab.json"), "{}").unwrap());
    let error = told(&folder);
    assert!(error.contains("vocab.json: is not one of the checkpoint's files"), "{error}");
    let hidden = changed(&place, "hidden", |checkpoint| fs::write(checkpoint.join(".note"), "mine").unwrap());
    let mut warn = |warning| panic!("{warning}");
    assert_eq!(Run::reopen(&hidden, &mut warn).unwrap().saved().unwrap().state.global_step, 6);
}

#[test]
fn files_of_a_run_are_files_of_its_folder() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let folder = changed(&place, "pipe", |checkpoint| make_pipe(&checkpoint.join("config.json")));
    assert!(told(&folder).contains("config.json: is not a regular file"));
    let folder = changed(&place, "link", |checkpoint| {
        let own = checkpoint.join("README.md");
        fs::rename(&own, place.path("elsewhere")).unwrap();
        std::os::unix::fs::symlink(place.path("elsewhere"), own).unwrap();
    });
    assert!(told(&folder).contains("README.md: is a symbolic link"));
    for (name, make) in [("trainer_state.json", make_pipe as fn(&Path)), ("optimizer.safetensors", make_pipe)]
    {
        let folder = changed(&place, &format!("pipe-{name}"), |checkpoint| make(&checkpoint.join(name)));
        assert!(told(&folder).contains("is not a regular file"), "{name}");
    }
    let folder = changed(&place, "lock", |_| make_pipe(&place.path("lock/.lock")));
    assert!(told(&folder).contains(".lock: is not a regular file"));
    changed(&place, "metrics", |_| make_pipe(&place.path("metrics/metrics.jsonl")));
    run(&mut place.resume("metrics")).with(1, &["metrics.jsonl: is not a regular file"]);
    fs::remove_file(place.path("metrics/metrics.jsonl")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", place.path("metrics/metrics.jsonl")).unwrap();
    run(&mut place.resume("metrics")).with(1, &["metrics.jsonl: is a symbolic link"]);
}

#[test]
fn a_place_where_the_run_cannot_be_is_refused() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let changes: [(&str, Change, &str); 5] = [
        (
            "epoch",
            |state| state["position"]["epoch"] = json!(u64::MAX),
            "stands in epoch 18446744073709551615",
        ),
        (
            "example",
            |state| state["position"]["example"] = json!(u64::MAX),
            "stands at example 18446744073709551615",
        ),
        (
            "first",
            |state| state["position"] = json!({"epoch": 0, "example": 5}),
            "6 steps have 48 examples, more than",
        ),
        ("seed", |state| state["seed"] = json!(7), "is of a run with seed 7, but config.toml has 42"),
        ("dataset", |state| state["dataset"] = json!(7), "is not the one that the run was begun with"),
    ];
    for (name, change, expected) in changes {
        changed(&place, name, |checkpoint| change_state(checkpoint, change));
        run(&mut place.resume(name)).with(1, &[expected]);
    }
    changed(&place, "steps", |_| ());
    let config = place.path("steps/config.toml");
    let fewer = fs::read_to_string(&config).unwrap().replace("steps = 6", "steps = 5");
    fs::write(config, fewer).unwrap();
    run(&mut place.resume("steps")).with(1, &["is after step 6 of a run that has 5"]);
}
