//! `qformer score`

use crate::common::*;
use qformer::tensor::HostTensor;
use serde_json::Value;
use std::fs;
use tempfile::TempDir;

/// Arguments of `score` with all golden images and texts.
fn score_all(more: &[&str]) -> Vec<String> {
    let mut arguments = vec!["score".to_owned(), "--model".into(), shown(&model()), "--image-dir".into()];
    arguments.extend([shown(&golden().join("images")), "--text".into()]);
    arguments.extend(TEXTS.iter().chain(more).map(|&argument| argument.to_owned()));
    arguments
}

fn scores(more: &[&str]) -> Value {
    let printed = run(score_all(&[&["--json"], more].concat())).succeeds();
    serde_json::from_str(&printed).unwrap()
}

#[track_caller]
fn assert_close(found: &Value, name: &str) {
    let golden = expected(name);
    let error = relative_error(&HostTensor::new(golden.shape(), numbers(found)).unwrap(), &golden);
    assert!(error < TOLERANCE, "{name} is off by {error:e}");
}

#[test]
fn scores_are_those_of_transformers() {
    let scores = scores(&[]);
    assert_eq!(scores["texts"], serde_json::json!(TEXTS));
    assert_eq!(scores["images"], serde_json::json!(images().map(|path| shown(&path))));
    assert_eq!(scores["matching"], "classifier");
    assert_close(&scores["itc"], "itc");
    assert_close(&scores["itm_logits"], "itm_logits");
    let logits = expected("itm_logits");
    for (found, &[no, yes]) in numbers(&scores["itm"]).into_iter().zip(logits.values().as_chunks().0) {
        let expected = 1.0 / (1.0 + (no - yes).exp());
        assert!((found - expected).abs() < 1e-4, "{found} {expected}");
    }
}

#[test]
fn batches_of_one_score_as_one_batch() {
    let [one, all] = ["1", "8"].map(|size| scores(&["--batch-size", size]));
    for name in ["itc", "itm"] {
        for (one, all) in numbers(&one[name]).into_iter().zip(numbers(&all[name])) {
            assert!((one - all).abs() < 1e-5, "{name}: {one} {all}");
        }
    }
}

#[test]
fn max_similarity_is_a_cosine_without_logits() {
    let scores = scores(&["--matching", "max-similarity"]);
    assert_eq!(scores["matching"], "max-similarity");
    assert_close(&scores["itc"], "itc");
    assert!(scores.get("itm_logits").is_none() && scores.get("score").is_none());
    let itm = numbers(&scores["itm"]);
    assert!(itm.len() == 15 && itm.iter().all(|score| score.abs() <= 1.0 + 1e-6), "{itm:?}");
}

#[test]
fn reranking_matches_the_most_similar_texts_and_adds_logit_and_cosine() {
    let (all, reranked) = (scores(&[]), scores(&["--rerank", "2"]));
    assert_eq!(all["itc"], reranked["itc"]);
    for image in 0..3 {
        let itc = numbers(&all["itc"][image]);
        let mut order: Vec<usize> = (0..5).collect();
        order.sort_by(|&a, &b| itc[b].total_cmp(&itc[a]));
        for (rank, text) in order.into_iter().enumerate() {
            let [logits, itm, score] =
                ["itm_logits", "itm", "score"].map(|name| &reranked[name][image][text]);
            if rank >= 2 {
                assert!(logits.is_null() && itm.is_null() && score.is_null());
                continue;
            }
            let logit = numbers(&all["itm_logits"][image][text])[1];
            let [score] = numbers(score)[..] else { panic!("one score") };
            assert!((score - logit - itc[text]).abs() < 1e-4, "{score} {logit} {}", itc[text]);
        }
    }
}

#[test]
fn the_table_has_the_best_match_first() {
    let itm = numbers(&scores(&[])["itm"]);
    let table = run(score_all(&[])).succeeds();
    let paragraphs: Vec<&str> = table.split("\n\n").collect();
    assert_eq!(paragraphs.len(), 3);
    for ((paragraph, image), itm) in paragraphs.into_iter().zip(images()).zip(itm.chunks(5)) {
        let mut texts: Vec<(f32, &str)> = itm.iter().copied().zip(TEXTS).collect();
        texts.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut lines = paragraph.lines();
        assert_eq!(lines.next(), Some(shown(&image).as_str()));
        assert_eq!(lines.next(), Some("      itm      itc  text"));
        for (line, (probability, text)) in lines.by_ref().zip(texts) {
            assert!(line.trim_start().starts_with(&format!("{probability:.4} ")), "{line}");
            assert!(line.ends_with(&format!("  {text}")), "{line}");
        }
        assert_eq!(lines.next(), None);
    }
}

#[test]
fn texts_with_escape_sequences_are_printed_harmlessly() {
    let mut arguments = score_all(&[]);
    arguments.push("\u{1b}[31mred\u{202e}".into());
    let table = run(arguments).succeeds();
    assert!(table.contains(r"\u{1b}[31mred\u{202e}"), "{table}");
}

#[test]
fn the_file_holds_what_json_prints() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("scores.json");
    assert_eq!(run(score_all(&["--output", &shown(&output)])).succeeds(), "");
    assert_eq!(fs::read_to_string(output).unwrap(), run(score_all(&["--json"])).succeeds());
}
