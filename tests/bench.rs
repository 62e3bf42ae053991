//! The standalone benchmark, on a small checkpoint.

#[path = "support/simulated.rs"]
mod simulated;

use qformer::Cuda;
use qformer::params::safetensors::Checkpoint;
use serde_json::Value;
use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_qformer-bench")).args(arguments).output().unwrap()
}

const MODEL: [&str; 4] = ["--model", "tests/golden/retrieval/model", "--seconds", "0"];
const CPU: [&str; 2] = ["--device", "cpu"];

/// On the machine's GPU, or on a simulated one.
fn bench_on_gpu(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer-bench"));
    if Cuda::open(0).is_err() {
        command.env("LD_LIBRARY_PATH", simulated::driver());
    }
    command.args(arguments).args(["--device", "cuda"]).output().unwrap()
}

fn report(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Asserts that every operation was measured in both directions.
fn assert_all_operations_measured(report: &Value) {
    let cases = report["kernels"].as_array().unwrap();
    for operation in [
        "gemm",
        "attention",
        "layer norm",
        "embedding",
        "GELU",
        "dropout",
        "pool",
        "normalize",
        "similarity",
        "contrastive loss",
        "matching loss",
        "cross-entropy",
        "fold of a norm",
    ] {
        for name in [operation.to_owned(), format!("{operation} backward")] {
            let case = cases.iter().find(|case| case["operation"] == *name);
            let case = case.unwrap_or_else(|| panic!("{name} was not measured"));
            assert!(
                case["median_s"].as_f64().unwrap() > 0.0 && case["bytes"].as_f64().unwrap() > 0.0,
                "{case}"
            );
        }
    }
    for name in ["AdamW", "norm of the gradient"] {
        assert!(cases.iter().any(|case| case["operation"] == name), "{name} was not measured");
    }
}

#[test]
fn every_part_is_checked_and_measured() {
    let parts = ["image", "text", "joint", "score", "vision"];
    let rest = ["--batch-size", "3", "--threads", "2", "--json"];
    let report = report(&bench(&[&parts[..], &MODEL, &CPU, &rest].concat()));
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
fn every_operation_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let rest = ["kernels", "--batch-size", "2", "--output", file.to_str().unwrap()];
    let output = bench(&[&rest[..], &MODEL, &CPU].concat());
    assert!(String::from_utf8_lossy(&output.stdout).contains("of limit"), "{output:?}");
    assert_all_operations_measured(&serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap());
}

#[test]
fn a_gpu_is_checked_and_measured_too() {
    let parts = ["image", "text", "joint", "kernels"];
    let report = report(&bench_on_gpu(&[&parts[..], &MODEL, &["--batch-size", "1", "--json"]].concat()));
    assert!(report["device"].as_str().unwrap().contains("compute capability"), "{}", report["device"]);
    assert!(report["limits"]["gbyte_per_second"].as_f64().unwrap() > 0.0);
    assert_eq!(report["results"].as_array().unwrap().len(), 3);
    assert_all_operations_measured(&report);
}

#[test]
fn a_table_is_printed_for_people() {
    let output = bench(&[&["text"][..], &MODEL, &CPU].concat());
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("differs by") && text.contains("texts") && text.contains("of peak"), "{text}");
}

#[test]
fn answers_are_saved_for_a_peer() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("answers.safetensors");
    let output = bench(&[&["image", "--save-answers", file.to_str().unwrap()][..], &MODEL, &CPU].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let answers = Checkpoint::open(&file).unwrap();
    assert_eq!(answers.get("query_output").unwrap().shape, [8, 8, 128]);
    assert_eq!(answers.get("itm_logits").unwrap().shape, [8, 8, 2]);
}

#[test]
fn a_folder_that_is_no_checkpoint_is_one_clear_error() {
    let output = bench(&["--model", "tests/golden", "--device", "cpu"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("error: ") && message.contains("config.json"), "{message}");
    assert!(!message.contains("panicked"), "{message}");
}
