//! The tokenizer: ids, and what is refused.

#[path = "tokenizer/pieces.rs"]
mod pieces;

use std::path::Path;

use qformer::{Config, Tokenizer};
use safetensors::SafeTensors;
use serde_json::{Value, json};
use tempfile::TempDir;

const RETRIEVAL: &str = "tests/golden/retrieval/model";

/// A folder with the files given, by name and text.
fn folder_with(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn refusal(folder: &Path) -> String {
    match Tokenizer::load(folder) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    }
}

fn golden() -> Tokenizer {
    Tokenizer::load(RETRIEVAL.as_ref()).unwrap()
}

#[test]
fn ids_are_those_of_transformers() {
    let bytes = std::fs::read("tests/golden/retrieval/expected.safetensors").unwrap();
    let expected = SafeTensors::deserialize(&bytes).unwrap();
    let integers = |name| -> Vec<i64> {
        let data = expected.tensor(name).unwrap().data();
        data.chunks(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect()
    };
    let (ids, mask) = (integers("input_ids"), integers("attention_mask"));
    let case: Value =
        serde_json::from_slice(&std::fs::read("tests/golden/retrieval/expected.json").unwrap()).unwrap();
    let texts: Vec<&str> =
        case["texts"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let width = ids.len() / texts.len();
    let encoded = golden().encode_batch(&texts, 64).unwrap();
    assert_eq!(encoded.len(), texts.len());
    for (row, text) in texts.iter().enumerate() {
        let places = row * width..(row + 1) * width;
        let real = ids[places.clone()].iter().zip(&mask[places]).filter(|(_, mask)| **mask == 1);
        let expected: Vec<u32> = real.map(|(&id, _)| id.try_into().unwrap()).collect();
        assert_eq!(golden().encode(text, 64).unwrap(), expected, "{text}");
        assert_eq!(encoded[row], expected, "{text}");
    }
}

#[test]
fn a_vocabulary_file_gives_the_same_ids_as_a_tokenizer_file() {
    let json: Value =
        serde_json::from_slice(&std::fs::read(Path::new(RETRIEVAL).join("tokenizer.json")).unwrap()).unwrap();
    let mut tokens: Vec<(&String, u64)> = json["model"]["vocab"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(token, id)| (token, id.as_u64().unwrap()))
        .collect();
    tokens.sort_by_key(|(_, id)| *id);
    let lines: Vec<&str> = tokens.iter().map(|(token, _)| token.as_str()).collect();
    for ending in ["\n", "\r\n"] {
        let folder = folder_with(&[
            ("vocab.txt", &lines.join(ending)),
            ("tokenizer_config.json", r#"{"bos_token": {"content": "[DEC]"}}"#),
        ]);
        let other = Tokenizer::load(folder.path()).unwrap();
        assert_eq!(other.vocabulary_size(), golden().vocabulary_size());
        assert_eq!((other.caption_ends(), golden().caption_ends()), ([85, 3], [85, 3]));
        for text in ["A red CAT, sits!", "caf\u{e9} 猫 [DEC] [SEP] table", "x\u{0}y\u{301}\tz  "] {
            assert_eq!(other.encode(text, 64).unwrap(), golden().encode(text, 64).unwrap(), "{text}");
        }
    }
}

#[test]
fn a_vocabulary_file_alone_is_enough() {
    let tokenizer = Tokenizer::load("tests/golden/stage1".as_ref()).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), 138);
    // [CLS] cat [SEP], by line of vocab.txt.
    let lines = include_str!("golden/stage1/vocab.txt");
    let id = |token| lines.lines().position(|line| line == token).unwrap() as u32;
    assert_eq!(tokenizer.encode("Cat", 64).unwrap(), [id("[CLS]"), id("cat"), id("[SEP]")]);
    // As LAVIS adds [DEC] to BERT's vocabulary; it is no part of a caption's text.
    assert_eq!(tokenizer.caption_ends(), [138, id("[SEP]")]);
    assert_eq!(tokenizer.decode(&[138, id("cat"), id("[SEP]")]).unwrap(), "cat");
    assert!(tokenizer.decode(&[139]).is_err());
}

#[test]
fn long_texts_are_cut_before_the_separator() {
    let whole = golden().encode("a red cat sits on a table", 64).unwrap();
    let cut = golden().encode("a red cat sits on a table", 5).unwrap();
    assert_eq!(cut, [&whole[..4], &whole[whole.len() - 1..]].concat());
    assert_eq!(golden().encode("a red cat sits on a table", whole.len()).unwrap(), whole);
    for length in 0..3 {
        assert!(golden().encode("a", length).unwrap_err().to_string().contains("takes 3 or more"));
    }
}

#[test]
fn texts_with_nothing_to_read_are_refused() {
    for blank in ["", " ", "\n\t\r ", "\u{0}", "\u{0} \u{7}", "\u{a0}\u{3000}", "\u{301}\u{301}"] {
        assert!(golden().encode(blank, 64).unwrap_err().to_string().contains("is blank"), "{blank:?}");
    }
    let message = golden().encode_batch(&["a cat", "", "a dog"], 64).unwrap_err().to_string();
    assert_eq!(message, "text 1 is blank; there is nothing to encode");
}

#[test]
fn hostile_texts_are_encoded_or_refused_in_time() {
    let unknown = 1;
    for pattern in ["a", "[", "a\u{301}", "猫", "\u{0}a", "a ", "##", "[SEP]", "\u{202e}x", "\u{1f600}", "ﷺ"]
    {
        let text = pattern.repeat((1 << 18) / pattern.len());
        let ids = golden().encode(&text, 64).unwrap();
        assert!(ids.len() <= 64 && ids.iter().all(|&id| id < 86), "{pattern}: {ids:?}");
    }
    assert_eq!(golden().encode(&"a".repeat(101), 64).unwrap(), [2, unknown, 3]);
    assert!(golden().encode(&"a".repeat(100), 200).unwrap().len() > 3);
    let message = golden().encode(&"a".repeat((1 << 20) + 1), 64).unwrap_err().to_string();
    assert!(message.contains("at most 1048576 are read"), "{message}");
    let message = golden().encode(&"a".repeat((1 << 18) + 1), 64).unwrap_err().to_string();
    assert!(message.contains("has 262145 bytes without a space or punctuation"), "{message}");
}

#[test]
fn vocabularies_larger_than_the_embeddings_are_refused() {
    // [DEC] is added to 85 word pieces; no text has it.
    golden().check_vocabulary(86).unwrap();
    golden().check_vocabulary(85).unwrap();
    let message = golden().check_vocabulary(84).unwrap_err().to_string();
    let expected = "has 85 word pieces, but the model's word embeddings have 84 rows";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn the_tiny_vocabulary_reads_any_english_text() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::write_tiny(folder.path()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), Config::tiny().qformer.vocab_size);
    tokenizer.check_vocabulary(Config::tiny().qformer.vocab_size).unwrap();
    assert_eq!(tokenizer.caption_ends()[0], tokenizer.vocabulary_size() as u32 - 1);
    let text =
        "Two dogs (one of them old!) are playing chess in the snow, near 9 wombats & a zebra-striped jeep.";
    let ids = tokenizer.encode(text, 512).unwrap();
    assert!(!ids.contains(&1), "an unknown token in {ids:?}");
    assert_eq!(tokenizer.encode("a red cat", 512).unwrap().len(), 5);

    // The two files say the same.
    std::fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    let other = Tokenizer::load(folder.path()).unwrap();
    assert_eq!(other.vocabulary_size(), tokenizer.vocabulary_size());
    assert_eq!(other.caption_ends(), tokenizer.caption_ends());
    assert_eq!(other.encode(text, 512).unwrap(), ids);
}

#[test]
fn the_tiny_tokenizer_file_opens_in_the_formats_own_library() {
    let folder = tempfile::tempdir().unwrap();
    Tokenizer::write_tiny(folder.path()).unwrap();
    let ours = Tokenizer::load(folder.path()).unwrap();
    let theirs = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    for text in ["A black cat on the green sofa.", "[DEC] caf\u{e9} 42"] {
        let expected = theirs.encode(text, true).unwrap();
        assert_eq!(ours.encode(text, 512).unwrap(), expected.get_ids());
    }
}

/// The golden `tokenizer.json` with `value` at `pointer`.
fn with(pointer: &str, value: Value) -> String {
    let mut json: Value =
        serde_json::from_slice(&std::fs::read(Path::new(RETRIEVAL).join("tokenizer.json")).unwrap()).unwrap();
    let (parent, field) = pointer.rsplit_once('/').unwrap();
    match json.pointer_mut(parent).unwrap() {
        Value::Array(list) => list[field.parse::<usize>().unwrap()] = value,
        parent => parent[field] = value,
    }
    json.to_string()
}

#[test]
fn tokenizers_of_another_kind_are_refused_by_name() {
    let bpe = json!({ "type": "BPE", "vocab": { "a": 0 }, "merges": [["a", "b"]] });
    let old_bpe = json!({ "vocab": { "a": 0 }, "merges": ["a b"], "continuing_subword_prefix": "##" });
    let unigram = json!({ "type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0]] });
    let regex =
        json!({ "type": "Split", "pattern": { "Regex": "(a+)+$" }, "behavior": "Isolated", "invert": false });
    let precompiled = json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" });
    let cases = [
        ("/model", bpe, "the model is BPE; only WordPiece"),
        ("/model", old_bpe, "the model is not given"),
        ("/model", unigram, "the model is Unigram"),
        ("/model", json!({ "type": "WordLevel", "vocab": {}, "unk_token": "x" }), "the model is WordLevel"),
        ("/model", json!(null), "the model is not given"),
        ("/pre_tokenizer", regex.clone(), "the pre_tokenizer is Split; only BertPreTokenizer"),
        ("/pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }), "the pre_tokenizer is FixedLength"),
        (
            "/pre_tokenizer",
            json!({ "type": "Sequence", "pretokenizers": [regex] }),
            "the pre_tokenizer is Sequence",
        ),
        ("/pre_tokenizer", json!(null), "the pre_tokenizer is not given"),
        ("/normalizer", precompiled, "the normalizer is Precompiled; only BertNormalizer"),
        (
            "/normalizer",
            json!({ "type": "Replace", "pattern": { "Regex": "(a+)+$" }, "content": "" }),
            "is Replace",
        ),
        ("/normalizer", json!({ "type": "\u{1b}[2J" }), "the normalizer is \\u{1b}[2J"),
        (
            "/post_processor",
            json!({ "type": "RobertaProcessing" }),
            "the post_processor is RobertaProcessing",
        ),
        ("/post_processor", json!(null), "the post_processor is not given"),
    ];
    for (pointer, value, fragment) in cases {
        let message = refusal(folder_with(&[("tokenizer.json", &with(pointer, value.clone()))]).path());
        assert!(message.contains(fragment), "{value}: \"{message}\" does not say \"{fragment}\"");
    }
}

#[test]
fn inconsistent_tokenizers_are_refused() {
    let long: Value = (0..84)
        .map(|id| (format!("t{id}"), json!(id)))
        .chain([("[UNK]".into(), json!(1_u64 << 31))])
        .collect();
    let twice = json!({ "id": 0, "content": "[PAD]", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true });
    let cases = [
        ("/model/vocab", json!({}), "\"[UNK]\" is not in the vocabulary"),
        ("/model/vocab", json!({ "[UNK]": -1 }), "the id -1"),
        ("/model/vocab", json!({ "[UNK]": 1 }), "the id 1; the ids of 1 tokens have to be 0 to 1 - 1"),
        ("/model/vocab", json!({ "[UNK]": 0, "b": 0 }), "has the id 0"),
        ("/model/vocab", json!({ "[UNK]": 0.0 }), "has the id 0.0"),
        ("/model/vocab", json!({ "[UNK]": "0" }), "has the id \"0\""),
        ("/model/vocab", long, "has the id 2147483648"),
        ("/model/vocab", json!(["[UNK]"]), "the model's vocab is not an object"),
        ("/model/unk_token", json!("[NONE]"), "\"[NONE]\" is not in the vocabulary"),
        ("/model/unk_token", json!(null), "unk_token is not a string"),
        ("/model/continuing_subword_prefix", json!(""), "continuing_subword_prefix is \"\""),
        (
            "/model/max_input_chars_per_word",
            json!(0),
            "max_input_chars_per_word is 0, not from 1 to BERT's 100",
        ),
        ("/model/max_input_chars_per_word", json!(101), "max_input_chars_per_word is 101"),
        ("/model/max_input_chars_per_word", json!(u64::MAX), "max_input_chars_per_word"),
        ("/normalizer/lowercase", json!(1), "the normalizer's lowercase"),
        ("/normalizer/strip_accents", json!("no"), "the normalizer's strip_accents"),
        ("/added_tokens", json!({}), "added_tokens is not a list"),
        ("/added_tokens/0/id", json!(1), "has the id 1 instead of 0"),
        ("/added_tokens/5/id", json!(1_u64 << 31), "\"[DEC]\" has the id 2147483648 instead of 85"),
        ("/added_tokens/5/content", json!("[CLS]"), "\"[CLS]\" has the id 85 instead of 2"),
        ("/added_tokens/5/content", json!(""), "added token 85 is empty"),
        ("/added_tokens/5", twice, "\"[PAD]\" has the id 0 instead of 0, or comes twice"),
        ("/added_tokens/5/lstrip", json!(null), "lstrip of added token 85"),
        ("/added_tokens/5", json!({}), "lacks its id or content"),
        ("/post_processor/single", json!([]), "is not [CLS], text, [SEP]"),
        (
            "/post_processor/single/1",
            json!({ "Sequence": { "id": "B", "type_id": 0 } }),
            "is not [CLS], text",
        ),
        (
            "/post_processor/single/0",
            json!({ "SpecialToken": { "id": "[X]", "type_id": 0 } }),
            "\"[X]\" is not in",
        ),
        ("/post_processor/special_tokens", json!({}), "\"[CLS]\" is not its id 2"),
        ("/post_processor/special_tokens/[SEP]/ids", json!([3, 3]), "\"[SEP]\" is not its id 3"),
    ];
    for (pointer, value, fragment) in cases {
        let message = refusal(folder_with(&[("tokenizer.json", &with(pointer, value.clone()))]).path());
        assert!(message.contains(fragment), "{pointer} {value}: \"{message}\" does not say \"{fragment}\"");
        assert!(message.len() < 500);
    }
}

#[test]
fn broken_files_are_refused() {
    let many: Vec<String> = (0..1 << 18).map(|id| format!("\"{id}\":{id}")).collect();
    let cases = [
        ("tokenizer.json", String::new(), "bad JSON"),
        ("tokenizer.json", "[]".into(), "the model is not given"),
        ("tokenizer.json", format!("{{\"model\":{}", "[".repeat(100_000)), "nested more than 16 deep"),
        ("tokenizer.json", r#"{"model": {"vocab": {"a": 0, "a": 1}}}"#.into(), "\"a\" comes twice"),
        ("tokenizer.json", format!("{{\"model\":{{{}}}}}", many.join(",")), "more than 262144 values"),
        ("tokenizer.json", " ".repeat((8 << 20) + 1), "at most 8388608 are read"),
        ("vocab.txt", "\n".repeat((1 << 17) + 1), "more than 131072 tokens"),
        ("vocab.txt", String::new(), "\"[UNK]\" is not in the vocabulary"),
        ("vocab.txt", "[UNK]\n[CLS]".into(), "\"[SEP]\" is not in the vocabulary"),
        ("vocab.txt", "[UNK]\n[CLS]\n[SEP]\na\na".into(), "\"a\" has the ids 3 and 4"),
        ("tokenizer_config.json", "{".into(), "tokenizer_config.json: bad JSON"),
        ("README.md", String::new(), "holds neither tokenizer.json nor vocab.txt"),
    ];
    for (name, text, fragment) in cases {
        let message = refusal(folder_with(&[(name, &text)]).path());
        assert!(message.contains(fragment), "\"{message}\" does not say \"{fragment}\"");
    }
    for name in ["do_lower_case", "strip_accents", "tokenize_chinese_chars"] {
        let config = json!({ name: 1 }).to_string();
        let folder = folder_with(&[("vocab.txt", "[UNK]\n[CLS]\n[SEP]"), ("tokenizer_config.json", &config)]);
        let message = refusal(folder.path());
        assert!(
            message.contains(&format!("{name} of tokenizer_config.json is not true or false")),
            "{message}"
        );
    }
}

#[test]
fn the_rules_of_the_configuration_are_followed() {
    let vocabulary = "[UNK]\n[CLS]\n[SEP]\na\nA\n\u{e1}\n猫猫\n猫\n[DEC]";
    let ids = |config: &str, text: &str| {
        let folder = folder_with(&[("vocab.txt", vocabulary), ("tokenizer_config.json", config)]);
        let ids = Tokenizer::load(folder.path()).unwrap().encode(text, 8).unwrap();
        ids[1..ids.len() - 1].to_vec()
    };
    assert_eq!(ids("{}", "A"), [3]);
    assert_eq!(ids(r#"{"do_lower_case": false}"#, "A"), [4]);
    assert_eq!(ids("{}", "\u{e1}"), [3]);
    assert_eq!(ids(r#"{"strip_accents": false}"#, "\u{e1}"), [5]);
    assert_eq!(ids("{}", "猫猫"), [7, 7]);
    assert_eq!(ids(r#"{"tokenize_chinese_chars": false}"#, "猫猫"), [6]);
    // A special token is one token; other words in brackets are three.
    assert_eq!(ids("{}", "[DEC]"), [0, 0, 0]);
    assert_eq!(ids(r#"{"bos_token": "[DEC]"}"#, "[DEC]"), [8]);
    assert_eq!(ids(r#"{"bos_token": null}"#, "[DEC]"), [0, 0, 0]);
}

#[test]
fn words_longer_than_the_tokenizer_file_allows_are_unknown() {
    let folder = folder_with(&[("tokenizer.json", &with("/model/max_input_chars_per_word", json!(4)))]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let unknown = 1;
    assert!(!tokenizer.encode("abcd", 64).unwrap().contains(&unknown));
    assert_eq!(tokenizer.encode("abcde", 64).unwrap(), [2, unknown, 3]);
}

#[test]
fn strange_added_tokens_are_found_or_refused_but_do_no_harm() {
    let long = "x".repeat(100_000);
    for content in ["\u{301}", " ", "\u{0}", "a", "##", "\u{1f600}", &long] {
        for flags in 0..16 {
            let id = if content == "a" { 5 } else { 85 };
            let token = json!({ "id": id, "content": content, "special": true, "single_word": flags & 1 > 0,
                "lstrip": flags & 2 > 0, "rstrip": flags & 4 > 0, "normalized": flags & 8 > 0 });
            let folder = folder_with(&[("tokenizer.json", &with("/added_tokens/5", token))]);
            match Tokenizer::load(folder.path()) {
                Ok(tokenizer) => {
                    let text = format!("a {content} cat{content}");
                    let ids = tokenizer.encode(&text, 512).unwrap();
                    assert!(
                        ids.iter().all(|&id| (id as usize) < tokenizer.vocabulary_size()),
                        "{content}: {ids:?}"
                    );
                }
                Err(error) => assert!(error.to_string().contains("tokenizer.json"), "{error}"),
            }
        }
    }
}
