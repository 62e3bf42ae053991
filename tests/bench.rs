//! The standalone benchmark, on a small checkpoint.

use qformer::params::safetensors::Checkpoint;
use serde_json::Value;
use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qformer-bench")).args(arguments).output().unwrap()
}

const MODEL: [&str; 4] = ["--model", "tests/golden/retrieval/model", "--seconds", "0"];

#[test]
fn every_part_is_checked_and_measured() {
    let parts = ["image", "text", "joint", "score", "vision"];
    let output = bench(&[&parts[..], &MODEL, &["--batch-size", "3", "--threads", "2", "--json"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["threads"], 2);
    let errors = report["relative_errors"].as_object().unwrap();
    assert_eq!(errors.len(), 4);
    assert!(errors.values().all(|error| error.as_f64().unwrap() < 1e-4), "{errors:?}");
    let results = report["results"].as_array().unwrap();
    assert_eq!(results.len(), parts.len());
    for (part, result) in parts.iter().zip(results) {
        assert_eq!(result["part"], *part);
        assert_eq!(result["items"], if *part == "score" { 9 } else { 3 });
        let [minimum, median, maximum] =
            ["min_s", "median_s", "max_s"].map(|key| result[key].as_f64().unwrap());
        assert!(0.0 < minimum && minimum <= median && median <= maximum, "{result}");
        assert!(result["gflop_per_second"].as_f64().unwrap() > 0.0);
    }
}

#[test]
fn a_table_is_printed_for_people() {
    let output = bench(&[&["text"][..], &MODEL].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("differs by") && text.contains("texts") && text.contains("of peak"), "{text}");
}

#[test]
fn answers_are_saved_for_a_peer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.safetensors");
    let output = bench(&[&["image"][..], &MODEL, &["--save-answers", file.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = Checkpoint::open(&file).unwrap();
    assert_eq!(answers.get("query_output").unwrap().shape, [8, 8, 128]);
    assert_eq!(answers.get("itm_logits").unwrap().shape, [8, 8, 2]);
}

#[test]
fn a_folder_that_is_no_checkpoint_is_one_clear_error() {
    let output = bench(&["--model", "tests/golden"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("error: ") && message.contains("config.json"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
}
