//! Tokenizers of language models: OPT's byte-level BPE, T5's Unigram.

mod definition;
mod tiny;

use super::{FILE_BYTES, FILE_NAME};
use crate::error::{Error, Result};
use crate::input;
use crate::tokenizer::configuration;
use definition::{Definition, Model};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::BPE;
use tokenizers::models::unigram::Unigram;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

/// The files of OPT's tokenizer where there is no `tokenizer.json`.
const BYTE_PAIR_FILE_NAMES: [&str; 2] = ["vocab.json", "merges.txt"];
/// The token that stands for each place of a soft prompt.
const IMAGE: &str = "<image>";
/// Longest text encoded, in bytes: more than any model reads.
const TEXT_BYTES: usize = 1 << 16;

/// A language model's tokenizer, byte-level BPE or Unigram.
///
/// ```
/// use qformer::tokenizer::LanguageTokenizer;
///
/// # fn main() -> qformer::Result<()> {
/// let tokenizer = LanguageTokenizer::load("tests/golden/opt/model".as_ref())?;
/// let ids = tokenizer.encode("a photo of")?;
/// // OPT's texts begin with </s>.
/// assert_eq!((ids[0], tokenizer.decode(&ids)?.as_str()), (2, "a photo of"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct LanguageTokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    /// Ids before a text, and after it.
    ends: [Vec<u32>; 2],
    /// Tokens that are no text, by id.
    special: BTreeMap<u32, String>,
    image: Option<u32>,
    /// The largest id, and one more.
    count: usize,
    /// Tokens of the model itself, without those that were added.
    known: usize,
}

impl LanguageTokenizer {
    /// Reads the tokenizer in the folder `directory`: `tokenizer.json`, or else `vocab.json` with `merges.txt`.
    ///
    /// # Errors
    /// Fails if neither is there, if a file cannot be read or is larger than 8 MiB, and if the tokenizer is of another
    /// kind, named in the message.
    pub fn load(directory: &Path) -> Result<Self> {
        let config = configuration(directory)?;
        let path = directory.join(FILE_NAME);
        if input::exists(&path) {
            let json = input::parse_json(&path, &input::read_text(&path, FILE_BYTES)?)?;
            let definition = Definition::from_json(&json, &config);
            drop(json);
            return Self::new(&path, definition.map_err(|what| Error::input(&path, what))?);
        }
        let [path, merges] = BYTE_PAIR_FILE_NAMES.map(|name| directory.join(name));
        if input::exists(&path) && input::exists(&merges) {
            let json = input::parse_json(&path, &input::read_text(&path, FILE_BYTES)?)?;
            let merges = input::read_text(&merges, FILE_BYTES)?;
            let definition = Definition::from_vocabulary(&json, &merges, &config);
            return Self::new(&path, definition.map_err(|what| Error::input(&path, what))?);
        }
        Err(Error::input(
            directory,
            format_args!(
                "holds neither {FILE_NAME} nor {} with {}; copy the language model's to it",
                BYTE_PAIR_FILE_NAMES[0], BYTE_PAIR_FILE_NAMES[1]
            ),
        ))
    }

    /// `<image>` of [`LanguageTokenizer::write_tiny_opt`]'s tokenizer: it comes after four tokens and all bytes.
    pub const TINY_OPT_IMAGE: u32 = 4 + 256;
    /// `<image>` of [`LanguageTokenizer::write_tiny_t5`]'s tokenizer.
    pub const TINY_T5_IMAGE: u32 = 3 + 256;

    /// Writes the files of a tokenizer as OPT's that knows bytes only to `directory`, for
    /// [`Config::tiny_opt`](crate::config::Config::tiny_opt).
    ///
    /// # Errors
    /// Fails if the operating system refuses to write.
    pub fn write_tiny_opt(directory: &Path) -> Result<()> {
        tiny::write(directory, &["<s>", "<pad>", "</s>", "<unk>"], [Some("</s>"), None])
    }

    /// The same as T5's, for [`Config::tiny_t5`](crate::config::Config::tiny_t5).
    ///
    /// # Errors
    /// Fails if the operating system refuses to write.
    pub fn write_tiny_t5(directory: &Path) -> Result<()> {
        tiny::write(directory, &["<pad>", "</s>", "<unk>"], [None, Some("</s>")])
    }

    fn new(path: &Path, definition: Definition) -> Result<Self> {
        let (count, image) = (definition.count(), definition.special_id(IMAGE));
        let Definition { model, ends, special } = definition;
        let known = model.count();
        // The library panics on some inputs that its own checks let through.
        let inner = catch_unwind(AssertUnwindSafe(|| build(model)))
            .unwrap_or_else(|_| Err("the tokenizers library panicked".into()))
            .map_err(|error| Error::input(path, input::printable(&error.to_string())))?;
        Ok(Self { path: path.to_owned(), inner, ends, special, image, count, known })
    }

    /// The largest id, and one more.
    pub fn vocabulary_size(&self) -> usize {
        self.count
    }

    /// The token that stands for each place of a soft prompt, if there is one.
    pub fn image_token(&self) -> Option<u32> {
        self.image
    }

    /// Checks that token embeddings of `rows` rows have one for every token of the model. They may have more, and added
    /// tokens may be without.
    ///
    /// # Errors
    /// Fails if they have not.
    pub fn check_vocabulary(&self, rows: usize) -> Result<()> {
        if self.known <= rows {
            return Ok(());
        }
        let what = format_args!(
            "has {} tokens, but the language model's embeddings have {rows} rows; tokenizer and model must belong together",
            self.known
        );
        Err(Error::input(&self.path, what))
    }

    /// Token ids of a text, which may be empty, with those that the model's texts begin and end with.
    ///
    /// # Errors
    /// Fails if the text is longer than 64 KiB, holds a special token such as `<image>`, or cannot be tokenized.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let [first, last] = &self.ends;
        Ok([&first[..], &self.encode_part(text)?, last].concat())
    }

    /// Token ids of a text that continues another, without those that texts begin and end with.
    ///
    /// # Errors
    /// As [`LanguageTokenizer::encode`].
    pub fn encode_part(&self, text: &str) -> Result<Vec<u32>> {
        let refuse = |what: String| Err(Error::value(format!("the text {what}")));
        if text.len() > TEXT_BYTES {
            return refuse(format!("is {} bytes long; at most {TEXT_BYTES} are read", text.len()));
        }
        if let Some(token) = self.special.values().find(|token| text.contains(token.as_str())) {
            let token = input::printable(token);
            return refuse(format!("holds {token}, which is a token of its own and no text; leave it out"));
        }
        let encoding = catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, false)))
            .unwrap_or_else(|_| Err("the tokenizers library panicked".into()));
        match encoding {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => refuse(format!("cannot be tokenized: {}", input::printable(&error.to_string()))),
        }
    }

    /// The text of token ids, without special tokens; ids that the tokenizer does not know are no text either.
    ///
    /// # Errors
    /// Fails if the library does.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        let is_text = |id: &u32| (*id as usize) < self.known && !self.special.contains_key(id);
        let ids: Vec<u32> = ids.iter().copied().filter(is_text).collect();
        self.inner
            .decode(&ids, false)
            .map_err(|error| Error::input(&self.path, input::printable(&error.to_string())))
    }

    /// A text that appears token by token.
    pub fn stream(&self) -> TextStream<'_> {
        TextStream { tokenizer: self, ids: Vec::new(), told: 0 }
    }
}

/// A text that appears token by token; its parts are those of the whole.
pub struct TextStream<'a> {
    tokenizer: &'a LanguageTokenizer,
    ids: Vec<u32>,
    /// Bytes of the text that were told.
    told: usize,
}

impl TextStream<'_> {
    /// What the token adds to the text: nothing yet if it ends within a character.
    ///
    /// # Errors
    /// As [`LanguageTokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // Half a character is decoded as one that stands for what cannot be.
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return Ok(String::new());
        }
        Ok(self.tell(text))
    }

    /// What was held back at the end of the text.
    ///
    /// # Errors
    /// As [`LanguageTokenizer::decode`].
    pub fn finish(mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids)?;
        Ok(self.tell(text))
    }

    fn tell(&mut self, text: String) -> String {
        let new = text.get(self.told..).unwrap_or_default().to_owned();
        self.told = self.told.max(text.len());
        new
    }
}

/// The library's tokenizer of a checked definition.
fn build(model: Model) -> tokenizers::Result<tokenizers::Tokenizer> {
    match model {
        Model::BytePairs { vocabulary, merges, add_prefix_space } => {
            // An empty vocabulary of the library's own map type, which it does not export.
            let mut ids = WordPiece::read_bytes(b"")?;
            ids.extend(vocabulary.into_iter().zip(0..));
            let model = BPE::builder().vocab_and_merges(ids, merges).build()?;
            let mut tokenizer = tokenizers::Tokenizer::new(model);
            tokenizer.with_pre_tokenizer(Some(ByteLevel::new(add_prefix_space, true, true)));
            tokenizer.with_decoder(Some(ByteLevel::default()));
            Ok(tokenizer)
        }
        Model::Unigram { vocabulary, unknown, normalizers, spaces, splits } => {
            let mut tokenizer = tokenizers::Tokenizer::new(Unigram::from(vocabulary, Some(unknown), false)?);
            tokenizer.with_normalizer(Some(normalizers::Sequence::new(normalizers)))?;
            let decoder = DecoderWrapper::Metaspace(spaces.clone());
            let spaces = PreTokenizerWrapper::Metaspace(spaces);
            let split = splits.then_some(PreTokenizerWrapper::WhitespaceSplit(WhitespaceSplit));
            tokenizer.with_pre_tokenizer(Some(Sequence::new(split.into_iter().chain([spaces]).collect())));
            tokenizer.with_decoder(Some(decoder));
            Ok(tokenizer)
        }
    }
}
