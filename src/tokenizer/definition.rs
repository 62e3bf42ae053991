//! What a `tokenizer.json` or `vocab.txt` says, refused unless it is BERT's WordPiece throughout.
//!
//! Nothing but checked values reaches the tokenizers library: its own reader of `tokenizer.json`
//! knows regular expressions and other components that take a stranger's file too far.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use tokenizers::AddedToken;
use tokenizers::normalizers::BertNormalizer;

use super::START;
use super::parse::{ADDED, ADDED_BYTES, Parsed, TOKENS, added_token, expect_type, vocabulary};
use crate::input::printable;

/// Most characters of a word that is looked up in the vocabulary, BERT's number; the time this takes grows
/// with the square.
const CHARACTERS_PER_WORD: usize = 100;

/// A WordPiece tokenizer whose parts agree with each other.
pub(super) struct Definition {
    /// The model's tokens; the index is the id.
    pub(super) vocabulary: Vec<String>,
    /// Tokens found in the text as they stand; those that are not in the vocabulary have the ids that
    /// follow it, in order.
    pub(super) added: Vec<AddedToken>,
    /// What a word without pieces becomes, `[UNK]`.
    pub(super) unknown: String,
    /// Longer words are unknown.
    pub(super) characters_per_word: usize,
    pub(super) normalizer: BertNormalizer,
    /// Id of `[CLS]`.
    pub(super) first: u32,
    /// Id of `[SEP]`.
    pub(super) last: u32,
    /// Id of the `bos_token`.
    begin_of_sentence: Option<u32>,
    ids: HashMap<String, u32>,
}

impl Definition {
    /// The tokenizer of a `tokenizer.json` and its `tokenizer_config.json` (or null).
    pub(super) fn from_json(json: &Value, config: &Value) -> Parsed<Self> {
        let model = &json["model"];
        // Files of old library versions name no type; BPE's then have merges.
        if !model["type"].is_null() || !model["merges"].is_null() || !model["vocab"].is_object() {
            expect_type(json, "model", "WordPiece")?;
        }
        expect_type(json, "pre_tokenizer", "BertPreTokenizer")?;
        expect_type(json, "normalizer", "BertNormalizer")?;
        expect_type(json, "post_processor", "TemplateProcessing")?;
        let prefix = &model["continuing_subword_prefix"];
        if prefix != "##" {
            return Err(format!(
                "continuing_subword_prefix is {}; only \"##\" is supported",
                printable(&prefix.to_string())
            ));
        }
        let characters =
            model["max_input_chars_per_word"].as_u64().and_then(|count| usize::try_from(count).ok());
        let Some(characters_per_word) = characters.filter(|count| (1..=CHARACTERS_PER_WORD).contains(count))
        else {
            let value = printable(&model["max_input_chars_per_word"].to_string());
            return Err(format!(
                "max_input_chars_per_word is {value}, not from 1 to BERT's {CHARACTERS_PER_WORD}"
            ));
        };
        let Some(unknown) = model["unk_token"].as_str() else {
            return Err("unk_token is not a string".into());
        };
        let mut definition = Self::new(vocabulary(&model["vocab"])?, unknown)?;
        definition.characters_per_word = characters_per_word;
        definition.normalizer = normalizer(&json["normalizer"])?;
        definition.add_all(&json["added_tokens"])?;
        [definition.first, definition.last] = definition.template(&json["post_processor"])?;
        definition.add_begin_of_sentence(config);
        Ok(definition)
    }

    /// The tokenizer of a `vocab.txt` and its `tokenizer_config.json` (or null).
    pub(super) fn from_vocabulary(text: &str, config: &Value) -> Parsed<Self> {
        if text.lines().count() > TOKENS {
            return Err(format!("has more than {TOKENS} tokens"));
        }
        let flag = |name: &str| match &config[name] {
            Value::Null => Ok(None),
            value => {
                let flag = value.as_bool();
                flag.map(Some).ok_or_else(|| format!("{name} of tokenizer_config.json is not true or false"))
            }
        };
        let mut definition = Self::new(text.lines().map(str::to_owned).collect(), "[UNK]")?;
        definition.normalizer.lowercase = flag("do_lower_case")?.unwrap_or(true);
        definition.normalizer.handle_chinese_chars = flag("tokenize_chinese_chars")?.unwrap_or(true);
        definition.normalizer.strip_accents = flag("strip_accents")?;
        for special in ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] {
            if definition.ids.contains_key(special) {
                definition.added.push(AddedToken::from(special, true));
            }
        }
        definition.first = definition.id_of("[CLS]")?;
        definition.last = definition.id_of("[SEP]")?;
        definition.add_begin_of_sentence(config);
        Ok(definition)
    }

    fn new(vocabulary: Vec<String>, unknown: &str) -> Parsed<Self> {
        let mut ids = HashMap::new();
        for (token, id) in vocabulary.iter().zip(0..) {
            if let Some(other) = ids.insert(token.clone(), id) {
                return Err(format!("the token \"{}\" has the ids {other} and {id}", printable(token)));
            }
        }
        let definition = Self {
            vocabulary,
            added: Vec::new(),
            unknown: unknown.to_owned(),
            characters_per_word: 100,
            normalizer: BertNormalizer::new(true, true, None, true),
            first: 0,
            last: 0,
            begin_of_sentence: None,
            ids,
        };
        definition.id_of(unknown)?;
        Ok(definition)
    }

    /// Number of ids, those of added tokens included.
    pub(super) fn vocabulary_size(&self) -> usize {
        self.ids.len()
    }

    /// Id of the token that begins a caption.
    pub(super) fn start(&self) -> u32 {
        // The number of values in a file is far below 2^32.
        let next = self.ids.len() as u32;
        self.begin_of_sentence.or_else(|| self.ids.get(START).copied()).unwrap_or(next)
    }

    fn id_of(&self, token: &str) -> Parsed<u32> {
        let id = self.ids.get(token).copied();
        id.ok_or_else(|| format!("the token \"{}\" is not in the vocabulary", printable(token)))
    }

    /// Adds the list `added_tokens` of a `tokenizer.json`, by rising id.
    fn add_all(&mut self, list: &Value) -> Parsed<()> {
        let Some(list) = list.as_array() else {
            return Err("added_tokens is not a list".into());
        };
        if list.len() > ADDED {
            return Err(format!("has more than {ADDED} added tokens"));
        }
        let mut tokens = list.iter().map(added_token).collect::<Parsed<Vec<_>>>()?;
        tokens.sort_by_key(|(id, _)| *id);
        let mut seen = HashSet::new();
        for (stated, token) in tokens {
            let next = self.ids.len() as u64;
            let id = self.ids.get(&token.content).map_or(next, |&id| id.into());
            if stated != id || !seen.insert(token.content.clone()) {
                let name = printable(&token.content);
                return Err(format!(
                    "the added token \"{name}\" has the id {stated} instead of {id}, or comes twice"
                ));
            }
            self.add(token);
        }
        Ok(())
    }

    fn add(&mut self, token: AddedToken) -> u32 {
        // The number of values in a file is far below 2^32.
        let next = self.ids.len() as u32;
        let id = *self.ids.entry(token.content.clone()).or_insert(next);
        self.added.push(token);
        id
    }

    /// Adds what `tokenizer_config.json` calls the `bos_token`, as transformers does.
    fn add_begin_of_sentence(&mut self, config: &Value) {
        let token = &config["bos_token"];
        let Some(content) = token.as_str().or_else(|| token["content"].as_str()) else { return };
        if content.is_empty() || content.len() > ADDED_BYTES {
            return;
        }
        let is_added = self.added.iter().any(|added| added.content == content);
        self.begin_of_sentence = Some(match self.ids.get(content) {
            Some(&id) if is_added => id,
            _ => self.add(AddedToken::from(content, true)),
        });
    }

    /// Ids of the tokens before and after a text.
    fn template(&self, post_processor: &Value) -> Parsed<[u32; 2]> {
        let single = post_processor["single"].as_array().map_or(&[][..], Vec::as_slice);
        let [first, text, last] = single else {
            return Err("the template for one text is not [CLS], text, [SEP]".into());
        };
        if text["Sequence"]["id"] != "A" {
            return Err("the template for one text is not [CLS], text, [SEP]".into());
        }
        let id = |piece: &Value| {
            let name = piece["SpecialToken"]["id"].as_str().unwrap_or_default();
            let id = self.id_of(name)?;
            if post_processor["special_tokens"][name]["ids"] != Value::from(vec![id]) {
                return Err(format!("the template's token \"{}\" is not its id {id}", printable(name)));
            }
            Ok(id)
        };
        Ok([id(first)?, id(last)?])
    }
}

fn normalizer(json: &Value) -> Parsed<BertNormalizer> {
    let flag = |name: &str| {
        json[name].as_bool().ok_or_else(|| format!("the normalizer's {name} is not true or false"))
    };
    let strip_accents = match &json["strip_accents"] {
        Value::Null => None,
        _ => Some(flag("strip_accents")?),
    };
    Ok(BertNormalizer::new(
        flag("clean_text")?,
        flag("handle_chinese_chars")?,
        strip_accents,
        flag("lowercase")?,
    ))
}
