//! The demonstration: what it reaches, as a newcomer runs it; its stages and its page, in its smallest form.

use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn demo(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qformer"));
    command.args(["demo", "--threads", "2", "--output"]).arg(folder).args(arguments);
    command.output().unwrap()
}

fn results(folder: &Path) -> Value {
    let json: Value = serde_json::from_slice(&fs::read(folder.join("demo.json")).unwrap()).unwrap();
    json["results"].clone()
}

#[test]
fn every_stage_runs_and_the_page_has_every_part() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path(), &["--steps", "6", "--pictures", "64"]);
    let (told, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    for goal in ["finds its picture", "finds its caption", "hard negative", "right in every word"] {
        assert!(told.contains(goal), "{told}");
    }
    for stage in ["drew 64 pictures", "encoded", "before it learns", "learnt for 6 steps", "drew the page"] {
        assert!(said.contains(stage), "{said}");
    }
    let page = fs::read_to_string(folder.path().join("index.html")).unwrap();
    let count = |part: &str| page.matches(part).count();
    assert_eq!(count("class=\"tile\""), 4);
    assert_eq!(count("Training curves"), 1);
    assert_eq!(count("class=\"query\""), 5);
    assert_eq!(count("class=\"card pair\""), 4);
    assert_eq!(count("class=\"said\""), 18);
    // Eight queries look at each of three pictures.
    assert_eq!(count("<use href=\"#picture-"), 24);
    // Nothing is fetched: every picture is in the page.
    assert_eq!(count("href=\"data:image/png;base64,"), 3);
    assert_eq!(count("src=\""), count("src=\"data:image/png;base64,"));

    // The same again, in the folder of the earlier result.
    let first = results(folder.path());
    assert!(first["after"]["captions"].as_array().unwrap().len() == 100);
    assert_ne!(first["before"], first["after"]);
    assert!(demo(folder.path(), &["--steps", "6", "--pictures", "64"]).status.success());
    assert_eq!(results(folder.path()), first);
}

/// The goals stand below once more, lest the program's own be lowered. Seeds and processors differ by several in a
/// hundred.
#[test]
fn pictures_it_never_saw_are_found_matched_and_captioned() {
    let folder = tempfile::tempdir().unwrap();
    let output = demo(folder.path(), &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results = results(folder.path());
    let share = |when: &str, what: &str| results[when].pointer(what).and_then(Value::as_f64).unwrap();
    for (what, guessed, least) in [
        ("/reranked/image_to_text/0", 0.1, 0.8),
        ("/reranked/text_to_image/0", 0.1, 0.8),
        ("/itm_accuracy", 0.75, 0.9),
        ("/captions_right", 0.0, 0.7),
    ] {
        let (before, after) = (share("before", what), share("after", what));
        assert!(before <= guessed, "{what} is {before} before anything is learnt");
        assert!(after >= least, "{what} is {after}, not {least}");
    }
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(told.matches("  reached").count(), 4, "{told}");
}

#[test]
fn no_picture_learnt_from_has_a_caption_that_is_held_out() {
    let folder = tempfile::tempdir().unwrap();
    assert!(demo(folder.path(), &["--steps", "1", "--pictures", "2000"]).status.success());
    let captions = |name: &str| -> Vec<String> {
        let text = fs::read_to_string(folder.path().join("pictures").join(name)).unwrap();
        let caption =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["caption"].as_str().unwrap().to_owned();
        text.lines().map(caption).collect()
    };
    let (learnt, mut held_out) = (captions("train.jsonl"), captions("held-out.jsonl"));
    assert_eq!((learnt.len(), held_out.len()), (2000, 100));
    assert!(held_out.iter().all(|caption| !learnt.contains(caption)));
    // A caption that two pictures shared would have two right answers.
    held_out.sort();
    held_out.dedup();
    assert_eq!(held_out.len(), 100);
}

#[test]
fn a_folder_with_other_things_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("thesis.txt");
    fs::write(&kept, "years of work").unwrap();
    let output = demo(folder.path(), &["--steps", "1"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not written by qformer demo"));
    assert_eq!(fs::read_to_string(kept).unwrap(), "years of work");
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}
