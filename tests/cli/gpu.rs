//! Commands on a GPU, the machine's own or a simulated one, against the same on the CPU.

use crate::common::*;
use crate::simulated;
use qformer::Cuda;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// Runs it on the CPU, and on a GPU.
fn on_both(arguments: impl Fn(&str) -> Vec<String>) -> [Run; 2] {
    ["cpu", "cuda"].map(|device| {
        let mut command = command();
        command.args(arguments(device)).args(["--device", device]);
        if device == "cuda" && Cuda::open(0).is_err() {
            command.env("LD_LIBRARY_PATH", simulated::driver());
        }
        ended(command.output().unwrap())
    })
}

/// The same, for what it prints as JSON.
fn printed_by_both(arguments: &[&str]) -> [Value; 2] {
    let arguments: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
    on_both(|_| arguments.clone()).map(|run| serde_json::from_str(&run.succeeds()).unwrap())
}

/// A list of two golden images.
fn data(workplace: &Workplace) -> PathBuf {
    let path = workplace.path().join("data.jsonl");
    let [astronaut, chelsea, _] = images().map(|path| shown(&path));
    let lines = [
        json!({"image": astronaut, "caption": [TEXTS[3], TEXTS[4]]}),
        json!({"image": chelsea, "caption": TEXTS[0]}),
    ];
    fs::write(&path, lines.map(|line| format!("{line}\n")).concat()).unwrap();
    path
}

#[test]
fn encode_writes_the_features_that_it_writes_on_the_cpu() {
    let workplace = Workplace::new();
    let (model, data) = (shown(&workplace.model()), shown(&data(&workplace)));
    let output = |device: &str| workplace.path().join(device);
    for run in on_both(|device| {
        let output = shown(&output(device));
        ["encode", "--model", &model, "--data", &data, "--output", &output].map(str::to_owned).to_vec()
    }) {
        run.succeeds();
    }
    let [cpu, gpu] = ["cpu", "cuda"]
        .map(|device| read(&output(device).join("features-00000.safetensors"), "vision_output"));
    let error = relative_error(&gpu, &cpu);
    // Each of the blocks rounds to bf16, 2^-9 of a value; 0.006 was measured.
    assert!(error < 0.012, "{error}");
    let [cpu, gpu] = ["cpu", "cuda"].map(|device| fs::read(output(device).join("captions.jsonl")).unwrap());
    assert!(cpu == gpu);
}

#[test]
fn evaluate_finds_what_it_finds_on_the_cpu() {
    let mut workplace = Workplace::new();
    workplace.add_language_head();
    let (model, data) = (shown(&workplace.model()), shown(&data(&workplace)));
    let [cpu, gpu] = printed_by_both(&["evaluate", "--model", &model, "--data", &data, "--json"]);
    for name in ["images", "captions", "rerank", "caption_tokens"] {
        assert_eq!(cpu[name], gpu[name], "{name}");
    }
    // A mean over tokens, so roundings even out: 0.0004 was measured.
    let [cpu, gpu] = [cpu, gpu].map(|found| found["caption_loss"].as_f64().unwrap());
    assert!((gpu - cpu).abs() < 0.005 * cpu, "{gpu} on the GPU, {cpu} on the CPU");
}

#[test]
fn caption_says_what_it_says_on_the_cpu() {
    let mut workplace = Workplace::new();
    workplace.add_language_head();
    let [model, image] = [workplace.model(), images()[0].clone()].map(|path| shown(&path));
    let [cpu, gpu] = printed_by_both(&[
        "caption",
        "--model",
        &model,
        "--images",
        &image,
        "--max-new-tokens",
        "5",
        "--min-new-tokens",
        "3",
        "--json",
    ]);
    let [cpu, gpu] = [cpu, gpu].map(|found| found[0]["captions"][0].clone());
    assert_eq!(cpu["caption"], gpu["caption"]);
    let [cpu, gpu] = [cpu, gpu].map(|found| found["score"].as_f64().unwrap());
    // Logits of a head of large random weights, of inputs in bf16: 0.014 was measured.
    assert!((gpu - cpu).abs() < 0.04 * cpu.abs(), "{gpu} on the GPU, {cpu} on the CPU");
}
