//! `qformer embed`

use crate::common::*;
use qformer::params::safetensors::Checkpoint;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

#[test]
fn features_are_those_of_transformers() {
    let workplace = Workplace::new();
    workplace.embed().succeeds();
    for (name, golden) in [
        ("image_features", "query_features"),
        ("text_features", "text_features"),
        ("query_output", "query_output"),
    ] {
        let error = relative_error(&read(&workplace.output(), name), &expected(golden));
        assert!(error < TOLERANCE, "{name} is off by {error:e}");
    }
}

#[test]
fn names_of_images_and_texts_are_in_the_metadata() {
    let workplace = Workplace::new();
    workplace.embed().succeeds();
    let checkpoint = Checkpoint::open(&workplace.output()).unwrap();
    let stored = |key: &str| serde_json::from_str::<Vec<String>>(&checkpoint.metadata()[key]).unwrap();
    assert_eq!(stored("texts"), TEXTS);
    assert_eq!(stored("images"), images().map(|path| shown(&path)));
}

#[test]
fn a_saved_vision_output_stands_for_the_images() {
    let workplace = Workplace::new();
    let saved = workplace.path().join("vision.safetensors");
    let mut arguments = embed_all(&model(), &workplace.output());
    arguments.extend(["--save-vision-output".into(), shown(&saved)]);
    run(arguments).succeeds();
    let from_images = fs::read(workplace.output()).unwrap();
    for batch_size in ["1", "2", "100"] {
        let mut arguments: Vec<String> =
            ["embed", "--batch-size", batch_size, "--model"].map(str::to_owned).into();
        arguments.extend([shown(&model()), "--features".into(), shown(&saved), "--text".into()]);
        arguments.extend(TEXTS.map(str::to_owned));
        arguments.extend(["--output".into(), shown(&workplace.output())]);
        run(arguments).succeeds();
        assert_eq!(from_images, fs::read(workplace.output()).unwrap(), "batches of {batch_size}");
    }
}

#[test]
fn images_alone_and_texts_alone_are_embedded() {
    let folder = TempDir::new().unwrap();
    let output = folder.path().join("features.safetensors");
    let names = |arguments: &[&str]| {
        let shared = ["embed", "--model", &shown(&model()), "--output", &shown(&output)].map(str::to_owned);
        run(shared.iter().map(String::as_str).chain(arguments.iter().copied())).succeeds();
        Checkpoint::open(&output).unwrap().names().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(names(&["--text", "a cat"]), ["text_features"]);
    let folder = shown(&golden().join("images"));
    assert_eq!(names(&["--image-dir", &folder]), ["image_features", "query_output"]);
}

#[test]
fn texts_come_from_a_file_line_by_line() {
    let workplace = Workplace::new();
    let expected = workplace.embedded();
    let file = workplace.path().join("texts.txt");
    fs::write(&file, TEXTS.join("\r\n")).unwrap();
    let mut arguments = embed_all(&model(), &workplace.output());
    arguments.truncate(arguments.len() - TEXTS.len() - 1);
    arguments.extend(["--texts-file".into(), shown(&file)]);
    run(arguments).succeeds();
    assert_eq!(expected, fs::read(workplace.output()).unwrap());
}

#[test]
fn only_the_beginning_of_a_long_text_is_read_with_a_warning() {
    let folder = TempDir::new().unwrap();
    let features = |words: usize| {
        let output = folder.path().join(format!("{words}.safetensors"));
        let text = vec!["a"; words].join(" ");
        let run = run(["embed", "--model", &shown(&model()), "--output", &shown(&output), "--text", &text]);
        assert_eq!(run.code, Some(0), "{run:?}");
        (run.stderr, read(&output, "text_features"))
    };
    // 64 positions: [CLS], 62 words, [SEP].
    let (silence, whole) = features(62);
    let (warning, cut) = features(63);
    assert_eq!(silence, "");
    assert!(warning.starts_with("warning: text 0 is longer than the 64 tokens"), "{warning}");
    assert_eq!(whole, cut);
}

#[test]
fn weights_that_are_not_finite_are_told_by_name_and_number() {
    let mut workplace = Workplace::new();
    let tensor = workplace.tensors.get_mut("qformer.encoder.layer.1.output_query.dense.bias").unwrap();
    tensor.values_mut()[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
    workplace.save(qformer::params::safetensors::Dtype::F32);
    let run = workplace.embed();
    assert_eq!(run.code, Some(0));
    assert_eq!(run.stderr.lines().count(), 1, "{run:?}");
    run.tells(&["warning: tensor \"qformer.encoder.layer.1.output_query.dense.bias\" has 3 values"]);
}

#[test]
fn the_number_of_threads_does_not_change_the_features() {
    let workplace = Workplace::new();
    let expected = workplace.embedded();
    for threads in ["1", "3"] {
        let mut arguments = embed_all(&model(), &workplace.output());
        arguments.extend(["--threads".into(), threads.into()]);
        run(arguments).succeeds();
        assert_eq!(expected, fs::read(workplace.output()).unwrap(), "{threads} threads");
    }
}

#[test]
fn a_reader_that_stops_early_is_no_failure() {
    let mut child = command()
        .args(["inspect", &shown(&model())])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    ended(child.wait_with_output().unwrap()).succeeds();
}

/// Whether `embed` of these `inputs` ends well with so much memory. It is limited, as its peak cannot be measured from
/// outside without missing it on a busy machine.
#[cfg(target_os = "linux")]
fn suffices(mebibytes: usize, output: &Path, inputs: &[&str]) -> bool {
    let embed = command();
    let limited = Command::new("sh")
        .args(["-c", "ulimit -c 0; ulimit -d \"$0\"; exec \"$@\"", &(1024 * mebibytes).to_string()])
        .arg(embed.get_program())
        .args(["embed", "--threads", "1", "--model", &shown(&model()), "--output", &shown(output)])
        .args(inputs)
        .env("QFORMER_DEVICE", "cpu")
        .output()
        .unwrap();
    limited.status.success()
}

/// The fewest mebibytes that are enough, by halving.
#[cfg(target_os = "linux")]
fn fewest_mebibytes(suffices: impl Fn(usize) -> bool) -> usize {
    let (mut little, mut enough) = (0, 256);
    assert!(suffices(enough));
    while enough - little > 1 {
        let middle = (little + enough) / 2;
        *if suffices(middle) { &mut enough } else { &mut little } = middle;
    }
    enough
}

#[cfg(target_os = "linux")]
#[test]
fn many_texts_take_little_more_memory_than_their_file() {
    let folder = TempDir::new().unwrap();
    // Few are more than are encoded at a time.
    let [few, many] = [5_000, 100_000].map(|count| {
        let path = folder.path().join(format!("{count}.txt"));
        fs::write(&path, "a\n".repeat(count)).unwrap();
        shown(&path)
    });
    let output = folder.path().join("output.safetensors");
    let enough = fewest_mebibytes(|mebibytes| suffices(mebibytes, &output, &["--texts-file", &few]));
    // Of each its length, three tokens, where they end, and its place in the metadata: 30 bytes, where lists of lists
    // would take 150.
    let more = enough + 6;
    assert!(suffices(more, &output, &["--texts-file", &many]), "{enough} MiB suffice for 5,000 texts");
    assert_eq!(read(&output, "text_features").shape()[0], 100_000);
}

#[cfg(target_os = "linux")]
#[test]
fn a_thousand_images_take_no_more_memory_than_sixteen() {
    let folder = TempDir::new().unwrap();
    let image = folder.path().join("image.png");
    image::RgbImage::from_fn(56, 56, |x, y| image::Rgb([x as u8, y as u8, 0])).save(&image).unwrap();
    let image = shown(&image);
    let suffices = |mebibytes: usize, images: usize| {
        let output = folder.path().join(format!("{images}.safetensors"));
        let inputs = [&["--images"][..], &vec![&*image; images]].concat();
        let is_enough = suffices(mebibytes, &output, &inputs);
        if is_enough {
            assert_eq!(read(&output, "query_output").shape()[0], images);
        }
        is_enough
    };
    let enough = fewest_mebibytes(|mebibytes| suffices(mebibytes, 16));
    // The query outputs and features of 1024 images would take 5 MiB, were they kept.
    assert!(suffices(enough + 4, 1024), "{enough} MiB suffice for 16 images, but not 4 more for 1024");
}
