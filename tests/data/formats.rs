//! What each format means.

use crate::common::*;
use qformer::ImageProcessor;
use qformer::data::{Dataset, Kind, Source};
use qformer::models::vision::image::Rgb;

#[test]
fn a_line_has_an_image_with_one_caption_or_several() {
    let workplace = Workplace::new();
    let dataset = Dataset::open(&workplace.jsonl(&[
        r#"{"image": "a.png", "caption": "A cat."}"#,
        r#"{"image": "sub/b.png", "caption": ["one", "two"], "more": {"is": "ignored"}}"#,
        r#"{"caption": "again", "image": "a.png"}"#,
    ]))
    .unwrap();
    assert_eq!((dataset.images(), dataset.kind()), (2, Kind::Pictures));
    is(&dataset, &[("a.png", "A cat."), ("sub/b.png", "one"), ("sub/b.png", "two"), ("a.png", "again")]);
}

#[test]
fn images_are_relative_to_the_list() {
    let workplace = Workplace::new();
    let picture = workplace.picture("sub/a.png", 1);
    let absolute = format!("{{\"image\": {:?}, \"caption\": \"b\"}}", shown(&picture));
    let dataset =
        Dataset::open(&workplace.jsonl(&[r#"{"image": "sub/a.png", "caption": "a"}"#, &absolute])).unwrap();
    let expected = Rgb::read(&picture).unwrap();
    assert_eq!((expected.width, expected.height), (21, 16));
    assert_eq!(dataset.picture(0).unwrap(), expected);
    assert_eq!(dataset.picture(1).unwrap(), expected);

    let processor = ImageProcessor::blip2(8);
    let pixels = dataset.pixels(&[1, 0], &processor).unwrap();
    let one = processor.read(&picture).unwrap();
    assert_eq!((pixels.shape(), pixels.values()), (&[2, 3, 8, 8][..], &[&one[..], &one].concat()[..]));
}

const LAVIS: &str = r#"[{"image": "train/a.png", "caption": "a", "image_id": "coco_1"},
    {"image": "train/b.png", "caption": ["b", "c"]}, {"image": "train/a.png", "caption": "d"}]"#;

#[test]
fn the_list_of_lavis_is_read_by_either_ending() {
    let workplace = Workplace::new();
    let expected = [("train/a.png", "a"), ("train/b.png", "b"), ("train/b.png", "c"), ("train/a.png", "d")];
    let jsonl = Dataset::open(&Source::Jsonl(workplace.write("lavis.jsonl", LAVIS))).unwrap();
    is(&jsonl, &expected);
    let picture = workplace.picture("images/train/a.png", 3);
    let json = workplace.write("lavis.json", LAVIS);
    let images = workplace.path("images");
    let dataset = Dataset::open(&Source::of_images(&[json], Some(&images), None).unwrap()).unwrap();
    is(&dataset, &expected);
    assert_eq!(dataset.picture(0).unwrap(), Rgb::read(&picture).unwrap());
    assert_eq!(jsonl.fingerprint().unwrap(), dataset.fingerprint().unwrap());
}

#[test]
fn annotations_of_coco_belong_to_images_by_their_ids() {
    let workplace = Workplace::new();
    let json = r#"{"info": {"year": 2014}, "licenses": [],
        "images": [{"id": 9, "file_name": "nine.jpg", "height": 3}, {"id": 4, "file_name": "four.jpg"},
                   {"id": 5, "file_name": "five.jpg"}],
        "annotations": [{"id": 1, "image_id": 4, "caption": "four 1"}, {"id": 2, "image_id": 9, "caption": "nine"},
                        {"id": 3, "image_id": 4, "caption": "four 2"}]}"#;
    let source = Source::of_images(&[workplace.write("captions.json", json)], None, None).unwrap();
    let dataset = Dataset::open(&source).unwrap();
    assert_eq!(dataset.images(), 3);
    is(&dataset, &[("nine.jpg", "nine"), ("four.jpg", "four 1"), ("four.jpg", "four 2")]);
}

#[test]
fn a_split_of_karpathy_is_chosen_and_restval_is_trained_on() {
    let workplace = Workplace::new();
    let image = |name: &str, split: &str| {
        format!(
            r#"{{"filepath": "val2014", "filename": "{name}", "split": "{split}", "cocoid": 1, "sentids": [1],
                "sentences": [{{"raw": "{name} 1", "tokens": ["x"]}}, {{"raw": "{name} 2"}}]}}"#
        )
    };
    let images = [image("a", "test"), image("b", "restval"), image("c", "train")].join(",");
    let path =
        workplace.write("dataset_coco.json", format!(r#"{{"images": [{images}], "dataset": "coco"}}"#));
    let open = |split| {
        Dataset::open(&Source::of_images(std::slice::from_ref(&path), None, Some(split)).unwrap()).unwrap()
    };
    is(&open("test"), &[("val2014/a", "a 1"), ("val2014/a", "a 2")]);
    is(
        &open("train"),
        &[("val2014/b", "b 1"), ("val2014/b", "b 2"), ("val2014/c", "c 1"), ("val2014/c", "c 2")],
    );
    let source = |split| Source::of_images(std::slice::from_ref(&path), None, split).unwrap();
    is_refused(&source(None), &["dataset_coco.json", "restval, test, train", "`split`"]);
    is_refused(&source(Some("val")), &["no image of split val"]);
}

#[test]
fn entries_of_a_tar_belong_together_by_their_names_up_to_the_first_dot() {
    let workplace = Workplace::new();
    let first = workplace.write(
        "shards/00000.tar",
        tar(&[
            ("000.PNG", &png(1)),
            ("000.txt", b"text"),
            ("000.json", br#"{"caption": "not this", "url": "u"}"#),
            ("v1.5/001.json", br#"{"caption": "from json", "key": 1}"#),
            ("v1.5/001.png", &png(2)),
            ("002.seg.png", &png(3)),
            ("002.jpeg", &png(4)),
            ("004.json", br#"{"caption": ["first of two", "second"]}"#),
            ("004.png", &png(6)),
            ("__index__", b"ignored"),
        ]),
    );
    let second = workplace.write(
        "shards/00001.tar",
        tar(&[
            ("000.png", &png(5)),
            ("000.txt", b"another"),
            ("notes.md", b"ignored"),
            ("003.txt", b"alone"),
        ]),
    );
    let dataset = Dataset::open(&Source::WebDataset(vec![first, second])).unwrap();
    let expected = [
        ("00000.tar/000.PNG", "text"),
        ("00000.tar/v1.5/001.png", "from json"),
        ("00000.tar/002.jpeg", ""),
        ("00000.tar/004.png", "first of two"),
        ("00000.tar/004.png", "second"),
        ("00001.tar/000.png", "another"),
        ("00001.tar/003", "alone"),
    ];
    is(&dataset, &expected);
    for (image, seed) in [(0, 1), (1, 2), (2, 4), (3, 6), (4, 5)] {
        let expected = Rgb::read(&workplace.picture("single.png", seed)).unwrap();
        assert_eq!(dataset.picture(image).unwrap(), expected);
    }
    let fault = dataset.picture(5).unwrap_err().to_string();
    assert!(fault.contains("00001.tar/003: has no .jpg, .jpeg, .png or .webp"), "{fault}");
    let of_folder = Source::of_images(&[workplace.path("shards")], None, None).unwrap();
    assert_eq!(Dataset::open(&of_folder).unwrap().fingerprint().unwrap(), dataset.fingerprint().unwrap());
}

#[test]
fn features_of_several_files_are_one_data_set() {
    let workplace = Workplace::new();
    let files = [(2, 0), (0, 2), (3, 2)]
        .map(|(rows, first)| workplace.features(&format!("{rows}-{first}.safetensors"), rows, first));
    let lines = [
        r#"{"image": "a", "caption": ["a 1", "a 2"]}"#,
        r#"{"image": "a", "caption": "same name"}"#,
        r#"{"image": "c", "caption": []}"#,
        r#"{"caption": "no name"}"#,
        r#"{"image": "e", "caption": "e"}"#,
    ];
    let captions = workplace.write("captions.jsonl", lines.join("\n") + "\n");
    let dataset = Dataset::open(&Source::Features { features: files.into(), captions }).unwrap();
    assert_eq!((dataset.images(), dataset.kind()), (5, Kind::Features { tokens: 2, width: 4 }));
    is(
        &dataset,
        &[("a", "a 1"), ("a", "a 2"), ("a", "same name"), ("3-2.safetensors row 1", "no name"), ("e", "e")],
    );
    assert_eq!(dataset.captions().iter().map(|c| c.image).collect::<Vec<_>>(), [0, 0, 1, 3, 4]);
    let read = dataset.features(&[4, 0, 1, 2]).unwrap();
    assert_eq!(
        (read.shape(), read.values()),
        (&[4, 2, 4][..], &[row(4), row(0), row(1), row(2)].concat()[..])
    );
}

#[test]
fn a_fingerprint_tells_names_captions_and_their_order_apart() {
    let workplace = Workplace::new();
    let fingerprint = |lines: &[&str]| Dataset::open(&workplace.jsonl(lines)).unwrap().fingerprint().unwrap();
    let (a, b) = (r#"{"image": "a", "caption": "x"}"#, r#"{"image": "b", "caption": "x"}"#);
    let base = fingerprint(&[a, b]);
    assert_eq!(base, fingerprint(&[a, b]));
    for other in [
        &[b, a][..],
        &[a],
        &[a, r#"{"image": "b", "caption": "y"}"#],
        &[a, b, a],
        &[a, r#"{"image": "bx", "caption": ""}"#],
    ] {
        assert_ne!(base, fingerprint(other), "{other:?}");
    }
}

#[test]
fn a_fingerprint_tells_features_and_their_order_apart() {
    let workplace = Workplace::new();
    let lines = ["a", "b", "c", "d"].map(|name| format!("{{\"image\": {name:?}, \"caption\": \"x\"}}\n"));
    let captions = workplace.write("captions.jsonl", lines.concat());
    let fingerprint = |rows: &[(usize, usize)]| {
        let file = |&(rows, first)| workplace.features(&format!("{rows}-{first}.safetensors"), rows, first);
        let features = rows.iter().map(file).collect();
        let dataset = Dataset::open(&Source::Features { features, captions: captions.clone() }).unwrap();
        dataset.fingerprint().unwrap()
    };
    let base = fingerprint(&[(4, 0)]);
    // How they are cut changes nothing.
    assert_eq!(base, fingerprint(&[(1, 0), (3, 1)]));
    for other in [&[(4, 1)][..], &[(3, 1), (1, 0)], &[(3, 0), (1, 4)]] {
        assert_ne!(base, fingerprint(other), "{other:?}");
    }
}

#[test]
fn a_format_is_told_by_the_ending() {
    let workplace = Workplace::new();
    let of = |names: &[&str]| {
        Source::of_images(&names.iter().map(Into::into).collect::<Vec<_>>(), None, None)
            .map_err(|error| error.to_string())
    };
    assert_eq!(of(&["x/a.jsonl"]), Ok(Source::Jsonl("x/a.jsonl".into())));
    assert_eq!(of(&["a.tar", "b.TAR"]), Ok(Source::WebDataset(vec!["a.tar".into(), "b.TAR".into()])));
    let coco = Source::Coco { annotations: "x/a.json".into(), images: "x".into(), split: None };
    assert_eq!(of(&["x/a.json"]), Ok(coco));
    for unknown in [&["a.csv"][..], &["a.jsonl", "b.jsonl"], &["a.tar", "b.json"]] {
        assert!(of(unknown).unwrap_err().contains("is no data set by its name"));
    }
    std::fs::create_dir(workplace.path("empty")).unwrap();
    let empty = Source::of_images(&[workplace.path("empty")], None, None).unwrap_err().to_string();
    assert!(empty.contains("holds no .tar file"), "{empty}");
    let root = Source::of_images(&["a.tar".into()], Some("x".as_ref()), None).unwrap_err().to_string();
    assert!(root.contains("a folder of images goes with a .json data set"), "{root}");
}
