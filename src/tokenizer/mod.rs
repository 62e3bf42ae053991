//! Tokenizers: BERT's WordPiece for what the Q-Former reads, and those of language models.

mod cut;
mod definition;
mod language;
mod parse;
mod tiny;

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::{Value, json};
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

use crate::error::{Error, Result};
use crate::input;
use crate::output::{write_atomically, write_json};
use cut::Cuts;
use definition::Definition;

pub use language::{LanguageTokenizer, TextStream};
pub(crate) use tiny::vocabulary_size as tiny_vocabulary_size;

/// Name of the file with all of a tokenizer, within a checkpoint's folder.
pub const FILE_NAME: &str = "tokenizer.json";
/// Name of the file with one vocabulary entry a line, read where there is no `tokenizer.json`.
pub const VOCABULARY_FILE_NAME: &str = "vocab.txt";
/// Name of the file with the names of the special tokens.
pub const CONFIG_FILE_NAME: &str = "tokenizer_config.json";
/// Names of all files of a tokenizer, of which not all need be there.
pub const FILE_NAMES: [&str; 4] =
    [FILE_NAME, VOCABULARY_FILE_NAME, CONFIG_FILE_NAME, "special_tokens_map.json"];

/// The token that begins a caption, which LAVIS adds to BERT's.
pub const START: &str = "[DEC]";

/// Largest file read, in bytes.
const FILE_BYTES: u64 = 8 << 20;

/// Longest text encoded, in bytes.
const TEXT_BYTES: usize = 1 << 20;

/// A WordPiece tokenizer with BERT's normalisation: `[CLS] text [SEP]`.
///
/// ```
/// # fn main() -> qformer::Result<()> {
/// let tokenizer = qformer::Tokenizer::load("tests/golden/retrieval/model".as_ref())?;
/// let ids = tokenizer.encode("A cup of coffee", 32)?;
/// assert_eq!(tokenizer.decode(&ids)?, "a cup of coffee");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    cuts: Cuts,
    first: u32,
    last: u32,
    start: u32,
    vocabulary_size: usize,
    word_pieces: usize,
}

impl Tokenizer {
    /// Reads the tokenizer in the folder `directory`: `tokenizer.json`, or else `vocab.txt` with
    /// BERT's lower-casing rules. The `bos_token` of `tokenizer_config.json` (`[DEC]` in BLIP-2's) is
    /// added to the vocabulary if it is not in it.
    ///
    /// # Errors
    /// Fails if neither file can be read or is larger than 8 MiB, if the tokenizer is of another
    /// kind (another model, normaliser, pre-tokenizer or template, named in the message), or if its
    /// ids are not 0, 1, 2, … without gap.
    pub fn load(directory: &Path) -> Result<Self> {
        let config = configuration(directory)?;
        let path = directory.join(FILE_NAME);
        if input::exists(&path) {
            let json = input::parse_json(&path, &input::read_text(&path, FILE_BYTES)?)?;
            let definition = Definition::from_json(&json, &config);
            drop(json);
            return Self::new(&path, definition.map_err(|what| Error::input(&path, what))?);
        }
        let path = directory.join(VOCABULARY_FILE_NAME);
        if input::exists(&path) {
            let definition = Definition::from_vocabulary(&input::read_text(&path, FILE_BYTES)?, &config);
            return Self::new(&path, definition.map_err(|what| Error::input(&path, what))?);
        }
        Err(Error::input(
            directory,
            format_args!(
                "holds neither {FILE_NAME} nor {VOCABULARY_FILE_NAME}; copy bert-base-uncased's to it"
            ),
        ))
    }

    /// The `tokenizer_config.json` in the folder `directory` with what BERT's own leaves out and transformers
    /// needs to know in a folder of BLIP-2: the kind, and the token that LAVIS adds. None if it has both.
    ///
    /// # Errors
    /// Fails if there is one and it cannot be read.
    pub(crate) fn completed_settings(directory: &Path) -> Result<Option<Value>> {
        let mut settings = configuration(directory)?.as_object().cloned().unwrap_or_default();
        let mut is_changed = false;
        for (key, value) in [("bos_token", START), ("tokenizer_class", "BertTokenizer")] {
            if settings.get(key).is_none_or(Value::is_null) {
                settings.insert(key.to_owned(), value.into());
                is_changed = true;
            }
        }
        Ok(is_changed.then_some(settings.into()))
    }

    /// Writes `vocab.txt` and `tokenizer_config.json` of a BERT tokenizer with the vocabulary `tokens`, which
    /// has `[PAD]`, `[UNK]`, `[CLS]`, `[SEP]` and `[MASK]`, and after it [`START`].
    ///
    /// # Errors
    /// Fails if the operating system refuses to write.
    pub fn write<S: AsRef<str>>(directory: &Path, tokens: &[S]) -> Result<()> {
        let path = directory.join(VOCABULARY_FILE_NAME);
        write_atomically(&path, |file| {
            let mut lines = tokens.iter();
            lines
                .try_for_each(|token| writeln!(file, "{}", token.as_ref()))
                .map_err(|source| Error::io(&path, "write", source))
        })?;
        let settings = json!({
            "bos_token": START,
            "cls_token": "[CLS]",
            "do_lower_case": true,
            "mask_token": "[MASK]",
            "pad_token": "[PAD]",
            "sep_token": "[SEP]",
            "tokenizer_class": "BertTokenizer",
            "unk_token": "[UNK]",
        });
        write_json(&directory.join(CONFIG_FILE_NAME), &settings)
    }

    /// Writes `tokenizer.json`, `vocab.txt` and `tokenizer_config.json` of a small vocabulary of
    /// English words and word pieces to `directory`, for [`Config::tiny`](crate::config::Config::tiny).
    ///
    /// # Errors
    /// Fails if the operating system refuses to write.
    pub fn write_tiny(directory: &Path) -> Result<()> {
        tiny::write(directory)
    }

    fn new(path: &Path, definition: Definition) -> Result<Self> {
        let vocabulary_size = definition.vocabulary_size();
        let word_pieces = definition.vocabulary.len();
        let (first, last, start) = (definition.first, definition.last, definition.start());
        // The library panics on some inputs that its own checks let through.
        let (inner, cuts) = catch_unwind(AssertUnwindSafe(|| build(definition)))
            .unwrap_or_else(|_| Err("the tokenizers library panicked".into()))
            .map_err(|error| Error::input(path, input::printable(&error.to_string())))?;
        Ok(Self { path: path.to_owned(), inner, cuts, first, last, start, vocabulary_size, word_pieces })
    }

    /// Number of token ids; they are 0, 1, 2, … without gap.
    pub fn vocabulary_size(&self) -> usize {
        self.vocabulary_size
    }

    /// Ids of the tokens that a caption begins and ends with where the Q-Former generates it or learns to:
    /// [`START`] and `[SEP]`. Another `bos_token` of `tokenizer_config.json` takes the place of [`START`];
    /// where there is neither, as in BERT's own tokenizer, it is the id that follows the vocabulary, as which
    /// LAVIS adds it.
    pub fn caption_ends(&self) -> [u32; 2] {
        [self.start, self.last]
    }

    /// The text of token ids: word pieces joined, spaces before punctuation taken out, special tokens
    /// left out.
    ///
    /// # Errors
    /// Fails if an id is not in the vocabulary.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let ids: Vec<u32> = ids.iter().copied().filter(|&id| id != self.start).collect();
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.vocabulary_size) {
            let count = self.vocabulary_size;
            return Err(Error::input(
                &self.path,
                format_args!("has {count} tokens, none of them of id {id}"),
            ));
        }
        self.inner
            .decode(&ids, true)
            .map_err(|error| Error::input(&self.path, input::printable(&error.to_string())))
    }

    /// Checks that word embeddings of `rows` rows have one for every word piece. Added tokens may be
    /// without: transformers adds an `<image>`, for which the Q-Former has no embedding.
    ///
    /// # Errors
    /// Fails if they have not.
    pub fn check_vocabulary(&self, rows: usize) -> Result<()> {
        if self.word_pieces <= rows {
            return Ok(());
        }
        let count = self.word_pieces;
        let what = format_args!("has {count} word pieces, but the model's word embeddings have {rows} rows");
        Err(Error::input(&self.path, what))
    }

    /// Token ids of `text`: `[CLS]`, at most `max_length` - 2 tokens of the text's beginning, `[SEP]`.
    ///
    /// # Errors
    /// Fails if there is nothing to read in `text` (it is empty, blank, or all control characters),
    /// if it is longer than 1 MiB or has 256 KiB without a space or punctuation, or if `max_length` is less
    /// than 3.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<u32>> {
        self.ids(text, max_length).map_err(|what| Error::value(format!("the text {what}")))
    }

    /// [`Tokenizer::encode`] of every text, in parallel.
    ///
    /// # Errors
    /// Fails as `encode` does, naming the text's index.
    pub fn encode_batch<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        max_length: usize,
    ) -> Result<Vec<Vec<u32>>> {
        texts
            .par_iter()
            .enumerate()
            .map(|(index, text)| {
                let ids = self.ids(text.as_ref(), max_length);
                ids.map_err(|what| Error::value(format!("text {index} {what}")))
            })
            .collect()
    }

    /// [`Tokenizer::encode`], with errors that lack their subject.
    fn ids(&self, text: &str, max_length: usize) -> std::result::Result<Vec<u32>, String> {
        if max_length < 3 {
            return Err(format!("does not fit {max_length} tokens; with [CLS] and [SEP] it takes 3 or more"));
        }
        if text.len() > TEXT_BYTES {
            return Err(format!("is {} bytes long; at most {TEXT_BYTES} are read", text.len()));
        }
        let wanted = max_length - 2;
        let mut ids = vec![self.first];
        let mut rest = text;
        while ids.len() <= wanted && !rest.is_empty() {
            let (piece, after) = self.cuts.split(rest)?;
            let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(piece, false)))
                .unwrap_or_else(|_| Err("the tokenizers library panicked".into()))
                .map_err(|error| format!("cannot be tokenized: {}", input::printable(&error.to_string())))?;
            let words = encoding.get_ids();
            ids.extend_from_slice(&words[..words.len().min(wanted + 1 - ids.len())]);
            rest = after;
        }
        if ids.len() == 1 {
            return Err("is blank; there is nothing to encode".into());
        }
        ids.push(self.last);
        Ok(ids)
    }
}

/// The `tokenizer_config.json` in the folder `directory`, or null.
fn configuration(directory: &Path) -> Result<Value> {
    let path = directory.join(CONFIG_FILE_NAME);
    match input::exists(&path) {
        true => input::parse_json(&path, &input::read_text(&path, FILE_BYTES)?),
        false => Ok(Value::Null),
    }
}

/// The library's tokenizer of a checked definition, and where texts for it can be cut.
fn build(definition: Definition) -> tokenizers::Result<(tokenizers::Tokenizer, Cuts)> {
    let cuts = Cuts::new(&definition.added, &definition.normalizer)?;
    // An empty vocabulary of the library's own map type, which it does not export.
    let mut vocabulary = WordPiece::read_bytes(b"")?;
    vocabulary.extend(definition.vocabulary.into_iter().zip(0..));
    let model = WordPiece::builder()
        .vocab(vocabulary)
        .unk_token(definition.unknown)
        .max_input_chars_per_word(definition.characters_per_word)
        .build()?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_normalizer(Some(definition.normalizer))?;
    tokenizer.with_pre_tokenizer(Some(BertPreTokenizer));
    tokenizer.with_decoder(Some(WordPieceDecoder::default()));
    tokenizer.add_tokens(definition.added)?;
    Ok((tokenizer, cuts))
}
