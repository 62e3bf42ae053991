//! `qformer encode`

use crate::common::*;
use half::bf16;
use image::{Rgb, RgbImage};
use qformer::data::{Dataset, Source};
use qformer::params::safetensors::{Checkpoint, Dtype};
use qformer::tensor::HostTensor;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tempfile::TempDir;

/// A tiny model, and images with a caption each.
struct Encoding(TempDir);

impl Encoding {
    fn new(images: usize) -> Self {
        let encoding = Self(TempDir::new().unwrap());
        run(["init", "--preset", "tiny", "--output", &shown(&encoding.path("model"))]).succeeds();
        let mut lines = String::new();
        for image in 0..images as u32 {
            let pixel =
                |x: u32, y: u32| Rgb([x * 5 + image, y * 7 + image * 3, x ^ y].map(|value| value as u8));
            RgbImage::from_fn(40, 30, pixel).save(encoding.path(&format!("{image}.png"))).unwrap();
            lines +=
                &format!("{{\"image\": \"{image}.png\", \"caption\": [\"A cat!\", \"number {image}\"]}}\n");
        }
        fs::write(encoding.path("data.jsonl"), lines).unwrap();
        encoding
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn arguments(&self, output: &str, more: &[&str]) -> Vec<String> {
        let (model, data) = (shown(&self.path("model")), shown(&self.path("data.jsonl")));
        let output = shown(&self.path(output));
        let fixed = ["encode", "--model", &model, "--data", &data, "--output", &output];
        fixed.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    }

    fn run(&self, output: &str, more: &[&str]) -> Run {
        run(self.arguments(output, more))
    }

    /// The files in the folder `name` with their bytes.
    fn files(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let entries = self.path(name).read_dir().unwrap().map(Result::unwrap);
        let file =
            |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        entries.map(file).filter(|(name, _)| !name.starts_with('.')).collect()
    }

    /// The image encoder's output of these images, as embed saves it.
    fn vision_output(&self, images: &[usize]) -> HostTensor {
        let saved = self.path("saved.safetensors");
        let mut arguments =
            ["embed", "--model", &shown(&self.path("model")), "--save-vision-output", &shown(&saved)]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(["--output".into(), shown(&self.path("embedded.safetensors")), "--images".into()]);
        arguments.extend(images.iter().map(|image| shown(&self.path(&format!("{image}.png")))));
        run(arguments).succeeds();
        read(&saved, "vision_output")
    }
}

fn shard(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("features-{number:05}.safetensors"))
}

#[test]
fn shards_hold_what_the_encoder_gives_in_bf16() {
    let encoding = Encoding::new(7);
    assert_eq!(encoding.run("features", &["--shard-size", "3", "--batch-size", "2"]).succeeds(), "");
    let folder = encoding.path("features");
    assert_eq!(encoding.files("features").len(), 4);
    for (number, images) in [&[0, 1, 2][..], &[3, 4, 5], &[6]].into_iter().enumerate() {
        let mut expected = encoding.vision_output(images);
        expected.values_mut().iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
        assert_eq!(read(&shard(&folder, number), "vision_output"), expected, "shard {number}");
        let checkpoint = Checkpoint::open(&shard(&folder, number)).unwrap();
        assert_eq!(checkpoint.get("vision_output").unwrap().dtype, Dtype::BF16);
        assert!(checkpoint.metadata()["encoder"].starts_with("crc32:"), "{:?}", checkpoint.metadata());
    }
    let captions = fs::read_to_string(folder.join("captions.jsonl")).unwrap();
    let line = |image: usize| serde_json::json!({ "image": format!("{image}.png"), "caption": ["a cat", format!("number {image}")] });
    let features = [0, 1, 2].map(|number| shard(&folder, number)).into();
    let source = Source::Features { features, captions: folder.join("captions.jsonl") };
    let dataset = Dataset::open(&source).unwrap();
    assert_eq!((dataset.images(), dataset.captions().len(), dataset.name(6)), (7, 14, "6.png".into()));
    assert_eq!(captions, (0..7).map(|image| format!("{}\n", line(image))).collect::<String>());
}

#[test]
fn a_run_killed_and_started_again_leaves_what_one_run_leaves() {
    let encoding = Encoding::new(60);
    let cut = ["--shard-size", "2", "--batch-size", "1"];
    encoding.run("whole", &cut).succeeds();
    let whole = encoding.files("whole");
    assert_eq!(whole.len(), 31);

    let folder = encoding.path("killed");
    let mut attempts = 0;
    loop {
        let mut command = command();
        let mut child =
            command.args(encoding.arguments("killed", &cut)).stderr(Stdio::null()).spawn().unwrap();
        while !shard(&folder, 0).exists() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_micros(200));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if !folder.join("captions.jsonl").exists() {
            break;
        }
        // On a busy machine the run may be over before its first shard is seen.
        fs::remove_dir_all(&folder).unwrap();
        attempts += 1;
        assert!(attempts < 20, "it was never killed before its end");
    }
    let written = |path: PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    let first = written(shard(&folder, 0));
    encoding.run("killed", &cut).succeeds();
    assert!(encoding.files("killed") == whole);
    assert_eq!(written(shard(&folder, 0)), first, "the first shard was written again");

    // A shard that is missing among others is made again; and where none is, nothing changes.
    fs::remove_file(shard(&folder, 7)).unwrap();
    for _ in 0..2 {
        encoding.run("killed", &cut).succeeds();
        assert!(encoding.files("killed") == whole);
    }
    assert_eq!(written(shard(&folder, 0)), first);
}

#[test]
fn another_encoder_or_data_set_does_not_continue() {
    let encoding = Encoding::new(4);
    encoding.run("features", &["--shard-size", "2"]).succeeds();
    let before = encoding.files("features");
    encoding.run("features", &["--shard-size", "3"]).fails(&[
        "features-0000",
        "is of another dataset",
        "give another --output",
    ]);
    run(["init", "--preset", "tiny", "--seed", "7", "--output", &shown(&encoding.path("model"))]).succeeds();
    encoding.run("features", &["--shard-size", "2"]).fails(&["is of another encoder (crc32:"]);
    run(["init", "--preset", "tiny", "--output", &shown(&encoding.path("model"))]).succeeds();
    let data = fs::read_to_string(encoding.path("data.jsonl")).unwrap();
    fs::write(encoding.path("data.jsonl"), data.replace("number 3", "number three")).unwrap();
    encoding.run("features", &["--shard-size", "2"]).fails(&["is of another dataset"]);
    assert!(encoding.files("features") == before);
    fs::write(encoding.path("data.jsonl"), data).unwrap();
    encoding.run("features", &["--shard-size", "2"]).succeeds();
}

#[test]
fn unreadable_images_are_named_and_have_neither_row_nor_line() {
    let encoding = Encoding::new(7);
    for (image, bytes) in [(1, &b"no image"[..]), (2, b""), (3, b"\x89PNG\r\n\x1a\n")] {
        fs::write(encoding.path(&format!("{image}.png")), bytes).unwrap();
    }
    fs::remove_file(encoding.path("5.png")).unwrap();
    // The second shard is left with no row at all.
    let cut = ["--shard-size", "2", "--batch-size", "2"];
    let output = encoding.run("features", &cut);
    assert_eq!((output.code, output.stdout.as_str()), (Some(0), ""), "{output:?}");
    output.tells(&[
        "1.png: is neither JPEG, PNG nor WebP",
        "2.png: is empty",
        "3.png: cannot be decoded",
        "5.png",
    ]);
    output.tells(&["warning: 4 of 7 images cannot be read; left out"]);
    let folder = encoding.path("features");
    let rows = |number| read(&shard(&folder, number), "vision_output").shape()[0];
    assert_eq!([0, 1, 2, 3].map(rows), [1, 0, 1, 1]);
    let captions = fs::read_to_string(folder.join("captions.jsonl")).unwrap();
    assert_eq!(captions.lines().map(|line| line.matches(".png").count()).collect::<Vec<_>>(), [1, 1, 1]);
    let mut expected = encoding.vision_output(&[4]);
    expected.values_mut().iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
    assert_eq!(read(&shard(&folder, 2), "vision_output"), expected);

    // What an earlier run has left out is told again, and counts.
    let before = encoding.files("features");
    fs::remove_file(shard(&folder, 3)).unwrap();
    let again = encoding.run("features", &cut);
    assert_eq!((again.code, &again.stderr), (Some(0), &output.stderr));
    assert!(encoding.files("features") == before);
    let mut strict = cut.to_vec();
    strict.extend(["--max-bad-samples", "3"]);
    encoding.run("strict", &strict).fails(&[
        "4 images cannot be read; --max-bad-samples allows 3",
        "1.png",
        "2.png",
    ]);
    assert!(!encoding.path("strict/captions.jsonl").exists());
}

#[test]
fn score_reads_a_shard() {
    let encoding = Encoding::new(2);
    encoding.run("features", &[]).succeeds();
    let features = shown(&shard(&encoding.path("features"), 0));
    let model = shown(&encoding.path("model"));
    let scores =
        run(["score", "--model", &model, "--features", &features, "--text", "a cat", "--json"]).succeeds();
    let scores: serde_json::Value = serde_json::from_str(&scores).unwrap();
    assert_eq!(scores["images"], serde_json::json!(["0.png", "1.png"]));
    assert_eq!(numbers(&scores["itc"]).len(), 2);
}

#[test]
fn a_data_set_that_is_not_there_is_named() {
    let encoding = Encoding::new(1);
    let (model, output) = (shown(&encoding.path("model")), shown(&encoding.path("features")));
    let shared = ["encode", "--model", &model, "--output", &output];
    run(shared.iter().chain(&["--data", "no.jsonl"])).fails(&["cannot open no.jsonl"]);
    run(shared.iter().chain(&["--data", "a.csv"])).fails(&["a.csv: is no data set by its name"]);
    run(shared).misuses(&["no data set is given; give --data"]);
    run(shared.iter().chain(&["--data", "a.jsonl", "--image-root", "x"]))
        .misuses(&["a folder of images goes with"]);
    assert!(!encoding.path("features").exists());
}
