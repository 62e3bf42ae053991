//! What the files of a language model's tokenizer say, refused unless it is byte-level BPE, as OPT's, or Unigram, as T5's.
//!
//! As for BERT's, nothing but checked values reaches the tokenizers library.

use crate::input::printable;
use crate::tokenizer::parse::{ADDED, Parsed, TOKENS, added_token, expect_type, vocabulary};
use serde_json::Value;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::metaspace::Metaspace;

/// Longest token of a vocabulary, in bytes.
const TOKEN_BYTES: usize = 1 << 10;
/// Most merges.
const MERGES: usize = 1 << 18;
/// Longest table of characters' normal forms, in base64.
const CHARACTERS_BYTES: usize = 1 << 21;

/// What splits a text into tokens.
pub(super) enum Model {
    /// Bytes are merged to tokens, pair by pair.
    BytePairs {
        /// The index is the id.
        vocabulary: Vec<String>,
        /// In the order in which they are tried.
        merges: Vec<(String, String)>,
        /// Whether a text begins as if after a space.
        add_prefix_space: bool,
    },
    /// The likeliest tokens that the text is made of.
    Unigram {
        /// Tokens with their log-probabilities; the index is the id.
        vocabulary: Vec<(String, f64)>,
        /// Of what is in no token.
        unknown: usize,
        /// What is done to a text first, one after the other.
        normalizers: Vec<NormalizerWrapper>,
        /// How spaces are written.
        spaces: Metaspace,
        /// Whether runs of white space are one.
        splits: bool,
    },
}

/// A tokenizer whose parts agree with each other.
pub(super) struct Definition {
    pub(super) model: Model,
    /// Ids of the tokens that come before a text, and of those that come after.
    pub(super) ends: [Vec<u32>; 2],
    /// Tokens that are no text, by id.
    pub(super) special: BTreeMap<u32, String>,
}

impl Definition {
    /// The tokenizer of a `tokenizer.json` and its `tokenizer_config.json` (or null).
    pub(super) fn from_json(json: &Value, config: &Value) -> Parsed<Self> {
        let kind = json["model"]["type"].as_str().unwrap_or(
            // Files of old library versions name no type; BPE's have merges.
            if json["model"]["merges"].is_array() { "BPE" } else { "not given" },
        );
        let model = match kind {
            "BPE" => byte_pairs(json)?,
            "Unigram" => unigram(json)?,
            other => {
                let other = printable(other);
                return Err(format!(
                    "the model is {other}; BPE and Unigram are supported for language models"
                ));
            }
        };
        let mut ids: BTreeMap<String, u32> = model.tokens().map(str::to_owned).zip(0..).collect();
        let mut special = BTreeMap::new();
        for (id, token) in added(&json["added_tokens"])? {
            if !token.special {
                let name = printable(&token.content);
                return Err(format!(
                    "the added token \"{name}\" is not special; only special ones are supported"
                ));
            }
            let known = ids.insert(token.content.clone(), id);
            if known.is_some_and(|known| known != id) || special.insert(id, token.content.clone()).is_some() {
                let name = printable(&token.content);
                return Err(format!("the added token \"{name}\" has the id {id}, which is another's"));
            }
        }
        let ends = match json["post_processor"]["type"].as_str() {
            Some("TemplateProcessing") => template(&json["post_processor"], &ids)?,
            // OPT's older files leave it to the settings.
            Some("ByteLevel") | None => settings_ends(config, &ids)?,
            Some(other) => {
                let other = printable(other);
                return Err(format!("the post_processor is {other}; only TemplateProcessing is supported"));
            }
        };
        Ok(Self { model, ends, special })
    }

    /// The byte-level BPE of a `vocab.json` and a `merges.txt`, with the `tokenizer_config.json` (or null).
    pub(super) fn from_vocabulary(ids: &Value, merges: &str, config: &Value) -> Parsed<Self> {
        let tokens = checked(vocabulary(ids)?)?;
        let lines = merges.lines().filter(|line| !line.starts_with("#version") && !line.is_empty());
        let merges = lines.map(merge_of_line).collect::<Parsed<Vec<_>>>()?;
        let ids: BTreeMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
        let model = Model::BytePairs { vocabulary: tokens, merges, add_prefix_space: false };
        let ends = settings_ends(config, &ids)?;
        let names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>", "<|endoftext|>"];
        let special = names.into_iter().filter_map(|name| Some((*ids.get(name)?, name.to_owned())));
        Ok(Self { special: special.collect(), model, ends })
    }

    /// The id of a token.
    pub(super) fn special_id(&self, name: &str) -> Option<u32> {
        self.special.iter().find(|(_, token)| *token == name).map(|(&id, _)| id)
    }

    /// The largest id, and one more.
    pub(super) fn count(&self) -> usize {
        let added = self.special.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
        self.model.count().max(added)
    }
}

impl Model {
    /// How many tokens it knows.
    pub(super) fn count(&self) -> usize {
        self.tokens().count()
    }

    fn tokens(&self) -> Box<dyn Iterator<Item = &str> + '_> {
        match self {
            Self::BytePairs { vocabulary, .. } => Box::new(vocabulary.iter().map(String::as_str)),
            Self::Unigram { vocabulary, .. } => Box::new(vocabulary.iter().map(|(token, _)| token.as_str())),
        }
    }
}

fn byte_pairs(json: &Value) -> Parsed<Model> {
    let model = &json["model"];
    expect_type(json, "pre_tokenizer", "ByteLevel")?;
    if !json["normalizer"].is_null() {
        return Err("has a normalizer; byte-level BPE is supported without".into());
    }
    for field in ["continuing_subword_prefix", "end_of_word_suffix"] {
        if model[field].as_str().is_some_and(|value| !value.is_empty()) {
            let value = printable(&model[field].to_string());
            return Err(format!("{field} is {value}; it has to be null or empty"));
        }
    }
    if !model["dropout"].is_null() || model["byte_fallback"] == true || model["ignore_merges"] == true {
        return Err(
            "the model has dropout, byte_fallback or ignore_merges; byte-level BPE is supported without"
                .into(),
        );
    }
    if json["pre_tokenizer"]["use_regex"] == false {
        return Err("the pre_tokenizer does not split words (use_regex is false); OPT's does".into());
    }
    let Some(list) = model["merges"].as_array().filter(|list| list.len() <= MERGES) else {
        return Err(format!("the model's merges are not a list of at most {MERGES}"));
    };
    let merge = |value: &Value| match value {
        Value::String(line) => merge_of_line(line),
        value => match value.as_array().map(Vec::as_slice) {
            Some([Value::String(first), Value::String(second)]) => Ok((first.clone(), second.clone())),
            _ => Err(format!("the merge {} is not of two tokens", printable(&value.to_string()))),
        },
    };
    Ok(Model::BytePairs {
        vocabulary: checked(vocabulary(&model["vocab"])?)?,
        merges: list.iter().map(merge).collect::<Parsed<_>>()?,
        add_prefix_space: json["pre_tokenizer"]["add_prefix_space"] == true,
    })
}

fn merge_of_line(line: &str) -> Parsed<(String, String)> {
    match line.split_once(' ') {
        Some((first, second)) if !second.contains(' ') => Ok((first.to_owned(), second.to_owned())),
        _ => Err(format!("the merge \"{}\" is not of two tokens", printable(line))),
    }
}

fn unigram(json: &Value) -> Parsed<Model> {
    let model = &json["model"];
    if model["byte_fallback"] == true {
        return Err("the model has byte_fallback; Unigram is supported without".into());
    }
    let Some(list) = model["vocab"].as_array().filter(|list| (1..=TOKENS).contains(&list.len())) else {
        return Err(format!("the model's vocab is not a list of 1 to {TOKENS} tokens"));
    };
    let entry = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([Value::String(token), score]) if token.len() <= TOKEN_BYTES => {
            let score = score.as_f64().filter(|score| score.is_finite());
            score.map(|score| (token.clone(), score)).ok_or_else(|| {
                format!("the score of the token \"{}\" is not a finite number", printable(token))
            })
        }
        _ => Err(format!("the token {} is not a text with its score", printable(&value.to_string()))),
    };
    let vocabulary = list.iter().map(entry).collect::<Parsed<Vec<_>>>()?;
    let unknown = model["unk_id"].as_u64().and_then(|id| usize::try_from(id).ok());
    let Some(unknown) = unknown.filter(|&id| id < vocabulary.len()) else {
        let value = printable(&model["unk_id"].to_string());
        return Err(format!("unk_id is {value}; it has to be the id of a token"));
    };
    let normalizers = match &json["normalizer"] {
        Value::Null => Vec::new(),
        json if json["type"] == "Sequence" => {
            let list = json["normalizers"].as_array().map_or(&[][..], Vec::as_slice);
            list.iter().map(normalizer).collect::<Parsed<_>>()?
        }
        json => vec![normalizer(json)?],
    };
    let pre_tokenizer = &json["pre_tokenizer"];
    let (splits, spaces) = match pre_tokenizer["type"].as_str() {
        Some("Metaspace") => (false, pre_tokenizer),
        Some("Sequence") => match pre_tokenizer["pretokenizers"].as_array().map(Vec::as_slice) {
            Some([split, spaces]) if split["type"] == "WhitespaceSplit" => (true, spaces),
            _ => return Err("the pre_tokenizer is a sequence other than WhitespaceSplit, Metaspace".into()),
        },
        other => {
            let other = printable(other.unwrap_or("not given"));
            return Err(format!("the pre_tokenizer is {other}; only Metaspace is supported with Unigram"));
        }
    };
    if spaces["type"] != "Metaspace" {
        return Err("the pre_tokenizer is a sequence other than WhitespaceSplit, Metaspace".into());
    }
    let spaces = serde_json::from_value(spaces.clone())
        .map_err(|error| format!("the Metaspace is malformed: {}", printable(&error.to_string())))?;
    Ok(Model::Unigram { vocabulary, unknown, normalizers, spaces, splits })
}

/// A normalizer of SentencePiece's models: the table of characters' normal forms, spaces at the end, runs of spaces.
fn normalizer(json: &Value) -> Parsed<NormalizerWrapper> {
    let known = match json["type"].as_str() {
        Some("Precompiled") => {
            json["precompiled_charsmap"].as_str().is_some_and(|text| text.len() <= CHARACTERS_BYTES)
        }
        Some("Strip") => true,
        // The one pattern that the converters of transformers write.
        Some("Replace") => json["pattern"]["Regex"] == " {2,}" && json["content"] == "\u{2581}",
        other => {
            let other = printable(other.unwrap_or("not given"));
            return Err(format!("the normalizer is {other}; only Precompiled is supported with Unigram"));
        }
    };
    // The library panics on tables that are none.
    let read = || catch_unwind(AssertUnwindSafe(|| serde_json::from_value(json.clone()).ok())).ok().flatten();
    let read = known.then(read).flatten();
    read.ok_or_else(|| format!("the normalizer {} is not as T5's is", printable(&json["type"].to_string())))
}

/// Refuses tokens that are too long.
fn checked(tokens: Vec<String>) -> Parsed<Vec<String>> {
    match tokens.iter().position(|token| token.len() > TOKEN_BYTES) {
        None => Ok(tokens),
        Some(id) => Err(format!("the token {id} is longer than {TOKEN_BYTES} bytes")),
    }
}

/// The list `added_tokens`, which may be absent.
fn added(list: &Value) -> Parsed<Vec<(u32, tokenizers::AddedToken)>> {
    let list = match list {
        Value::Null => &[][..],
        Value::Array(list) if list.len() <= ADDED => list,
        _ => return Err(format!("added_tokens is not a list of at most {ADDED}")),
    };
    let token = |value: &Value| {
        let (id, token) = added_token(value)?;
        let known = u32::try_from(id).ok().filter(|&id| (id as usize) < 2 * TOKENS);
        let id = known.ok_or_else(|| {
            format!("the added token \"{}\" has the id {id}, which is too large", printable(&token.content))
        })?;
        Ok((id, token))
    };
    list.iter().map(token).collect()
}

/// Ids of the tokens before and after a text.
fn template(post_processor: &Value, ids: &BTreeMap<String, u32>) -> Parsed<[Vec<u32>; 2]> {
    let mut ends = [Vec::new(), Vec::new()];
    let mut behind = 0;
    for piece in post_processor["single"].as_array().map_or(&[][..], Vec::as_slice) {
        if piece["Sequence"]["id"] == "A" && behind == 0 {
            behind = 1;
            continue;
        }
        let name = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
        let stated = &post_processor["special_tokens"][name]["ids"];
        match ids.get(name) {
            Some(&id) if *stated == Value::from(vec![id]) => ends[behind].push(id),
            _ => {
                return Err(format!("the template's token \"{}\" is not in the vocabulary", printable(name)));
            }
        }
    }
    if behind == 0 {
        return Err("the template for one text has no place for it".into());
    }
    Ok(ends)
}

/// The same as `tokenizer_config.json` says.
fn settings_ends(config: &Value, ids: &BTreeMap<String, u32>) -> Parsed<[Vec<u32>; 2]> {
    let end = |add: &str, token: &str| {
        if config[add] != true {
            return Ok(Vec::new());
        }
        let name = config[token].as_str().or_else(|| config[token]["content"].as_str()).unwrap_or_default();
        let id = ids.get(name).copied();
        id.map(|id| vec![id]).ok_or_else(|| {
            format!(
                "{token} of tokenizer_config.json is \"{}\", which is not in the vocabulary",
                printable(name)
            )
        })
    };
    Ok([end("add_bos_token", "bos_token")?, end("add_eos_token", "eos_token")?])
}
