//! `qformer inspect`

use crate::common::*;
use crate::paths::path;
use qformer::params::safetensors::{Dtype, NewTensor, write};
use qformer::tensor::HostTensor;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

fn inspect(path: &Path) -> Value {
    serde_json::from_str(&run(["inspect", "--json", "--values", &shown(path)]).succeeds()).unwrap()
}

/// What keeps a checkpoint from being used as `name` says.
fn obstacle<'a>(report: &'a Value, name: &str) -> &'a Value {
    let uses = report["uses"].as_array().unwrap();
    &uses.iter().find(|one| one["name"].as_str().unwrap().contains(name)).unwrap()["obstacle"]
}

#[test]
fn a_retrieval_checkpoint_retrieves_and_does_not_write() {
    let report = inspect(&model());
    assert_eq!(report["naming"], "Hugging Face");
    assert_eq!(report["dtypes"], json!({ "F32": 127 }));
    assert_eq!(
        (&report["files"], &report["tensors"], &report["parameters"]),
        (&json!(1), &json!(127), &json!(830722))
    );
    assert_eq!((&report["faults"], &report["not_finite"]), (&json!([]), &json!({})));
    for name in ["read images", "ITC", "ITM"] {
        assert!(obstacle(&report, name).is_null(), "{name}");
    }
    assert_eq!(obstacle(&report, "ITG"), "there is no language-modelling head (cls.predictions)");
    assert_eq!(obstacle(&report, "stage 1"), "there is no temperature (temp)");
    assert_eq!(obstacle(&report, "language model"), "there is no language model");
    let parts = report["parts"].as_array().unwrap();
    let total: u64 = parts.iter().map(|part| part["parameters"].as_u64().unwrap()).sum();
    assert_eq!(total, 830722);
}

#[test]
fn the_text_says_what_the_json_says() {
    let text = run(["inspect", &shown(&model())]).succeeds();
    for line in [
        "  in 1 file, names of Hugging Face",
        "  types: F32 (127)",
        "  images: 56x56 pixels in patches of 14, 17 tokens of width 64",
        "  image encoder: EVA, 2 layers, 2 heads, feed-forward width 128",
        "  Q-Former: 8 queries, 3 layers of width 128, 2 heads, feed-forward width 256, cross-attention in 2",
        "total                          127         830,722      3.3 MB",
        "  yes  compare images with texts (ITC)",
        "  no   go on with stage 1 of training: there is no temperature (temp)",
        "All tensors fit config.json.",
    ] {
        assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    }
}

#[test]
fn missing_surplus_misshapen_and_infinite_tensors_are_listed() {
    let mut workplace = Workplace::new();
    workplace.tensors.remove("query_tokens");
    workplace.tensors.insert("surplus".into(), HostTensor::new(&[2], vec![f32::NAN, 1.0]).unwrap());
    workplace.tensors.insert("itm_head.bias".into(), HostTensor::new(&[3], vec![0.0; 3]).unwrap());
    workplace.save(Dtype::F32);
    let report = inspect(&workplace.model());
    assert_eq!(
        report["faults"],
        json!([
            "tensor \"query_tokens\" [1, 8, 128] is missing",
            "tensor \"itm_head.bias\" has shape [3], expected [2]",
            "tensor \"surplus\" [2] belongs to no part of this model",
        ])
    );
    assert_eq!(report["not_finite"], json!({ "surplus": 1 }));
    assert!(obstacle(&report, "ITM").is_string());
}

#[test]
fn a_file_by_itself_is_told_without_a_configuration() {
    let report = inspect(&model().join("model.safetensors"));
    assert!(report["config"].is_null() && report["faults"].is_null());
    assert_eq!(report["tensors"], 127);
    let report = inspect(&golden().join("expected.safetensors"));
    assert!(report["naming"].is_null());
    assert_eq!(obstacle(&report, "read images"), "there is no Q-Former");
}

#[test]
fn a_checkpoint_of_lavis_is_told_as_others_are() {
    let folder = path("tests/golden/pth");
    let own = tempfile::tempdir().unwrap();
    for file in ["config.json", "lavis.pth"] {
        fs::copy(folder.join(file), own.path().join(file)).unwrap();
    }
    let (by_itself, in_folder) = (inspect(&folder.join("lavis.pth")), inspect(own.path()));
    assert_eq!(in_folder["faults"], json!([]));
    for report in [by_itself, in_folder] {
        assert_eq!(report["naming"], "LAVIS");
        assert_eq!(report["dtypes"], json!({ "F32": 104, "F16": 1, "BF16": 1, "F64": 1, "I64": 1 }));
        assert_eq!((&report["tensors"], &report["not_finite"]), (&json!(108), &json!({})));
        for name in ["ITC", "ITM", "ITG", "stage 1"] {
            assert!(obstacle(&report, name).is_null(), "{name}");
        }
        assert!(obstacle(&report, "read images").as_str().unwrap().contains("no image encoder"));
    }
}

#[test]
fn what_training_keeps_beside_a_checkpoint_is_told() {
    let workplace = Workplace::new();
    let head = |name: &'static str, shape: &[usize]| {
        NewTensor::new(name, Dtype::F32, shape, |_, values| {
            values.fill(0.5);
            Ok(())
        })
    };
    let tensors = vec![
        head("temp", &[]),
        head("cls.predictions.bias", &[139]),
        head("cls.predictions.transform.dense.weight", &[128, 128]),
    ];
    write(&workplace.model().join("stage1.safetensors"), &BTreeMap::new(), tensors).unwrap();
    let report = inspect(&workplace.model());
    assert_eq!(
        (&report["files"], &report["tensors"], &report["faults"]),
        (&json!(2), &json!(130), &json!([]))
    );
    for name in ["ITC", "ITM", "ITG", "stage 1"] {
        assert!(obstacle(&report, name).is_null(), "{name}");
    }
}

/// What is said of the model `name` within the model: what it is, and what is in the way of running it.
fn component(report: &Value, name: &str) -> (String, Value) {
    let components = report["components"].as_array().unwrap();
    let found = components.iter().find(|one| one["name"] == name).unwrap();
    (found["what"].as_str().unwrap().to_owned(), found["obstacle"].clone())
}

#[test]
fn a_language_model_is_told_and_whether_it_is_run() {
    let configurations = [
        (
            json!({ "model_type": "opt", "hidden_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 32,
                "ffn_dim": 10240, "vocab_size": 50304 }),
            "OPT, 32 layers of width 2560, 32 heads, feed-forward width 10240, 50304 tokens",
        ),
        (
            json!({ "model_type": "t5", "d_model": 2048, "num_layers": 24, "num_heads": 32, "d_ff": 5120 }),
            "T5, 24 + 24 layers of width 2048, 32 heads, feed-forward width 5120, 32128 tokens",
        ),
        (
            json!({ "model_type": "llama" }),
            "LLaMA, 32 layers of width 4096, 32 heads, feed-forward width 11008, 32000 tokens",
        ),
    ];
    let mut workplace = Workplace::new();
    for (text_config, what) in &configurations {
        workplace.configure(|config| config["text_config"] = text_config.clone());
        let expected = (what.to_string(), json!("its weights are not in this checkpoint"));
        assert_eq!(component(&inspect(&workplace.model()), "language model"), expected);
    }
    workplace
        .tensors
        .insert("language_model.shared.weight".into(), HostTensor::new(&[1], vec![0.5]).unwrap());
    workplace.save(Dtype::F32);
    let report = inspect(&workplace.model());
    assert_eq!(component(&report, "language model").1, "not built yet: read, not run");
    assert_eq!(obstacle(&report, "language model"), "language models of this kind are not built yet");
    let text = run(["inspect", &shown(&workplace.model())]).succeeds();
    let line = format!("  language model: {}; not built yet: read, not run", configurations[2].1);
    assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
    // A model that nothing here knows is told by its name.
    workplace.configure(|config| config["text_config"] = json!({ "model_type": "gpt2" }));
    run(["inspect", &shown(&workplace.model())])
        .fails(&["text_config.model_type is gpt2", "\"opt\", \"t5\" or \"llama\""]);
}

#[test]
fn an_encoder_that_is_not_built_is_told_and_its_features_are_read() {
    let workplace = Workplace::new();
    let features = shown(&workplace.path().join("vision.safetensors"));
    let image = shown(&images()[0]);
    let model = shown(&workplace.model());
    let embed = |source: &[&str]| {
        let output = shown(&workplace.output());
        run([&["embed", "--model", &model, "--output", &output], source].concat())
    };
    embed(&["--images", &image, "--save-vision-output", &features]).succeeds();
    let expected = read(&workplace.output(), "query_output");
    fs::remove_file(workplace.output()).unwrap();
    workplace.configure(|config| config["vision_config"]["model_type"] = "clip_vision_model".into());
    let report = inspect(&workplace.model());
    let what = "CLIP, 2 layers, 2 heads, feed-forward width 128".to_owned();
    assert_eq!(component(&report, "image encoder"), (what, json!("not built yet: read, not run")));
    assert_eq!(report["faults"], json!([]));
    assert_eq!(
        obstacle(&report, "read images"),
        "the image encoder is not built yet; its output can be given with --features"
    );
    embed(&["--images", &image]).fails(&[
        "clip_vision_model",
        "not built yet",
        "give its output as features",
    ]);
    workplace.has_written_nothing();
    embed(&["--features", &features]).succeeds();
    assert_eq!(read(&workplace.output(), "query_output"), expected);
}
