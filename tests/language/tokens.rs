//! Tokens of language models against the tokenizers of the checkpoints and transformers.

use crate::checkpoint::Golden;
use crate::paths::path;
use qformer::tokenizer::{LanguageTokenizer, Tokenizer};
use serde_json::{Value, json};
use std::path::PathBuf;

fn folder(name: &str) -> PathBuf {
    let folder = path("tests/golden").join(name);
    if folder.join("model").exists() { folder.join("model") } else { folder.join("llm") }
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn prompts_have_the_tokens_of_the_references() {
    for name in ["dialogue-opt", "dialogue-t5"] {
        let golden = Golden::new(name);
        let tokenizer = LanguageTokenizer::load(&folder(name)).unwrap();
        let image = golden.config().image_token_index.unwrap() as u32;
        assert_eq!(tokenizer.image_token(), Some(image));
        for (index, prompt) in golden.expected["prompts"].as_array().unwrap().iter().enumerate() {
            let expected = golden.words(&golden.ids(&format!("input_ids.{index}")));
            assert_eq!(tokenizer.encode(prompt["prompt"].as_str().unwrap()).unwrap(), expected);
            let text = tokenizer.decode(&ids(&prompt["beam5"])).unwrap();
            // transformers kept T5's end token in the text.
            let expected = prompt["text"].as_str().unwrap().trim_end_matches("</s>");
            assert_eq!(text, expected, "{name} {index}");
        }
    }
    for name in ["stage2-opt", "stage2-t5"] {
        let golden = Golden::new(name);
        let tokenizer = LanguageTokenizer::load(&folder(name)).unwrap();
        for case in golden.expected["generated"].as_array().unwrap() {
            for (row, text) in case["ids"].as_array().unwrap().iter().zip(case["text"].as_array().unwrap()) {
                // LAVIS strips what it decodes.
                assert_eq!(&Value::from(tokenizer.decode(&ids(row)).unwrap().trim()), text, "{name}");
            }
        }
    }
}

#[test]
fn odd_texts_have_the_tokens_of_transformers() {
    let own = path("tests/golden/language_tokenizers");
    let tokenizers = [("unigram", own.clone()), ("bpe", folder("dialogue-opt"))]
        .map(|(name, folder)| (name, LanguageTokenizer::load(&folder).unwrap()));
    let cases: Vec<Value> =
        serde_json::from_slice(&std::fs::read(own.join("expected.json")).unwrap()).unwrap();
    assert_eq!(cases.len(), 625);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        for (name, tokenizer) in &tokenizers {
            let expected = ids(&case[name]["ids"]);
            assert_eq!(tokenizer.encode(text).unwrap(), expected, "{name} {text:?}");
            let decoded = tokenizer.decode(&expected).unwrap();
            assert_eq!(&Value::from(decoded.clone()), &case[name]["decoded"], "{name} {text:?}");
            // Token by token it is the same text.
            let mut stream = tokenizer.stream();
            let mut told: String = expected.iter().map(|&id| stream.push(id).unwrap()).collect();
            told += &stream.finish().unwrap();
            assert_eq!(told, decoded, "{name} {text:?}");
        }
    }
}

#[test]
fn what_is_no_text_or_no_language_models_tokenizer_is_refused() {
    let opt = LanguageTokenizer::load(&folder("opt")).unwrap();
    for (text, fragment) in [
        ("what is <image> here?", "<image>, which is a token of its own"),
        ("a</s>b", "</s>, which is a token of its own"),
        (&"x".repeat(70_000), "70000 bytes"),
    ] {
        let error = opt.encode(text).unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    }
    opt.check_vocabulary(331).unwrap();
    let error = opt.check_vocabulary(300).unwrap_err().to_string();
    assert!(error.contains("330 tokens") && error.contains("300 rows"), "{error}");

    // The two kinds are not taken for one another.
    let bert = path("tests/golden/retrieval/model");
    let error = LanguageTokenizer::load(&bert).unwrap_err().to_string();
    assert!(error.contains("WordPiece"), "{error}");
    assert!(Tokenizer::load(&folder("opt")).unwrap_err().to_string().contains("BPE"));

    let edited = |edit: &dyn Fn(&mut Value), of: &str| {
        let file = path("tests/golden").join(of).join("tokenizer.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        edit(&mut json);
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        LanguageTokenizer::load(folder.path()).unwrap_err().to_string()
    };
    type Edit = fn(&mut Value);
    let byte_pairs: [(Edit, &str); 6] = [
        (|json| json["model"]["merges"][0] = json!("abc"), "merge \"abc\" is not of two tokens"),
        (|json| json["model"]["vocab"]["!"] = json!(5), "has the id"),
        (|json| json["model"]["dropout"] = json!(0.1), "dropout"),
        (|json| json["pre_tokenizer"]["type"] = json!("Split"), "pre_tokenizer is Split"),
        (|json| json["added_tokens"][0]["special"] = json!(false), "is not special"),
        (|json| json["post_processor"]["special_tokens"] = json!({}), "template's token"),
    ];
    for (edit, fragment) in byte_pairs {
        let error = edited(&edit, "opt/model");
        assert!(error.contains(fragment) && error.contains("tokenizer.json"), "{error}");
    }
    let unigram: [(Edit, &str); 5] = [
        (|json| json["model"]["unk_id"] = json!(9999), "unk_id is 9999"),
        (|json| json["model"]["vocab"][5] = json!(["x", "y"]), "score of the token \"x\""),
        (|json| json["model"]["byte_fallback"] = json!(true), "byte_fallback"),
        (
            |json| {
                json["normalizer"] = json!({"type": "Replace", "pattern": {"Regex": "(a+)+"}, "content": ""})
            },
            "\"Replace\" is not as T5's",
        ),
        (|json| json["normalizer"]["normalizers"][0]["precompiled_charsmap"] = json!("AAAA"), "Precompiled"),
    ];
    for (edit, fragment) in unigram {
        let error = edited(&edit, "language_tokenizers");
        assert!(error.contains(fragment) && error.contains("tokenizer.json"), "{error}");
    }
}

/// As in the folders of facebook/opt-….
#[test]
fn byte_pairs_are_read_from_two_files_where_there_is_no_third() {
    let json: Value =
        serde_json::from_slice(&std::fs::read(folder("opt").join("tokenizer.json")).unwrap()).unwrap();
    let merges = json["model"]["merges"].as_array().unwrap().iter().map(|pair| {
        let pair: [String; 2] = serde_json::from_value(pair.clone()).unwrap();
        pair.join(" ") + "\n"
    });
    let two = tempfile::tempdir().unwrap();
    let write = |name: &str, text: String| std::fs::write(two.path().join(name), text).unwrap();
    write("vocab.json", json["model"]["vocab"].to_string());
    write("merges.txt", format!("#version: 0.2\n{}", merges.collect::<String>()));
    write("tokenizer_config.json", json!({"add_bos_token": true, "bos_token": "</s>"}).to_string());
    let (two, one) =
        (LanguageTokenizer::load(two.path()).unwrap(), LanguageTokenizer::load(&folder("opt")).unwrap());
    for text in ["", "a photo of", "Question: is it naïve? 😀"] {
        assert_eq!(two.encode(text).unwrap(), one.encode(text).unwrap());
    }
}
