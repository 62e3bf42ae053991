//! `qformer evaluate`

use crate::common::*;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

/// A list of the golden images with captions, two for the first.
fn data(workplace: &Workplace) -> PathBuf {
    let [astronaut, chelsea, coffee] = images().map(|path| shown(&path));
    let lines = [
        json!({"image": astronaut, "caption": [TEXTS[3], TEXTS[4]]}),
        json!({"image": chelsea, "caption": TEXTS[0]}),
        json!({"image": coffee, "caption": TEXTS[2]}),
    ];
    let path = workplace.path().join("data.jsonl");
    fs::write(&path, lines.map(|line| format!("{line}\n")).concat()).unwrap();
    path
}

fn evaluate(workplace: &Workplace, more: &[&str]) -> Run {
    run([&["evaluate", "--model", &shown(&workplace.model())], more].concat())
}

#[test]
fn pictures_and_their_features_are_evaluated_alike() {
    let mut workplace = Workplace::new();
    workplace.add_language_head();
    let data = shown(&data(&workplace));
    let features = shown(&workplace.path().join("features.safetensors"));
    let mut embed = embed_all(&workplace.model(), &workplace.output());
    embed.extend(["--save-vision-output".to_owned(), features.clone()]);
    run(embed).succeeds();
    let of_pictures = evaluate(&workplace, &["--data", &data, "--json"]).succeeds();
    let of_features =
        evaluate(&workplace, &["--features", &features, "--captions", &data, "--json"]).succeeds();
    let [pictures, features]: [Value; 2] =
        [of_pictures, of_features].map(|printed| serde_json::from_str(&printed).unwrap());
    assert_eq!(
        (&pictures["images"], &pictures["captions"], &pictures["rerank"]),
        (&json!(3), &json!(4), &json!(128))
    );
    let mut compared = 0;
    for (key, value) in pictures.as_object().unwrap() {
        if let Some(value) = value.as_f64() {
            // The encoder's output is the same, but products round by their sizes.
            assert!((value - features[key].as_f64().unwrap()).abs() < 1e-4 * value.abs(), "{key}");
            compared += 1;
        }
    }
    assert_eq!(compared, 3 + 2 * (3 + 3 + 1) + 2 + 3 + 3);
    for (lavis, open_clip) in [("txt_r1", "image_to_text_R@1"), ("img_r10", "text_to_image_R@10")] {
        for found in [&pictures, &pictures["itc"]] {
            let share = found[open_clip].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&share));
            assert_eq!(found[lavis].as_f64().unwrap(), 100.0 * share);
        }
    }
    assert_eq!(pictures["img_r10"], 100.0, "there are three images");
    let loss = pictures["caption_loss"].as_f64().unwrap();
    assert_eq!(pictures["caption_perplexity"].as_f64().unwrap(), loss.exp());
}

#[test]
fn without_a_language_head_the_table_has_no_perplexity() {
    let workplace = Workplace::new();
    let data = shown(&data(&workplace));
    let ended = evaluate(&workplace, &["--data", &data, "--rerank", "2"]);
    ended.tells(&["note: no caption perplexity"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for part in ["3 images, 4 captions", "image to text, ITC", "text to image, reranked 2", "ITM accuracy"] {
        assert!(ended.stdout.contains(part), "{ended:?}");
    }
    assert!(!ended.stdout.contains("perplexity"), "{ended:?}");
    let path = workplace.path().join("output/evaluation.json");
    evaluate(&workplace, &["--quiet", "--data", &data, "--output", &shown(&path)]).succeeds();
    let written: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    assert!(written["caption_perplexity"].is_null() && written["itm_accuracy"].is_f64(), "{written}");
}

#[test]
fn a_data_set_is_asked_for() {
    evaluate(&Workplace::new(), &[]).misuses(&["--data"]);
}
