//! Files whose numbers are small and whose lists are long: memory grows no faster than four times the file.

use crate::harness::{Folder, Target, execute};
use crate::memory::alone;
use crate::pickles;
use crate::targets::ALL;

/// What is read of `input` has to be within the limits; `name` is the target's. No other test may run, nor make
/// its input.
#[track_caller]
fn is_borne(name: &str, input: &[u8]) {
    let target: &Target = ALL.iter().find(|target| target.name == name).unwrap();
    assert_eq!(execute(target, &Folder::new(), input), Ok(()));
}

/// `item`, `count` times with commas, between `before` and `after`.
fn list(before: &str, item: impl Fn(usize) -> String, count: usize, after: &str) -> Vec<u8> {
    let mut text = before.to_owned();
    for index in 0..count {
        if index > 0 {
            text.push(',');
        }
        text.push_str(&item(index));
    }
    text.push_str(after);
    text.into_bytes()
}

#[test]
fn a_shape_of_half_a_million_extents_is_not_copied_for_every_tensor() {
    let _alone = alone();
    let shape = [b"(".to_vec(), b"h\x02".repeat(500_000), b"tq\x03".to_vec()].concat();
    let tensors = b"h\x00(h\x01K\x00h\x03h\x03h\x02h\x02tR".repeat(100);
    is_borne("pickle", &[pickles::beginning(), shape, tensors, b".".to_vec()].concat());
}

#[test]
fn storages_and_tensors_from_one_tuple_take_no_more_than_others() {
    let _alone = alone();
    is_borne("pickle", &[pickles::beginning(), b"h\x05Q".repeat(900_000), b".".to_vec()].concat());
    let arguments = b"(h\x01K\x00(h\x02h\x02h\x02h\x02h\x02h\x02h\x02h\x02tq\x03h\x03h\x02h\x02tq\x04";
    let tensors = b"h\x00h\x04R".repeat(900_000);
    is_borne("pickle", &[pickles::beginning(), arguments.to_vec(), tensors, b".".to_vec()].concat());
}

#[test]
fn pickles_of_a_million_small_values_stay_small() {
    let _alone = alone();
    for part in [b"}NNs" as &[u8], b"]Na", b"N\x85", b"N\x94", b"]", b"(", b"K\x00\x94", b"N"] {
        is_borne("pickle", &[b"\x80\x02", &*part.repeat(1 << 20), b"."].concat());
    }
}

#[test]
fn a_header_of_many_metadata_or_tensors_stays_small() {
    let _alone = alone();
    let with_length = |header: Vec<u8>| [&(header.len() as u64).to_le_bytes(), &*header].concat();
    let metadata = list(r#"{"__metadata__":{"#, |i| format!("\"{i:x}\":\"\""), 3_000_000, "}}");
    is_borne("safetensors", &with_length(metadata));
    let tensor = |i| format!(r#""{i:x}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#);
    is_borne("safetensors", &with_length(list("{", tensor, 1 << 16, "}")));
}

#[test]
fn a_vocabulary_stays_small() {
    let _alone = alone();
    let special = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]";
    for count in [1_000_000, (1 << 17) - 5] {
        is_borne(
            "vocabulary",
            (0..count).fold(special.to_owned(), |text, i| text + &format!("\n{i:x}")).as_bytes(),
        );
    }
    let json = std::fs::read_to_string("tests/golden/retrieval/model/tokenizer.json").unwrap();
    let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let vocabulary = json["model"]["vocab"].as_object_mut().unwrap();
    for id in vocabulary.len()..1 << 17 {
        vocabulary.insert(format!("{id:x}+"), id.into());
    }
    is_borne("tokenizer", json.to_string().as_bytes());
    is_borne("tokenizer", &list("{", |i| format!("\"{i:x}\":0"), 1_000_000, "}"));
    is_borne("tokenizer", &list("[", |_| "0".into(), 4_000_000, "]"));
}

#[test]
fn a_text_is_tokenized_no_further_than_its_tokens_are_asked_for() {
    let _alone = alone();
    for part in [
        "[",
        "]",
        " ",
        "a",
        "a ",
        "a]",
        "\u{3002}",
        "\u{732b}",
        "\u{0}",
        "_",
        "[SEP]",
        "\u{301}",
        "1234567890 ",
    ] {
        is_borne("text", part.repeat((1 << 20) / part.len()).as_bytes());
    }
}

#[test]
fn lists_of_captions_take_no_more_than_their_files() {
    let _alone = alone();
    let empty = |_| "\"\"".into();
    is_borne("coco", &list(r#"[{"image":"a.png","caption":["#, empty, 5_000_000, "]}]"));
    is_borne("jsonl", &list(r#"{"image":"a.png","caption":["#, |_| "0".into(), 8_000_000, "]}"));
    is_borne("jsonl", &list(r#"{"image":"a.png","x":["#, |_| "0".into(), 8_000_000, r#"],"caption":""}"#));
    is_borne("jsonl", &list(r#"{"image":"a.png","caption":["#, empty, 5_000_000, "]}"));
    is_borne("jsonl", &list("[", |i| format!(r#"{{"image":"{i:x}","caption":""}}"#), 1_000_000, "]"));
    is_borne("coco", &list(r#"{"images":["#, |_| r#"{"filename":""}"#.into(), 1_000_000, "]}"));
    is_borne("coco", &list(r#"{"images":["#, |i| format!(r#"{{"filename":"a","id":{i}}}"#), 1_000_000, "]}"));
    let sentence = |_| r#"{"raw":""}"#.into();
    is_borne("coco", &list(r#"{"images":[{"filename":"a","sentences":["#, sentence, 2_000_000, "]}]}"));
    let annotation = |_| r#"{"image_id":1,"caption":""}"#.into();
    let images = r#"{"images":[{"filename":"a","id":1}],"annotations":["#;
    is_borne("coco", &list(images, annotation, 1_000_000, "]}"));
    is_borne("coco", "[".repeat(1 << 20).as_bytes());
    is_borne("jsonl", list(r#"{"image":"#, |_| "[".into(), 1 << 20, "").as_slice());
}

#[test]
fn descriptions_of_samples_take_no_more_than_their_shard() {
    let _alone = alone();
    let mut builder = tar::Builder::new(Vec::new());
    for (sample, item) in (0..16).zip(["\"\"", "0"].iter().cycle()) {
        let json = list(r#"{"caption":["#, |_| (*item).into(), 1_000_000 / (item.len() + 1), "]}");
        let mut header = tar::Header::new_gnu();
        header.set_size(json.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("{sample}.json"), &*json).unwrap();
    }
    is_borne("tar", &builder.into_inner().unwrap());
}

#[test]
fn settings_of_a_megabyte_stay_small() {
    let _alone = alone();
    let names = |item: fn(usize) -> String| list("", item, 150_000, "");
    is_borne("config", &list("{", |i| format!("\"{i:x}\":0"), 90_000, "}"));
    is_borne("preprocessor", &list("{", |i| format!("\"{i:x}\":0"), 90_000, "}"));
    is_borne("tokenizer-config", &list("{", |i| format!("\"{i:x}\":0"), 90_000, "}"));
    is_borne("shard-index", &list(r#"{"weight_map":{"#, |i| format!("\"{i:x}\":\"a\""), 1_000_000, "}}"));
    is_borne(
        "run",
        &names(|i| format!("{i:x}=1\n"))
            .iter()
            .map(|&b| if b == b',' { b'\n' } else { b })
            .collect::<Vec<_>>(),
    );
    is_borne("run", "a=[".repeat(1 << 18).as_bytes());
    is_borne("run", list("\0{\"unreadable\":[", |_| "\"\"".into(), 1_000_000, "]}").as_slice());
}
