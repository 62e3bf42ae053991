//! What is not UTF-8: files by any name that the system allows, and arguments and variables that have to be text.

use crate::common::*;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A name that is no text.
fn name() -> &'static OsStr {
    OsStr::from_bytes(b"b\xff\xfe")
}

/// A command with arguments of both kinds.
fn arguments(parts: &[&dyn AsRef<OsStr>]) -> Vec<OsString> {
    parts.iter().map(|part| part.as_ref().to_owned()).collect()
}

#[test]
fn files_may_have_names_that_are_not_utf8() {
    let mut workplace = Workplace::new();
    workplace.add_language_head();
    let folder = workplace.path().join(name());
    fs::create_dir(&folder).unwrap();
    let at = |end: &str| -> PathBuf {
        let mut file = name().to_owned();
        file.push(end);
        folder.join(file)
    };
    let (model, image, data, features) = (at("-model"), at(".png"), at(".jsonl"), at(".safetensors"));
    fs::rename(workplace.model(), &model).unwrap();
    fs::copy(&images()[0], &image).unwrap();
    fs::copy(&images()[0], folder.join("a.png")).unwrap();
    fs::write(&data, "{\"image\": \"a.png\", \"caption\": \"a cat\"}\n").unwrap();
    let commands: [&[&dyn AsRef<OsStr>]; 8] = [
        &[&"inspect", &model],
        &[&"init", &"--preset", &"tiny", &"--output", &at("-init")],
        &[
            &"embed",
            &"--model",
            &model,
            &"--images",
            &image,
            &"--text",
            &"a cat",
            &"--output",
            &at("-embedded"),
            &"--save-vision-output",
            &features,
        ],
        &[&"score", &"--model", &model, &"--image-dir", &folder, &"--text", &"a cat"],
        &[&"encode", &"--model", &model, &"--data", &data, &"--output", &at("-encoded")],
        &[&"evaluate", &"--model", &model, &"--data", &data],
        &[&"evaluate", &"--model", &model, &"--features", &features, &"--captions", &data],
        &[
            &"caption",
            &"--model",
            &model,
            &"--images",
            &image,
            &"--max-new-tokens",
            &"7",
            &"--min-new-tokens",
            &"1",
        ],
    ];
    for parts in commands {
        run(arguments(parts)).succeeds();
    }
    run(arguments(&[&"demo", &"--quiet", &"--steps", &"2", &"--pictures", &"64", &"--output", &at("-demo")]))
        .succeeds();
    run(arguments(&[&"inspect", &at("-gone")])).fails(&["cannot open"]);
}

#[test]
fn arguments_that_have_to_be_text_are_refused_otherwise() {
    let (model, image) = (shown(&model()), shown(&images()[0]));
    run(arguments(&[&"score", &"--model", &model, &"--images", &image, &"--text", &name()]))
        .misuses(&["UTF-8"]);
    run(arguments(&[&"init", &"--seed", &name(), &"--preset", &"tiny", &"--output", &"gone"]))
        .misuses(&["UTF-8"]);
    run(arguments(&[&name()])).misuses(&["subcommand"]);
}

#[test]
fn variables_start_no_more_threads_than_the_flag() {
    let inspect = |variables: &[(&str, &OsStr)], more: &[&str]| {
        let mut command = command();
        command.arg("inspect").arg(model()).args(more).env_remove("RAYON_NUM_THREADS");
        ended(command.env_remove("OMP_NUM_THREADS").envs(variables.iter().copied()).output().unwrap())
    };
    for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "QFORMER_THREADS"] {
        let values = ["0", "1025", "100000000", "99999999999999999999", "-1", "many"].map(OsStr::new);
        for value in values.into_iter().chain([name()]) {
            let told = if variable == "QFORMER_THREADS" { "--threads" } else { variable };
            let ended = inspect(&[(variable, value)], &[]);
            // clap does not tell which flag is not UTF-8.
            ended.misuses(&[if value == name() && told == "--threads" { "UTF-8" } else { told }]);
        }
        inspect(&[(variable, OsStr::new("2"))], &[]).succeeds();
    }
    let [many, list, empty] = ["100000000", "2,1", ""].map(OsStr::new);
    inspect(&[("RAYON_NUM_THREADS", many)], &["--threads", "2"]).succeeds();
    inspect(&[("RAYON_NUM_THREADS", OsStr::new("2")), ("OMP_NUM_THREADS", many)], &[]).succeeds();
    inspect(&[("RAYON_NUM_THREADS", empty), ("OMP_NUM_THREADS", list)], &[]).succeeds();
}
