//! Data sets that are not what they should be.

use crate::common::*;
use qformer::ImageProcessor;
use qformer::data::{Dataset, Source, VISION_OUTPUT};
use qformer::params::safetensors::{Dtype, NewTensor, write};
use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

#[test]
fn a_broken_line_is_named_by_its_number() {
    let workplace = Workplace::new();
    let good = r#"{"image": "a.png", "caption": "a"}"#;
    for (line, fragment) in [
        ("{", "bad JSON: EOF"),
        ("", "bad JSON"),
        (r#"{"image": "a.png"}"#, "missing field `caption`"),
        (
            r#"{"image": "a.png", "caption": 5}"#,
            "integer `5`, expected a caption that is a text or a list of texts",
        ),
        (r#"{"image": "a.png", "caption": "a"} {"image": "a.png", "caption": "a"}"#, "trailing characters"),
        ("{\"image\": \"a\u{1b}[31m\", \"caption\": \"a\"}", "bad JSON: control character"),
    ] {
        is_refused(
            &workplace.jsonl(&[good, good, line, good]),
            &["data.jsonl: line 3: ", fragment, "\"image\""],
        );
    }
    is_refused(&workplace.jsonl(&[good, r#"{"caption": "a"}"#]), &["line 2 names no \"image\""]);
    is_refused(&workplace.jsonl(&[good, r#"{"image": "", "caption": "a"}"#]), &["line 2 names no"]);
    let bytes = [good.as_bytes(), b"\n{\"image\": \"\xff\", \"caption\": \"a\"}"].concat();
    is_refused(&Source::Jsonl(workplace.write("bytes.jsonl", bytes)), &["bytes.jsonl: line 2"]);
}

#[test]
fn an_empty_data_set_is_refused() {
    let workplace = Workplace::new();
    is_refused(&workplace.jsonl(&[]), &["data.jsonl: holds no image"]);
    for json in ["[]", r#"{"images": []}"#] {
        let source = Source::of_images(&[workplace.write("a.json", json)], None, None).unwrap();
        is_refused(&source, &["a.json: holds no image"]);
    }
    let tar = workplace.write("a.tar", tar(&[]));
    is_refused(&Source::WebDataset(vec![tar]), &["a.tar: holds no image"]);
    is_refused(&Source::WebDataset(vec![]), &["no tar shard"]);
    let captions = workplace.write("captions.jsonl", "");
    let features = vec![workplace.features("f.safetensors", 0, 0)];
    is_refused(&Source::Features { features, captions }, &["captions.jsonl: holds no image"]);
}

#[test]
fn a_missing_file_is_named() {
    let workplace = Workplace::new();
    let nowhere = workplace.path("nowhere");
    is_refused(&Source::Jsonl(nowhere.clone()), &["cannot open", "nowhere"]);
    is_refused(&Source::Jsonl(workplace.path("")), &["is not a regular file"]);
    is_refused(&Source::WebDataset(vec![nowhere.clone()]), &["cannot open", "nowhere"]);
    let features = vec![workplace.features("f.safetensors", 1, 0)];
    is_refused(&Source::Features { features, captions: nowhere.clone() }, &["cannot open", "nowhere"]);
    let captions = workplace.write("captions.jsonl", r#"{"caption": "a"}"#);
    is_refused(&Source::Features { features: vec![nowhere], captions }, &["cannot open", "nowhere"]);
}

#[test]
fn images_are_asked_for_only_when_they_are_read() {
    let workplace = Workplace::new();
    let dataset = Dataset::open(&workplace.jsonl(&[r#"{"image": "../no/a.png", "caption": "a"}"#])).unwrap();
    let fault = dataset.picture(0).unwrap_err().to_string();
    assert!(fault.contains("cannot open") && fault.contains("a.png"), "{fault}");
}

#[test]
fn a_tar_that_ends_early_is_refused_wherever_it_ends() {
    let workplace = Workplace::new();
    let whole = tar(&[("0.png", &png(1)), ("0.txt", b"zero"), ("1.png", &png(2)), ("1.txt", b"one")]);
    let end = whole.len() - 1024;
    for length in (0..end).step_by(512).chain([1, 100, 700, end - 1, end + 100]) {
        let path = workplace.write("cut.tar", &whole[..length]);
        is_refused(&Source::WebDataset(vec![path]), &["cut.tar", if length == 0 { "truncated" } else { "" }]);
    }
    // One block of zeros is an end.
    let path = workplace.write("cut.tar", &whole[..end + 512]);
    assert_eq!(Dataset::open(&Source::WebDataset(vec![path])).unwrap().images(), 2);
    let text = workplace.write("text.tar", "not an archive, but long enough to be one".repeat(30));
    is_refused(&Source::WebDataset(vec![text]), &["text.tar: cannot be read as a tar archive"]);
    let mut huge = whole.clone();
    huge[124..136].copy_from_slice(b"77777777777\0");
    let sum: u32 = huge[..512]
        .iter()
        .enumerate()
        .map(|(i, &b)| if (148..156).contains(&i) { 32 } else { b.into() })
        .sum();
    huge[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    is_refused(&Source::WebDataset(vec![workplace.write("huge.tar", huge)]), &["huge.tar: is truncated"]);
}

#[test]
fn annotations_of_no_image_are_refused() {
    let workplace = Workplace::new();
    for (json, fragment) in [
        (
            r#"{"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]}"#,
            "annotation 0 is of image 2, which is the id of no image",
        ),
        (r#"{"images": [{"id": 1}]}"#, "image 0 has neither"),
        (
            r#"{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}]}"#,
            "image 1 has the id of an earlier one",
        ),
        (r#"{"images": 5}"#, "bad JSON"),
        ("{", "bad JSON"),
    ] {
        let source = Source::of_images(&[workplace.write("coco.json", json)], None, None).unwrap();
        is_refused(&source, &["coco.json", fragment]);
    }
}

#[test]
fn features_and_captions_have_to_be_of_one_number_and_shape() {
    let workplace = Workplace::new();
    let captions = workplace.write("captions.jsonl", "{\"caption\": \"a\"}\n{\"caption\": \"b\"}");
    let three = workplace.features("three.safetensors", 3, 0);
    let source = |features| Source::Features { features, captions: captions.clone() };
    is_refused(&source(vec![three.clone()]), &["captions.jsonl: has 2 lines, but the features have 3 rows"]);
    let other = workplace.path("other.safetensors");
    let save = |name: &str, shape: &[usize]| {
        let values = vec![0.0; shape.iter().product()];
        let tensor = NewTensor::from_slice(name, Dtype::F32, shape, &values);
        write(&other, &[("encoder".to_owned(), "b".to_owned())].into(), vec![tensor]).unwrap();
        other.clone()
    };
    let of_other = ["other.safetensors: has rows of [2, 5]", "three.safetensors of [2, 4]"];
    is_refused(&source(vec![three.clone(), save("vision_output", &[1, 2, 5])]), &of_other);
    is_refused(&source(vec![three, save("vision_output", &[1, 2, 4])]), &["another image encoder's output"]);
    is_refused(&source(vec![save("vision_output", &[2, 4])]), &["there is [2, 4]"]);
    is_refused(&source(vec![save("features", &[1, 2, 4])]), &["there is no such tensor"]);
}

#[test]
fn features_of_other_images_than_the_captions_are_refused() {
    let workplace = Workplace::new();
    let save = |file: &str, names: &str, encoder: Option<&str>| {
        let mut metadata = BTreeMap::from([("images".to_owned(), names.to_owned())]);
        metadata.extend(encoder.map(|encoder| ("encoder".to_owned(), encoder.to_owned())));
        let tensor = NewTensor::from_slice(VISION_OUTPUT, Dtype::F32, &[2, 1, 1], &[0.0; 2]);
        write(&workplace.path(file), &metadata, vec![tensor]).unwrap();
        workplace.path(file)
    };
    let lines = ["a", "b", "c", "d"].map(|name| format!("{{\"image\": \"{name}\", \"caption\": \"\"}}"));
    let captions = workplace.write("captions.jsonl", lines.join("\n"));
    let source = |features: [&PathBuf; 2]| {
        let features = features.map(PathBuf::clone).into();
        Source::Features { features, captions: captions.clone() }
    };
    let first = save("0.safetensors", r#"["a", "b"]"#, Some("e"));
    let second = save("1.safetensors", r#"["c", "d"]"#, Some("e"));
    assert_eq!(Dataset::open(&source([&first, &second])).unwrap().encoder(), Some("e"));
    is_refused(
        &source([&second, &first]),
        &["captions.jsonl: line 1 is of image \"a\"", "1.safetensors of \"c\""],
    );
    let other = save("2.safetensors", r#"["c", "x"]"#, Some("e"));
    is_refused(&source([&first, &other]), &["line 4 is of image \"d\"", "row 1 of", "of \"x\""]);
    // Names that are not those of encode may be other paths of the same images.
    let [saved, too] = [("3.safetensors", r#"["./a", "./b"]"#), ("4.safetensors", r#"["./c", "./d"]"#)]
        .map(|(file, names)| save(file, names, None));
    assert_eq!(Dataset::open(&source([&saved, &too])).unwrap().images(), 4);
}

#[test]
fn features_that_are_not_finite_are_refused_when_they_are_read() {
    let workplace = Workplace::new();
    let path = workplace.features("f.safetensors", 2, 0);
    let mut bytes = fs::read(&path).unwrap();
    let last = bytes.len() - 2;
    bytes[last..].copy_from_slice(&half::bf16::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let captions = workplace.write("captions.jsonl", "{\"caption\": \"a\"}\n{\"caption\": \"b\"}");
    let dataset = Dataset::open(&Source::Features { features: vec![path], captions }).unwrap();
    assert_eq!(dataset.features(&[0]).unwrap().values(), row(0));
    let fault = dataset.features(&[1]).unwrap_err().to_string();
    assert!(fault.contains("f.safetensors: row 1 has 1 value infinite or not a number"), "{fault}");
}

#[test]
fn images_that_are_not_there_or_of_another_kind_are_refused() {
    let workplace = Workplace::new();
    let path = workplace.features("f.safetensors", 2, 0);
    let captions = workplace.write("captions.jsonl", "{\"caption\": \"a\"}\n{\"caption\": \"b\"}");
    let features = Dataset::open(&Source::Features { features: vec![path], captions }).unwrap();
    workplace.picture("1.png", 1);
    let pictures = Dataset::open(&workplace.jsonl(&[r#"{"image": "1.png", "caption": "a"}"#])).unwrap();
    let shard = workplace.write("shard.tar", tar(&[("a.png", &png(1)), ("a.txt", b"a")]));
    let shards = Dataset::open(&Source::WebDataset(vec![shard])).unwrap();
    let processor = ImageProcessor::blip2(8);
    let not_there = "is not in the data set, which has";
    for (fault, told) in [
        (features.features(&[0, 2]).unwrap_err(), not_there),
        (features.picture(0).unwrap_err(), "f.safetensors row 0 is of features, not of a picture"),
        (features.pixels(&[1], &processor).unwrap_err(), "of features, not of a picture"),
        (pictures.features(&[0]).unwrap_err(), "is of pictures, not of features"),
        (pictures.picture(1).unwrap_err(), not_there),
        (pictures.pixels(&[0, usize::MAX], &processor).unwrap_err(), not_there),
        (shards.picture(1).unwrap_err(), not_there),
        (shards.pixel_values(1, &processor).unwrap_err(), not_there),
    ] {
        assert!(fault.to_string().contains(told), "{fault}");
    }
}
