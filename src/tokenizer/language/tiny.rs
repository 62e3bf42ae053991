//! Tokenizers that know bytes only, for models of trial size.

use super::FILE_NAME;
use crate::error::Result;
use crate::output::write_json;
use crate::tokenizer::CONFIG_FILE_NAME;
use serde_json::{Map, Value, json};
use std::path::Path;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// Writes the files of a tokenizer with the tokens `special`, then all bytes, then `<image>`. A text has the tokens
/// `before` and `after` it.
pub(super) fn write(directory: &Path, special: &[&str], [before, after]: [Option<&str>; 2]) -> Result<()> {
    let mut bytes: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    bytes.sort_unstable();
    let tokens = special.iter().map(|&token| token.to_owned()).chain(bytes.iter().map(char::to_string));
    let vocabulary: Map<String, Value> = tokens.zip(0..).map(|(token, id)| (token, json!(id))).collect();
    let id = |token: &str| special.iter().position(|&known| known == token).unwrap_or(vocabulary.len());
    let added = |token: &str| {
        json!({
            "id": id(token), "content": token, "special": true,
            "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        })
    };
    let end = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let single: Vec<Value> = before.map(end).into_iter().chain([text]).chain(after.map(end)).collect();
    let of_end =
        |token: &str| (token.to_owned(), json!({"id": token, "ids": [id(token)], "tokens": [token]}));
    let ends: Map<String, Value> = before.iter().chain(&after).map(|token| of_end(token)).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let json = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": special.iter().copied().chain([super::IMAGE]).map(added).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": ends,
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocabulary, "merges": [],
        },
    });
    write_json(&directory.join(FILE_NAME), &json)?;
    let settings = json!({
        "bos_token": before,
        "eos_token": "</s>",
        "extra_special_tokens": [super::IMAGE],
        "pad_token": "<pad>",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
    });
    write_json(&directory.join(CONFIG_FILE_NAME), &settings)
}
