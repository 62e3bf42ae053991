//! A small vocabulary for models of trial size: any lower-case English text has pieces in it.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::{FILE_NAME, START, Tokenizer};
use crate::error::Result;
use crate::output::write_json;

const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];
const PUNCTUATION: &str = ".,!?'\"-:;()&/";
const LETTERS: &str = "abcdefghijklmnopqrstuvwxyz0123456789";
const ENDINGS: &str = "s ed er ing ly es y en est al";
const WORDS: &str = "\
    the an of on in at to by for with and or from near over under behind beside between into through \
    is are was be has his her its their this that no one two three four five many some \
    red green blue yellow orange brown black white gray pink bright dark old new young big small \
    large tall long little \
    man woman boy girl child baby people person group dog cat horse bird cow sheep bear elephant \
    tree grass flower field forest mountain river lake sea beach sand snow sky cloud sun rain night \
    street road bridge house building room kitchen table chair bed door window wall floor \
    car bus train truck boat plane bike ball book cup plate bowl bottle phone clock lamp hat shirt \
    food cake pizza bread fruit apple coffee water tea \
    sits stands walks runs plays holds rides eats looks sleeps flies wearing standing sitting";

/// Number of ids.
pub(crate) fn vocabulary_size() -> usize {
    vocabulary().len() + 1
}

/// The tokens before `[DEC]`; the index is the id.
fn vocabulary() -> Vec<String> {
    let letters = || LETTERS.chars().map(String::from);
    let endings = ENDINGS.split_whitespace().filter(|ending| ending.len() > 1).map(str::to_owned);
    SPECIAL
        .into_iter()
        .map(str::to_owned)
        .chain(PUNCTUATION.chars().map(String::from))
        .chain(letters())
        .chain(letters().chain(endings).map(|piece| format!("##{piece}")))
        .chain(WORDS.split_whitespace().map(str::to_owned))
        .collect()
}

/// Writes the tokenizer's files to `directory`.
pub(super) fn write(directory: &Path) -> Result<()> {
    let tokens = vocabulary();
    Tokenizer::write(directory, &tokens)?;
    write_json(&directory.join(FILE_NAME), &tokenizer_json(&tokens))
}

/// The `tokenizer.json` of a BERT tokenizer with the vocabulary `tokens`.
fn tokenizer_json(tokens: &[String]) -> Value {
    let added = SPECIAL.into_iter().zip(0..).chain([(START, tokens.len())]);
    let added: Vec<Value> = added
        .map(|(content, id)| {
            json!({
                "id": id, "content": content, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    let piece = |kind: &str, id: &str, type_id: u32| json!({ kind: { "id": id, "type_id": type_id } });
    let single =
        [piece("SpecialToken", "[CLS]", 0), piece("Sequence", "A", 0), piece("SpecialToken", "[SEP]", 0)];
    let second = [piece("Sequence", "B", 1), piece("SpecialToken", "[SEP]", 1)];
    let vocabulary: Map<String, Value> =
        tokens.iter().zip(0..).map(|(token, id)| (token.clone(), Value::from(id))).collect();
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true,
        },
        "pre_tokenizer": { "type": "BertPreTokenizer" },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": single.iter().chain(&second).collect::<Vec<_>>(),
            "special_tokens": {
                "[CLS]": { "id": "[CLS]", "ids": [2], "tokens": ["[CLS]"] },
                "[SEP]": { "id": "[SEP]", "ids": [3], "tokens": ["[SEP]"] },
            },
        },
        "decoder": { "type": "WordPiece", "prefix": "##", "cleanup": true },
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocabulary,
        },
    })
}
