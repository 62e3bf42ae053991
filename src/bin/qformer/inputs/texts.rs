//! Texts, from the command line to token ids.

use crate::Remarks;
use clap::Args;
use qformer::data::TextList;
use qformer::{Error, PipelineBuilder, Result};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Where texts come from.
#[derive(Args)]
#[group(id = "text_source", multiple = false)]
pub(crate) struct TextArguments {
    /// Texts
    #[arg(long, value_name = "TEXT", num_args = 1..)]
    pub(crate) text: Vec<String>,
    /// File with a text in every line
    #[arg(long, value_name = "FILE")]
    pub(crate) texts_file: Option<PathBuf>,
}

/// Texts that are tokenized and encoded at a time.
const TEXTS_AT_A_TIME: usize = 4096;

/// Texts and their token ids, one each.
#[derive(Default)]
pub(crate) struct Texts {
    pub(crate) texts: TextList,
    tokens: TokenLists,
}

/// Token ids of many texts, one text after the other.
#[derive(Default)]
struct TokenLists {
    ids: Vec<u32>,
    /// Where each text's end.
    ends: Vec<usize>,
}

impl TextArguments {
    /// The texts that were asked for, perhaps none.
    pub(crate) fn read(&self) -> Result<TextList> {
        let Some(path) = &self.texts_file else {
            let mut texts = TextList::default();
            let texts_given = self.text.iter().enumerate();
            texts_given.into_iter().try_for_each(|(index, text)| {
                texts.push(text).map_err(|what| Error::usage(format!("text {index}: {what}")))
            })?;
            return Ok(texts);
        };
        read_lines(path)
    }
}

/// The texts in the lines of a file.
pub(crate) fn read_lines(path: &Path) -> Result<TextList> {
    let mut texts = TextList::default();
    let failed = |error| Error::io(path, "read", error);
    let mut file = BufReader::new(File::open(path).map_err(failed)?);
    let (mut line, mut number, mut before) = (Vec::new(), 0, 0);
    while file.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        number += 1;
        let text = str::from_utf8(&line).map_err(|error| {
            Error::input(path, format_args!("not UTF-8 at byte {}", before + error.valid_up_to()))
        })?;
        let text = text.strip_suffix('\n').map_or(text, |text| text.strip_suffix('\r').unwrap_or(text));
        if text.trim().is_empty() {
            return Err(Error::input(path, format_args!("line {number} is blank; remove it")));
        }
        texts.push(text).map_err(|what| Error::input(path, format_args!("line {number}: {what}")))?;
        before += line.len();
        line.clear();
    }
    if texts.is_empty() {
        return Err(Error::input(path, "holds no text"));
    }
    Ok(texts)
}

impl Texts {
    /// Tokenizes `texts` as the model does. Of a text that is longer than the model reads the beginning is kept, with a
    /// warning.
    pub(crate) fn encode(texts: TextList, model: &PipelineBuilder, remarks: Remarks) -> Result<Self> {
        if texts.is_empty() {
            return Ok(Self::default());
        }
        let qformer = &model.config().qformer;
        if !qformer.use_qformer_text_input {
            return Err(Error::usage(format!(
                "{}: the Q-Former reads no text (use_qformer_text_input is false in config.json); \
                 give images alone, or a checkpoint of Blip2ForImageTextRetrieval",
                model.checkpoint().path().display()
            )));
        }
        let tokenizer = model.tokenizer()?;
        let longest = qformer.max_position_embeddings;
        let mut lists = TokenLists::default();
        for some in parts(texts.len()) {
            let first = some.start;
            let some: Vec<&str> = some.map(|index| texts.get(index)).collect();
            // One token more than fits tells which texts were longer.
            for (index, mut tokens) in tokenizer.encode_batch(&some, longest + 1)?.into_iter().enumerate() {
                if tokens.len() > longest {
                    let index = first + index;
                    remarks.warning(format_args!(
                        "text {index} is longer than the {longest} tokens that the model reads; the rest is cut off"
                    ));
                    // The last but one: the very last is [SEP].
                    tokens.remove(longest - 1);
                }
                lists.ids.extend(tokens);
                lists.ends.push(lists.ids.len());
            }
        }
        Ok(Self { texts, tokens: lists })
    }

    /// How many they are.
    pub(crate) fn len(&self) -> usize {
        self.tokens.ends.len()
    }

    /// Numbers of texts, a part of all at a time.
    pub(crate) fn parts(&self) -> impl Iterator<Item = Range<usize>> {
        parts(self.len())
    }

    /// Token ids of some of the texts.
    pub(crate) fn tokens(&self, texts: impl IntoIterator<Item = usize>) -> Vec<Vec<u32>> {
        let TokenLists { ids, ends } = &self.tokens;
        let of_text = |text: usize| {
            let start = text.checked_sub(1).map_or(0, |before| ends[before]);
            ids[start..ends[text]].to_vec()
        };
        texts.into_iter().map(of_text).collect()
    }
}

fn parts(count: usize) -> impl Iterator<Item = Range<usize>> {
    (0..count).step_by(TEXTS_AT_A_TIME).map(move |first| first..count.min(first + TEXTS_AT_A_TIME))
}
