//! `generation_config.json`: how a checkpoint's texts are to be generated, by the names of transformers.

use super::{Decoding, EarlyStopping, Search};
use crate::error::{Error, Result};
use crate::input;
use serde_json::{Value, json};
use std::path::Path;

/// Largest file read, in bytes.
const FILE_BYTES: u64 = 1 << 20;

/// What is told of a file that is not as it has to be.
type Parsed<T> = std::result::Result<T, String>;

/// What `max_length` and `min_length` of a model count, where the file does not give `max_new_tokens` and
/// `min_new_tokens`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lengths {
    /// The new tokens and the one that the decoder begins with.
    WithStart,
    /// The prompt too: they say nothing of how much is new, and are not read.
    WithPrompt,
}

/// A number of new tokens, and the field that states it.
struct NewTokens {
    new: usize,
    field: &'static str,
    /// The field's value.
    stated: usize,
}

impl Decoding {
    /// Name of the file within a checkpoint's folder.
    pub const FILE_NAME: &str = "generation_config.json";

    /// What suits the checkpoint in the folder `directory`: what its `generation_config.json` says, if there is one, and
    /// for the rest `default`, within `most` new tokens.
    ///
    /// # Errors
    /// Fails if the file cannot be read, if a value is not of its type or out of its range, and if more tokens are to be
    /// generated than `most`; names the field.
    pub fn load(directory: &Path, default: Self, lengths: Lengths, most: usize) -> Result<Self> {
        let default = default.within(most);
        let Some(json) = read_file(directory)? else { return Ok(default) };
        let path = directory.join(Self::FILE_NAME);
        let decoding = Self::from_json(&json, default, lengths, most);
        let decoding = decoding.map_err(|what| Error::input(&path, what))?;
        decoding.validate().map_err(|error| Error::input(&path, error.message_with(field_of)))?;
        Ok(decoding)
    }

    /// The same for captions by a Q-Former's own head, which with `[DEC]` have at most `longest` tokens, by default as LAVIS
    /// has them ([`Decoding::default`]).
    ///
    /// # Errors
    /// As [`Decoding::load`].
    pub fn load_for_captions(directory: &Path, longest: usize) -> Result<Self> {
        Self::load(directory, Self::default(), Lengths::WithStart, longest.saturating_sub(1))
    }

    fn from_json(json: &Value, default: Self, lengths: Lengths, most: usize) -> Parsed<Self> {
        let new_tokens = |new: &'static str, all: &'static str| -> Parsed<Option<NewTokens>> {
            if let Some(stated) = count(json, new)? {
                return Ok(Some(NewTokens { new: stated, field: new, stated }));
            }
            let of_all = match lengths {
                Lengths::WithStart => count(json, all)?,
                Lengths::WithPrompt => None,
            };
            Ok(of_all.map(|stated| NewTokens { new: stated.saturating_sub(1), field: all, stated }))
        };
        let max_new_tokens = match new_tokens("max_new_tokens", "max_length")? {
            Some(NewTokens { new, field, stated }) if new > most => {
                let reads = most + stated - new;
                return Err(format!("{field} is {stated}, but the model has room for {reads}; lower it"));
            }
            found => found.map_or(default.max_new_tokens, |found| found.new),
        };
        let min_new_tokens = new_tokens("min_new_tokens", "min_length")?
            .map_or(default.min_new_tokens.min(max_new_tokens), |found| found.new);
        let search = if flag(json, "do_sample")? {
            Search::Sample {
                top_k: count(json, "top_k")?.unwrap_or(Search::TOP_K),
                top_p: number(json, "top_p")?.unwrap_or(Search::TOP_P),
                temperature: number(json, "temperature")?.unwrap_or(1.0),
                seed: Search::SEED,
                first: 0,
            }
        } else {
            let default_beams = match default.search {
                Search::Beam { beams, .. } => beams,
                Search::Sample { .. } => 1,
            };
            Search::Beam {
                beams: count(json, "num_beams")?.unwrap_or(default_beams),
                length_penalty: number(json, "length_penalty")?.unwrap_or(1.0),
                early_stopping: early_stopping(json)?,
            }
        };
        Ok(Self {
            search,
            max_new_tokens,
            min_new_tokens,
            repetition_penalty: number(json, "repetition_penalty")?.unwrap_or(default.repetition_penalty),
            no_repeat_ngram_size: count(json, "no_repeat_ngram_size")?
                .unwrap_or(default.no_repeat_ngram_size),
            sequences: count(json, "num_return_sequences")?.unwrap_or(default.sequences),
        })
    }

    /// The `generation_config.json` of a checkpoint whose texts are to be generated so; a seed has no place in it.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "do_sample": matches!(self.search, Search::Sample { .. }),
            "max_new_tokens": self.max_new_tokens,
            "min_new_tokens": self.min_new_tokens,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "num_return_sequences": self.sequences,
            "repetition_penalty": self.repetition_penalty,
        });
        match self.search {
            Search::Beam { beams, length_penalty, early_stopping } => {
                json["num_beams"] = beams.into();
                json["length_penalty"] = length_penalty.into();
                json["early_stopping"] = match early_stopping {
                    EarlyStopping::Heuristic => false.into(),
                    EarlyStopping::AtOnce => true.into(),
                    EarlyStopping::Never => "never".into(),
                };
            }
            Search::Sample { top_k, top_p, temperature, .. } => {
                json["top_k"] = top_k.into();
                json["top_p"] = top_p.into();
                json["temperature"] = temperature.into();
            }
        }
        json
    }
}

/// The tokens that end a text of the checkpoint in the folder `directory`: the `eos_token_id` of its
/// `generation_config.json`, a number or a list, or else `default`.
///
/// # Errors
/// Fails if the file cannot be read, and if the field is neither.
pub fn stop_tokens(directory: &Path, default: &[usize]) -> Result<Vec<usize>> {
    let json = read_file(directory)?;
    let field = json.as_ref().and_then(|json| json.get("eos_token_id")).filter(|value| !value.is_null());
    let Some(field) = field else { return Ok(default.to_vec()) };
    let token = |value: &Value| value.as_u64().and_then(|token| usize::try_from(token).ok());
    let tokens = match field {
        Value::Array(tokens) => tokens.iter().map(token).collect(),
        one => token(one).map(|token| vec![token]),
    };
    tokens.ok_or_else(|| {
        let value = input::printable(&field.to_string());
        let what = format!(
            "eos_token_id is {value}; it has to be an integer that is not negative, or a list of such"
        );
        Error::input(&directory.join(Decoding::FILE_NAME), what)
    })
}

/// The file's object, if there is a file.
fn read_file(directory: &Path) -> Result<Option<Value>> {
    let path = directory.join(Decoding::FILE_NAME);
    if !input::exists(&path) {
        return Ok(None);
    }
    let json = input::parse_json(&path, &input::read_text(&path, FILE_BYTES)?)?;
    if !json.is_object() {
        let what = "is not a JSON object; copy it again from the checkpoint, or remove it";
        return Err(Error::input(&path, what));
    }
    Ok(Some(json))
}

fn early_stopping(json: &Value) -> Parsed<EarlyStopping> {
    let found = read(json, "early_stopping", "true, false or \"never\"", |value| match value {
        Value::Bool(true) => Some(EarlyStopping::AtOnce),
        Value::Bool(false) => Some(EarlyStopping::Heuristic),
        other => (other == "never").then_some(EarlyStopping::Never),
    })?;
    Ok(found.unwrap_or_default())
}

/// What the file calls a setting of [`Decoding`].
fn field_of(setting: &str) -> String {
    let field = match setting {
        "beams" => "num_beams",
        "sequences" => "num_return_sequences",
        same => same,
    };
    field.to_owned()
}

fn count(json: &Value, field: &str) -> Parsed<Option<usize>> {
    read(json, field, "an integer that is not negative", |value| {
        value.as_u64().and_then(|count| usize::try_from(count).ok())
    })
}

fn number(json: &Value, field: &str) -> Parsed<Option<f64>> {
    read(json, field, "a number", Value::as_f64)
}

fn flag(json: &Value, field: &str) -> Parsed<bool> {
    read(json, field, "true or false", Value::as_bool).map(|value| value.unwrap_or(false))
}

/// The field `field`, unless it is absent or null.
fn read<T>(
    json: &Value,
    field: &str,
    allowed: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Parsed<Option<T>> {
    match json.get(field).filter(|value| !value.is_null()) {
        None => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| {
            format!("{field} is {}; it has to be {allowed}", input::printable(&value.to_string()))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, most: usize) -> Result<Decoding> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(Decoding::FILE_NAME), text).unwrap();
        Decoding::load(folder.path(), Decoding::default(), Lengths::WithStart, most)
    }

    #[test]
    fn what_is_written_is_read() {
        let searched = Decoding {
            search: Search::Beam { beams: 5, length_penalty: -0.5, early_stopping: EarlyStopping::Never },
            max_new_tokens: 20,
            min_new_tokens: 3,
            repetition_penalty: 1.5,
            no_repeat_ngram_size: 3,
            sequences: 2,
        };
        let drawn = Decoding {
            search: Search::Sample { top_k: 0, top_p: 0.7, temperature: 2.0, seed: 42, first: 0 },
            ..searched
        };
        for decoding in [searched, drawn] {
            assert_eq!(load(&decoding.to_json().to_string(), 20).unwrap(), decoding);
        }
    }

    #[test]
    fn what_is_not_said_is_as_lavis_has_it_but_no_longer_than_there_is_room_for() {
        let folder = tempfile::tempdir().unwrap();
        let default = Decoding::default();
        let short = |max_new_tokens, min_new_tokens| Decoding { max_new_tokens, min_new_tokens, ..default };
        let absent = |most| Decoding::load(folder.path(), default, Lengths::WithStart, most).unwrap();
        assert_eq!(absent(511), default);
        assert_eq!(absent(19), short(19, 9));
        assert_eq!(absent(5), short(5, 5));
        let foreign = r#"{"_from_model_config": true, "eos_token_id": 3, "max_length": null}"#;
        assert_eq!(load(foreign, 19).unwrap(), short(19, 9));
        assert_eq!(load(r#"{"max_length": 8}"#, 19).unwrap(), short(7, 7));
        assert_eq!(load(r#"{"max_length": 8, "max_new_tokens": 9}"#, 19).unwrap(), short(9, 9));
        let drawn = load(r#"{"do_sample": true, "temperature": 0.5}"#, 19).unwrap();
        let search = Search::Sample { top_k: 50, top_p: 0.9, temperature: 0.5, seed: 42, first: 0 };
        assert_eq!(drawn, Decoding { search, ..short(19, 9) });
    }

    #[test]
    fn lengths_that_count_the_prompt_are_not_taken_for_new_tokens() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"max_length": 4000, "min_new_tokens": 2}"#;
        std::fs::write(folder.path().join(Decoding::FILE_NAME), text).unwrap();
        let found = Decoding::load(folder.path(), Decoding::default(), Lengths::WithPrompt, 19).unwrap();
        assert_eq!([found.min_new_tokens, found.max_new_tokens], [2, 19]);
    }

    #[test]
    fn a_text_ends_as_the_file_says_or_else_as_the_configuration_does() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(stop_tokens(folder.path(), &[2]).unwrap(), [2]);
        for (text, expected) in [
            ("{}", Ok(vec![2])),
            (r#"{"eos_token_id": 50118}"#, Ok(vec![50118])),
            (r#"{"eos_token_id": [7, 9]}"#, Ok(vec![7, 9])),
            (r#"{"eos_token_id": "x"}"#, Err(r#"eos_token_id is "x""#)),
            (r#"{"eos_token_id": [-1]}"#, Err("eos_token_id is [-1]")),
        ] {
            std::fs::write(folder.path().join(Decoding::FILE_NAME), text).unwrap();
            match (stop_tokens(folder.path(), &[2]), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(error), Err(fragment)) => assert!(error.to_string().contains(fragment), "{error}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_the_name_of_its_field() {
        for (text, fragment) in [
            (r#"{"max_length": 21}"#, "max_length is 21, but the model has room for 20"),
            (r#"{"max_new_tokens": 21}"#, "max_new_tokens is 21, but the model has room for 19"),
            (r#"{"max_length": "x"}"#, r#"max_length is "x"; it has to be an integer"#),
            (r#"{"num_beams": -1}"#, "num_beams is -1"),
            (r#"{"num_beams": 1.5}"#, "num_beams is 1.5"),
            (r#"{"length_penalty": []}"#, "length_penalty is []; it has to be a number"),
            (r#"{"early_stopping": 1}"#, "early_stopping is 1; it has to be true, false or \"never\""),
            (r#"{"do_sample": 1}"#, "do_sample is 1; it has to be true or false"),
            (r#"{"min_length": 19, "max_length": 18}"#, "min_new_tokens 18 is more than max_new_tokens 17"),
            (r#"{"num_return_sequences": 4}"#, "num_return_sequences 4 is more than num_beams 3"),
            (r#"[]"#, "is not a JSON object"),
            (r#"{"num_beams": 1, "num_beams": 2}"#, "num_beams"),
        ] {
            let error = load(text, 19).unwrap_err().to_string();
            assert!(error.contains(Decoding::FILE_NAME) && error.contains(fragment), "{error}");
        }
    }
}
