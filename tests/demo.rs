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

/// The two commands that the demo ends with.
fn commands(told: &str) -> [String; 2] {
    let commands = told.lines().filter_map(|line| line.strip_prefix("  qformer "));
    let commands: Vec<String> = commands.map(|rest| format!("qformer {rest}")).collect();
    commands.try_into().unwrap()
}

/// What a command prints, typed into a shell that finds `qformer`.
#[track_caller]
fn typed(command: &str) -> String {
    let program = Path::new(env!("CARGO_BIN_EXE_qformer"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let output = Command::new("sh").args(["-c", command]).env("PATH", path).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Captions of the part `name` of the pictures.
fn captions(folder: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(folder.join("pictures").join(name)).unwrap();
    let caption =
        |line: &str| serde_json::from_str::<Value>(line).unwrap()["caption"].as_str().unwrap().to_owned();
    text.lines().map(caption).collect()
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
    // Nothing is fetched: every picture is in the page, once, and a small one of each map over it.
    assert_eq!(count("<image id=\"picture-"), 3);
    assert_eq!(count("href=\"data:image/png;base64,"), 3 + 24);
    assert_eq!(count("src=\""), count("src=\"data:image/png;base64,"));
    // How to try the model: told for where the demo was called, and in the page for the demo's folder.
    for (command, in_folder) in commands(&told).into_iter().zip(["qformer caption ", "qformer score "]) {
        assert!(command.starts_with(in_folder), "{told}");
        let within = command.replace(&format!("{}/", folder.path().display()), "");
        assert!(page.contains(&format!("\n{within}\n")), "{within}");
    }

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

    // The commands that the demo ends with try its model on the first picture held out.
    let truth = captions(folder.path(), "held-out.jsonl");
    let [caption, score] = commands(&told);
    let said = typed(&caption);
    assert_eq!(said.trim_end().split_once('\t').unwrap().1, results["after"]["captions"][0]);
    let table = typed(&score);
    let matches: Vec<&str> = table.lines().skip(2).collect();
    assert_eq!(matches.len(), 3, "{table}");
    assert!(matches[0].ends_with(&truth[0]), "{table}");
    // On the others it does as well as the demo says that it does.
    let one = folder.path().join("pictures/held-out/00000.png").display().to_string();
    let all = folder.path().join("pictures/held-out").display().to_string();
    let said = typed(&caption.replace(&format!("--images {one}"), &format!("--image-dir {all}")));
    let said = said.lines().map(|line| line.split_once('\t').unwrap().1);
    let right = said.zip(&truth).filter(|(said, truth)| said == truth).count();
    assert!(right >= 70, "{right} of 100 captions are right");
}

#[test]
fn no_picture_learnt_from_has_a_caption_that_is_held_out() {
    let folder = tempfile::tempdir().unwrap();
    assert!(demo(folder.path(), &["--steps", "1", "--pictures", "2000"]).status.success());
    let [learnt, mut held_out] = ["train.jsonl", "held-out.jsonl"].map(|name| captions(folder.path(), name));
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
