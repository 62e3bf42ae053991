//! What a run keeps of its command line: paths, and the number of threads.

use crate::common::*;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A name that is no text.
fn name() -> &'static OsStr {
    OsStr::from_bytes(b"b\xff\xfe")
}

#[test]
fn a_run_may_be_in_a_folder_whose_name_is_not_utf8() {
    let place = Workplace::new();
    let folder = place.path("").join(name());
    let mut begin = place.train("replaced", 2, &[]);
    let mut whole = command();
    let output = place.path("replaced");
    let path = |argument| if argument == output.as_os_str() { folder.as_os_str() } else { argument };
    whole.args(begin.get_args().map(path));
    run(&mut whole).with(0, &["step 2/2", "done; the model is"]);
    let config = fs::read_to_string(folder.join("config.toml")).unwrap();
    assert!(config.contains("b\u{fffd}\u{fffd}"), "{config}");
    assert!(lines(&folder.join("metrics.jsonl")).iter().any(|line| line["event"] == "checkpoint"));
    let mut resume = command();
    resume.args(["train", "stage1", "--resume", "--output"]).arg(&folder);
    run(&mut resume).with(0, &["continuing from"]);
    // The same run by a name that is text computes the same.
    run(&mut begin).with(0, &[]);
    let weights = Path::new("checkpoints/step-00000002/model.safetensors");
    assert!(fs::read(folder.join(weights)).unwrap() == fs::read(output.join(weights)).unwrap());
}

#[test]
fn a_path_that_the_configuration_cannot_keep_is_refused_by_its_flag() {
    let place = Workplace::new();
    let (features, captions) = (place.path("features.safetensors"), place.path("captions.jsonl"));
    let train = |flags: &[(&str, &OsStr)]| {
        let mut command = command();
        command.args(["train", "stage1", "--steps", "2", "--batch-size", "4", "--output"]);
        command.arg(place.path("run"));
        command.args(flags.iter().flat_map(|&(flag, value)| [OsStr::new(flag), value]));
        command
    };
    let of_features = [("--features", features.as_os_str()), ("--captions", captions.as_os_str())];
    let tiny = ("--preset", OsStr::new("tiny"));
    let cases: [&[(&str, &OsStr)]; 7] = [
        &[("--model", name()), of_features[0], of_features[1]],
        &[("--bert", name()), tiny, of_features[0], of_features[1]],
        &[("--vision-model", name()), tiny, of_features[0], of_features[1]],
        &[("--features", name()), tiny, of_features[1]],
        &[("--captions", name()), tiny, of_features[0]],
        &[("--data", name()), tiny],
        &[("--image-root", name()), tiny, ("--data", captions.as_os_str())],
    ];
    for flags in cases {
        run(&mut train(flags)).with(2, &[flags[0].0, "is not UTF-8"]);
    }
    // So is one that is text, in a folder whose name is not.
    let folder = place.path("").join(name());
    fs::create_dir(&folder).unwrap();
    fs::copy(&features, folder.join("features.safetensors")).unwrap();
    let relative = ("--features", OsStr::new("features.safetensors"));
    run(train(&[relative, of_features[1], tiny]).current_dir(&folder))
        .with(2, &["--features", "is not UTF-8"]);
    assert!(!place.path("run").exists());
}

#[test]
fn a_variable_tells_the_number_of_threads() {
    let place = Workplace::new();
    for (variable, value, threads) in [("RAYON_NUM_THREADS", "3", 3), ("OMP_NUM_THREADS", "2,4", 2)] {
        let mut command = place.train(variable, 1, &[]);
        command.env_remove("RAYON_NUM_THREADS").env_remove("OMP_NUM_THREADS").env(variable, value);
        run(&mut command).with(0, &[]);
        let config = fs::read_to_string(place.path(variable).join("config.toml")).unwrap();
        assert!(config.contains(&format!("threads = {threads}\n")), "{config}");
    }
}
