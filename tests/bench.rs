//! The standalone benchmark, on a small checkpoint.

#[path = "support/paths.rs"]
mod paths;
#[path = "support/simulated.rs"]
mod simulated;

use qformer::Cuda;
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn command() -> Command {
    Command::new(paths::path(env!("CARGO_BIN_EXE_qformer-bench")))
}

fn bench(arguments: &[&str]) -> Output {
    command().args(arguments).output().unwrap()
}

const MODEL: [&str; 4] = ["--model", "tests/golden/retrieval/model", "--seconds", "0"];
const CPU: [&str; 2] = ["--device", "cpu"];

/// On the machine's GPU, or on a simulated one.
fn bench_on_gpu(arguments: &[&str]) -> Output {
    let mut command = command();
    if Cuda::open(0).is_err() {
        // The tests of operations look for races; here they would take most of the time.
        command.env("LD_LIBRARY_PATH", simulated::driver()).env("SIMGPU_CHECKS", "off");
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
        "RMS norm",
        "gated GELU",
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
    for name in ["AdamW", "norm of the gradient", "top k"] {
        assert!(cases.iter().any(|case| case["operation"] == name), "{name} was not measured");
    }
}

#[test]
fn it_ends_though_nobody_reads_what_it_tells() {
    let image = |stdout: Stdio| {
        let (_, unread) = io::pipe().unwrap();
        let mut command = command();
        command.arg("image").args(MODEL).args(CPU).stdout(stdout).stderr(unread);
        command.status().unwrap().code()
    };
    let (_, unread) = io::pipe().unwrap();
    assert_eq!(image(unread.into()), Some(0));
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert_eq!(image(full.into()), Some(1));
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
fn a_report_says_where_and_when_it_was_made_and_gives_later_ones_its_limits() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("report.json");
    let path = file.to_str().unwrap();
    let text = ["text", "--batch-size", "1", "--json"];
    let first = report(&bench(&[&text[..], &MODEL, &CPU, &["--output", path]].concat()));
    assert_eq!(first["schema"], 1);
    assert!(first["version"].as_str().unwrap().contains(env!("CARGO_PKG_VERSION")));
    let machine = &first["machine"];
    let date = machine["date"].as_str().unwrap();
    let form = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
    assert_eq!(form, "0000-00-00T00:00:00Z");
    assert!(date >= "2026", "{date}");
    // Other processors have no name in /proc/cpuinfo.
    let named = cfg!(target_arch = "x86_64").then_some("processor");
    for name in ["isa", "os", "architecture"].into_iter().chain(named) {
        assert!(machine[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {machine}");
    }
    assert!(machine["memory_bytes"].as_u64().unwrap() > 1 << 28, "{machine}");

    let with = |peak: &str| report(&bench(&[&text[..], &MODEL, &CPU, &["--peak", peak]].concat()));
    let again = with(path);
    for limit in ["gflop_per_second", "gbyte_per_second"] {
        assert_eq!(again["limits"][limit], first["limits"][limit]);
    }
    assert!(again["limits"]["origin"].as_str().unwrap().contains("report.json"), "{again}");
    let given = with("2000,50");
    let result = &given["results"][0];
    let [rate, share] = ["gflop_per_second", "share_of_peak"].map(|name| result[name].as_f64().unwrap());
    assert!((share * 2000.0 / rate - 1.0).abs() < 1e-9, "{result}");
    assert_eq!(given["limits"]["gbyte_per_second"], 50.0);
}

#[test]
fn a_peak_that_is_none_is_one_clear_error() {
    let folder = tempfile::tempdir().unwrap();
    let [other, broken, absent] =
        ["other.json", "broken.json", "absent.json"].map(|name| folder.path().join(name));
    std::fs::write(&other, r#"{"limits": {"gflop_per_second": 0}}"#).unwrap();
    std::fs::write(&broken, "{").unwrap();
    for (peak, code, fragment) in [
        (other.to_str().unwrap(), 1, "other.json: has no number limits.gflop_per_second above 0"),
        (broken.to_str().unwrap(), 1, "broken.json: bad JSON"),
        (absent.to_str().unwrap(), 1, "absent.json"),
        ("0,5", 2, "GFLOP/s and GB/s, both above 0"),
        ("5,NaN", 2, "GFLOP/s and GB/s, both above 0"),
    ] {
        let output = bench(&[&["text", "--peak", peak][..], &MODEL, &CPU].concat());
        let message = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(code) && message.contains(fragment), "{peak}: {message}");
        assert!(output.stdout.len() < 200, "something was measured");
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

/// A file of two images of five tokens with captions of three and four.
fn batch_file(folder: &Path) -> PathBuf {
    let file = folder.join("batch.safetensors");
    let features: Vec<f32> = (0..2 * 5 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 25.0).collect();
    let (ids, mask) = ([2.0, 7.0, 3.0, 0.0, 2.0, 9.0, 8.0, 3.0], [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    let tensors = vec![
        NewTensor::from_slice("vision_output", Dtype::F32, &[2, 5, 64], &features),
        NewTensor::from_slice("input_ids", Dtype::F32, &[2, 4], &ids),
        NewTensor::from_slice("attention_mask", Dtype::F32, &[2, 4], &mask),
    ];
    write(&file, &BTreeMap::new(), tensors).unwrap();
    file
}

#[test]
fn a_step_of_training_is_checked_and_measured_on_a_gpu_too() {
    let folder = tempfile::tempdir().unwrap();
    let file = batch_file(folder.path());
    let arguments = ["--model", "tests/golden/stage1", "--seconds", "0", "--json"];
    let arguments = [&["train"], &arguments[..], &["--batch", file.to_str().unwrap()]].concat();
    assert_step_measured(&report(&bench(&[&arguments[..], &CPU].concat()))["train"]);
    assert_step_measured(&report(&bench_on_gpu(&arguments))["train"]);
}

/// Asserts that a step on the batch of [`batch_file`] was checked and measured.
fn assert_step_measured(train: &Value) {
    assert_eq!(train["batch_size"], 2);
    assert_eq!(train["relative_errors"].as_object().unwrap().len(), 4);
    let seconds = |of: &Value| of.as_f64().unwrap();
    let parts = train["parts_s"].as_object().unwrap();
    assert_eq!(parts.len(), 6);
    assert!(parts.values().all(|part| seconds(part) > 0.0), "{parts:?}");
    assert!(seconds(&train["gflop"]) < seconds(&train["lavis_gflop"]));
    assert!(train["memory_bytes"]["parameters"].as_u64().unwrap() > 0);
    let losses: Vec<f64> = train["losses"].as_array().unwrap().iter().map(|l| seconds(&l[0])).collect();
    assert!(losses.len() == 3 && losses.iter().all(|&l| l > 0.0), "{losses:?}");
}

#[test]
fn a_batch_file_without_captions_is_one_clear_error() {
    let output = bench(&[
        "train",
        "--model",
        "tests/golden/stage1",
        "--batch",
        "tests/golden/stage1/expected.safetensors",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(message.contains("no tensor vision_output"), "{message}");
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
