//! The standard streams may be full, or closed by whoever read them: every command ends by itself, and its exit
//! code tells of its work.

use crate::common::*;
use crate::program::end;
use std::fs::{self, File};
use std::io;
use std::process::{Child, Stdio};
use tempfile::TempDir;

/// What cannot be written to, as the disk is full.
fn full() -> Stdio {
    File::options().write(true).open("/dev/full").unwrap().into()
}

/// What cannot be written to, as nobody reads it any longer.
fn closed() -> Stdio {
    let (_, writer) = io::pipe().unwrap();
    writer.into()
}

fn spawn(arguments: &[&str], stdout: Stdio, stderr: Stdio) -> Child {
    command().args(arguments).stdout(stdout).stderr(stderr).spawn().unwrap()
}

/// A command that ends with `code` after remarks or an error, whether anybody can read them or not.
#[track_caller]
fn ends_unheard(arguments: &[&str], code: i32) {
    let heard = end(spawn(arguments, Stdio::piped(), Stdio::piped()));
    assert_eq!(heard.status.code(), Some(code), "{arguments:?}: {heard:?}");
    assert!(!heard.stderr.is_empty(), "{arguments:?} tells nothing");
    for stderr in [full(), closed()] {
        let unheard = end(spawn(arguments, Stdio::piped(), stderr));
        assert_eq!(unheard.status.code(), Some(code), "{arguments:?}");
    }
}

#[test]
fn commands_with_remarks_end_though_these_cannot_be_written() {
    let mut workplace = Workplace::new();
    workplace.add_language_head();
    let at = |name: &str| shown(&workplace.path().join(name));
    let (model, output, bare) = (shown(&workplace.model()), shown(&workplace.output()), shown(&model()));
    let (image, long, data) = (shown(&images()[0]), "a cat ".repeat(200), at("data.jsonl"));
    let line = |image: &str| format!("{{\"image\": \"{image}\", \"caption\": \"a cat\"}}\n");
    fs::write(&data, line(&image) + &line("data.jsonl")).unwrap();
    let few = at("few.jsonl");
    fs::write(&few, line(&image)).unwrap();
    ends_unheard(&["embed", "--model", &model, "--text", &long, "--output", &output], 0);
    ends_unheard(&["score", "--model", &model, "--images", &image, "--text", &long], 0);
    ends_unheard(&["evaluate", "--model", &bare, "--data", &few], 0);
    // Unreadable images are warned of whether they were met now or by an earlier run.
    ends_unheard(&["encode", "--model", &model, "--data", &data, "--output", &at("encoded")], 0);
}

#[test]
fn commands_that_fail_end_though_the_error_cannot_be_written() {
    let workplace = Workplace::new();
    let (gone, output) = (shown(&workplace.path().join("gone")), shown(&workplace.output()));
    let of_model: [&[&str]; 4] = [
        &["embed", "--text", "a", "--output", &output],
        &["score", "--images", "gone.png", "--text", "a"],
        &["caption", "--images", "gone.png"],
        &["evaluate", "--data", "gone.jsonl"],
    ];
    for arguments in of_model {
        ends_unheard(&[arguments, &["--model", &gone]].concat(), 1);
    }
    ends_unheard(&["encode", "--model", &gone, "--data", "gone.jsonl", "--output", &gone], 1);
    ends_unheard(&["inspect", &gone], 1);
    ends_unheard(&["init", "--preset", "tiny", "--output", "/dev/null"], 1);
    ends_unheard(&["demo", "--output", "/dev/null"], 1);
    ends_unheard(&["train", "stage1", "--output", &gone], 2);
    ends_unheard(&["inspect"], 2);
}

#[test]
fn the_demo_ends_though_nobody_reads_its_stages() {
    let folder = TempDir::new().unwrap();
    let output = shown(folder.path());
    let demo = ["demo", "--threads", "2", "--steps", "2", "--pictures", "64", "--output", &output];
    let ended = end(spawn(&demo, Stdio::piped(), closed()));
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(folder.path().join("index.html").exists());
}

#[test]
fn results_that_cannot_be_written_are_an_error() {
    let (model, image) = (shown(&model()), shown(&images()[0]));
    let commands: [&[&str]; 2] =
        [&["inspect", &model], &["score", "--model", &model, "--images", &image, "--text", "a"]];
    for arguments in commands {
        ended(end(spawn(arguments, full(), Stdio::piped()))).fails(&["cannot write to the standard output"]);
        ended(end(spawn(arguments, closed(), Stdio::piped()))).succeeds();
        let neither = end(spawn(arguments, full(), full()));
        assert_eq!(neither.status.code(), Some(1), "{arguments:?}");
    }
}
