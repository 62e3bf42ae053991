//! `qformer init`

use crate::common::*;
use serde_json::Value;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

fn init(folder: &Path, more: &[&str]) -> Run {
    run([&["init", "--preset", "tiny", "--output", &shown(folder)], more].concat())
}

#[test]
fn a_new_model_is_whole_and_reads_images_and_texts() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("new/model");
    assert_eq!(init(&model, &[]).succeeds(), "");
    let report = run(["inspect", "--json", "--values", &shown(&model)]).succeeds();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!((&report["faults"], &report["not_finite"]), (&serde_json::json!([]), &serde_json::json!({})));
    let json =
        |name: &str| -> Value { serde_json::from_slice(&fs::read(model.join(name)).unwrap()).unwrap() };
    // By a number, transformers puts places for an image into every text, which this model cannot embed.
    assert!(json("processor_config.json").as_object().unwrap()["num_query_tokens"].is_null());
    assert_eq!(json("config.json")["architectures"], serde_json::json!(["Blip2ForImageTextRetrieval"]));
    // It has no language-modelling head.
    assert!(!model.join("generation_config.json").exists());
    run(embed_all(&model, &folder.path().join("features.safetensors"))).succeeds();
}

#[test]
fn weights_are_a_function_of_the_seed() {
    let folder = TempDir::new().unwrap();
    let weights = |name: &str, more: &[&str]| {
        let model = folder.path().join(name);
        init(&model, more).succeeds();
        fs::read(model.join("model.safetensors")).unwrap()
    };
    let default = weights("default", &[]);
    assert!(default == weights("42", &["--seed", "42", "--threads", "3"]));
    assert!(default != weights("43", &["--seed", "43"]));
}

#[test]
fn weights_begin_as_those_of_blip2() {
    let folder = TempDir::new().unwrap();
    init(folder.path(), &[]).succeeds();
    let tensor = |name: &str| read(folder.path(), name).into_values();
    let layer = |name: &str| tensor(&format!("qformer.encoder.layer.0.{name}"));
    for part in ["intermediate*.dense.weight", "output*.dense.weight", "output*.LayerNorm.weight"] {
        assert_eq!(layer(&part.replace('*', "_query")), layer(&part.replace('*', "")), "{part}");
    }
    let deviation = |values: &[f32]| {
        (values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / values.len() as f64).sqrt()
    };
    for values in [tensor("query_tokens"), layer("crossattention.attention.key.weight")] {
        assert!((deviation(&values) / 0.02 - 1.0).abs() < 0.1, "{}", deviation(&values));
    }
    assert!(layer("crossattention.output.LayerNorm.weight").iter().all(|&value| value == 1.0));
    assert!(layer("crossattention.attention.query.bias").iter().all(|&value| value == 0.0));
    // nn.Linear's default: uniform within ±1/√128.
    let largest = tensor("itm_head.weight").iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    assert!((0.085..=0.0884).contains(&largest), "{largest}");
}

#[test]
fn an_earlier_result_is_replaced_and_foreign_files_are_not() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    init(&model, &["--seed", "1"]).succeeds();
    init(&model, &["--seed", "2"]).succeeds();
    let foreign = folder.path().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("config.json"), "{}").unwrap();
    init(&foreign, &[]).misuses(&["is not empty and was not written by qformer init", "another --output"]);
    assert_eq!(fs::read_to_string(foreign.join("config.json")).unwrap(), "{}");
    assert_eq!(foreign.read_dir().unwrap().count(), 1);
}

#[test]
fn a_tokenizer_is_copied_if_the_model_has_room_for_it() {
    let folder = TempDir::new().unwrap();
    let new = folder.path().join("model");
    init(&new, &["--tokenizer", &shown(&model())]).succeeds();
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(new.join(file)).unwrap(), fs::read(model().join(file)).unwrap());
    }
    assert!(!new.join("vocab.txt").exists());
    let large = folder.path().join("large");
    fs::create_dir(&large).unwrap();
    let words: Vec<String> = (0..300).map(|id| format!("word{id}")).collect();
    let vocabulary = format!("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n{}\n", words.join("\n"));
    fs::write(large.join("vocab.txt"), vocabulary).unwrap();
    let refused = folder.path().join("refused");
    init(&refused, &["--tokenizer", &shown(&large)]).fails(&["has 305 word pieces", "have 249 rows"]);
    assert!(!refused.exists());
}

#[test]
fn a_folder_below_a_file_cannot_be_made() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    init(&file.join("model"), &[]).fails(&["cannot create", "model"]);
}
