//! Torn files, full disks, numbers that are none.

use crate::common::*;
use crate::golden;
use qformer::params::safetensors::Checkpoint;
use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Changes the byte in the middle of a file.
pub(crate) fn tear(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_torn_checkpoint_is_told_and_the_one_before_it_taken() {
    let place = Workplace::new();
    run(&mut place.train("run", 6, &[])).with(0, &[]);
    let result = place.result("run", 6);
    for file in ["model.safetensors", "optimizer.safetensors", "config.json"] {
        tear(&place.checkpoint("run", 6).join(file));
        run(&mut place.resume("run"))
            .with(0, &["warning: ", file, "its checksum is", "step-00000003 before it"]);
        assert!(result == place.result("run", 6), "{file}");
    }
    fs::remove_file(place.checkpoint("run", 6).join("trainer_state.json")).unwrap();
    run(&mut place.resume("run")).with(0, &["trainer_state.json", "step-00000003 before it"]);
    assert!(result == place.result("run", 6));
    for step in [3, 6] {
        tear(&place.checkpoint("run", step).join("stage1.safetensors"));
    }
    run(&mut place.resume("run"))
        .with(1, &["no checkpoint is whole", "stage1.safetensors", "start the run anew"]);
}

#[test]
fn moments_of_another_model_are_refused() {
    let place = Workplace::new();
    run(&mut place.train("run", 3, &[])).with(0, &[]);
    golden::train(&place, "other").with(0, &[]);
    let (folder, name) = (place.checkpoint("run", 3), "optimizer.safetensors");
    fs::copy(place.checkpoint("other", 10).join(name), folder.join(name)).unwrap();
    let text = fs::read(place.checkpoint("other", 10).join("trainer_state.json")).unwrap();
    let other: Value = serde_json::from_slice(&text).unwrap();
    change_state(&folder, |state| state["files"][name] = other["files"][name].clone());
    let told = ["tensor \"exp_avg.", "has shape", "expected", "of the same model"];
    run(&mut place.resume("run")).with(1, &told).with(1, &[name]);
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    let place = Workplace::new();
    let more = ["--matching", "max-similarity", "--grad-checkpointing", "--itc-gradient", "full"];
    run(&mut place.train("whole", 6, &more)).with(0, &[]);
    copy_folder(&place.path("whole"), &place.path("run"));
    fs::remove_dir_all(place.checkpoint("run", 6)).unwrap();
    // No file may become longer than 100 blocks, of 512 or 1024 bytes; the weights take millions.
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f 100; exec \"$@\"", "sh"]);
    let command = place.resume("run");
    limited.arg(command.get_program()).args(command.get_args());
    let whole = place.checkpoint("run", 3);
    let told = format!("the last whole checkpoint is {}", whole.display());
    run(&mut limited).with(1, &["error: cannot write", "model.safetensors", &told]);
    let left: Vec<String> = place.checkpoints("run");
    assert_eq!(left, ["latest", "step-00000003"]);
    run(&mut place.resume("run")).with(0, &[]);
    assert!(place.result("run", 6) == place.result("whole", 6));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_with_its_batch_kept() {
    let place = Workplace::new();
    // The first step throws the weights where products of theirs overflow.
    let far = ["--lr", "1e30", "--warmup", "0", "--order", "given", "--accum-freq", "1"];
    let file = place.path("run").join("non-finite-step-2.safetensors");
    let told =
        ["step 2 is not finite", file.to_str().unwrap(), "lower --lr", "no checkpoint was written yet"];
    run(&mut place.train("run", 6, &far)).with(1, &told);
    let kept = Checkpoint::open(&file).unwrap();
    // A step has four of twenty captions, two an image.
    assert_eq!(kept.metadata()["names"], r#"["image 2","image 2","image 3","image 3"]"#);
    let mut features = Vec::new();
    kept.read_f32("vision_output", |_, block| features.extend_from_slice(block)).unwrap();
    let image = TOKENS * WIDTH;
    assert!(features[..image] == values()[2 * image..3 * image]);
    let shapes = ["input_ids", "attention_mask", "image_ids"].map(|name| kept.get(name).unwrap().shape[0]);
    assert_eq!(shapes, [4; 3]);
    let events = lines(&place.path("run/metrics.jsonl"));
    assert_eq!(events.last().unwrap()["event"], "non_finite");
    assert_eq!(place.steps("run").len(), 1);
}

/// Sets the one number of a tensor in a file.
fn set(path: &Path, name: &str, value: f32) {
    let mut bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let begin = bytes.len() - header.data_len() + header.info(name).unwrap().data_offsets.0;
    bytes[begin..begin + size_of::<f32>()].copy_from_slice(&value.to_le_bytes());
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_gradient_that_is_not_finite_stops_the_run_though_the_loss_is() {
    let place = Workplace::new();
    let model = place.path("model");
    copy_folder(&golden::folder(), &model);
    // Similarities over the temperature are of the order of 1e25; their derivative, once more over it, is beyond
    // what single precision holds.
    set(&model.join("model.safetensors"), "temp", 1e-25);
    let file = place.path("run").join("non-finite-step-1.safetensors");
    let told = ["step 1 is not finite", "or else the gradient", file.to_str().unwrap()];
    let ended = golden::train_from(&model, &place, "run").with(1, &told);
    let (_, rest) = ended.stderr.split_once("(ITC ").unwrap();
    let loss: f64 = rest.split_once(',').unwrap().0.parse().unwrap();
    assert!(loss > 1e20 && loss.is_finite(), "{loss}");
    assert_eq!(Checkpoint::open(&file).unwrap().get("vision_output").unwrap().shape[0], 5);
    assert_eq!(lines(&place.path("run/metrics.jsonl")).last().unwrap()["event"], "non_finite");
    // Nothing was learnt from the step, and nothing kept of it.
    assert!(place.steps("run").is_empty());
    assert!(!place.path("run").join("checkpoints/latest").exists());
}

#[test]
fn another_data_set_is_refused() {
    let place = Workplace::new();
    run(&mut place.train("run", 3, &[])).with(0, &[]);
    let captions = fs::read_to_string(place.path("captions.jsonl")).unwrap();
    fs::write(place.path("captions.jsonl"), captions.replace("cat", "bird")).unwrap();
    run(&mut place.resume("run")).with(1, &["the data set is not the one that the run was begun with"]);
}

#[test]
fn samples_left_out_count_over_the_whole_run() {
    let place = Workplace::new();
    let captions = fs::read_to_string(place.path("captions.jsonl")).unwrap();
    let blank = |(index, line): (usize, &str)| match index {
        0 | 8 => format!("{{\"image\": \"image {index}\", \"caption\": [\"a cat\", \" \"]}}\n"),
        _ => format!("{line}\n"),
    };
    fs::write(place.path("captions.jsonl"), captions.lines().enumerate().map(blank).collect::<String>())
        .unwrap();
    // Of steps of four in the order given the first meets a blank caption, and the fifth another.
    let more = ["--order", "given", "--accum-freq", "1", "--max-bad-samples", "1"];
    let told =
        ["2 samples cannot be read; --max-bad-samples allows 1", "image 0: caption 1", "image 8: caption 17"];
    run(&mut place.train("run", 5, &more)).with(1, &["image 0: caption 1", "left out"]).with(1, &told);
    assert_eq!(place.checkpoints("run"), ["latest", "step-00000003"]);
    let ended = run(&mut place.resume("run")).with(1, &["continuing from", "step-00000003"]).with(1, &told);
    assert!(!ended.stderr.contains("left out"), "{}", ended.stderr);
}

#[test]
fn a_sample_that_cannot_be_read_ends_no_run_by_itself() {
    let place = Workplace::new();
    let captions = fs::read_to_string(place.path("captions.jsonl")).unwrap();
    fs::write(place.path("captions.jsonl"), captions.replacen("a red cat", " ", 1)).unwrap();
    let told = ["warning: image 0: caption 0", "; left out", "cannot be read: 1\n"];
    run(&mut place.train("run", 3, &["--order", "given"])).with(0, &told);
    let events = lines(&place.path("run/metrics.jsonl"));
    assert_eq!(events.last().unwrap()["bad_samples"], 1);
    // Of all that a run has met, another process told some.
    run(&mut place.resume("run")).with(0, &["cannot be read: 1\n"]);
}
