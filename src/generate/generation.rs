//! `generation_config.json`: how a checkpoint's captions are to be found, by the names of transformers.

use super::{Decoding, Search};
use crate::error::{Error, Result};
use crate::input;
use serde_json::{Value, json};
use std::path::Path;

/// Largest file read, in bytes.
const FILE_BYTES: u64 = 1 << 20;

impl Decoding {
    /// Name of the file within a checkpoint's folder.
    pub const FILE_NAME: &str = "generation_config.json";

    /// The same for a model that reads texts of at most `longest` tokens.
    pub fn within(self, longest: usize) -> Self {
        let max_length = self.max_length.min(longest);
        Self { max_length, min_length: self.min_length.min(max_length), ..self }
    }

    /// What suits the checkpoint in the folder `directory`, whose model reads texts of at most `longest` tokens:
    /// what its `generation_config.json` says, if there is one, and for the rest what LAVIS does
    /// ([`Decoding::default`], [within](Decoding::within) that length).
    ///
    /// # Errors
    /// Fails if the file cannot be read, if a value is not of its type or out of its range, and if captions
    /// are to be longer than the model reads; names the field.
    pub fn load(directory: &Path, longest: usize) -> Result<Self> {
        let path = directory.join(Self::FILE_NAME);
        if !input::exists(&path) {
            return Ok(Self::default().within(longest));
        }
        let json = input::parse_json(&path, &input::read_text(&path, FILE_BYTES)?)?;
        let decoding = Self::from_json(&json, longest).map_err(|what| Error::input(&path, what))?;
        decoding.validate().map_err(|error| Error::input(&path, error.message_with(field_of)))?;
        Ok(decoding)
    }

    fn from_json(json: &Value, longest: usize) -> std::result::Result<Self, String> {
        if !json.is_object() {
            return Err("is not a JSON object; copy it again from the checkpoint, or remove it".into());
        }
        let default = Self::default().within(longest);
        let max_length = count(json, "max_length")?.unwrap_or(default.max_length);
        if max_length > longest {
            return Err(format!(
                "max_length is {max_length}, but the model reads {longest} tokens; lower it"
            ));
        }
        let search = if flag(json, "do_sample")? {
            let top_p = number(json, "top_p")?.unwrap_or(Search::TOP_P);
            let temperature = number(json, "temperature")?.unwrap_or(1.0);
            Search::Nucleus { top_p, temperature, seed: Search::SEED, first: 0 }
        } else {
            let beams = count(json, "num_beams")?.unwrap_or(Search::BEAMS);
            let length_penalty = number(json, "length_penalty")?.unwrap_or(1.0);
            Search::Beam { beams, length_penalty }
        };
        Ok(Self {
            search,
            max_length,
            min_length: count(json, "min_length")?.unwrap_or(default.min_length.min(max_length)),
            repetition_penalty: number(json, "repetition_penalty")?.unwrap_or(default.repetition_penalty),
            sequences: count(json, "num_return_sequences")?.unwrap_or(default.sequences),
        })
    }

    /// The `generation_config.json` of a checkpoint whose captions are to be found so; a seed has no place in it.
    pub fn to_json(&self) -> Value {
        let mut json = json!({
            "do_sample": matches!(self.search, Search::Nucleus { .. }),
            "max_length": self.max_length,
            "min_length": self.min_length,
            "num_return_sequences": self.sequences,
            "repetition_penalty": self.repetition_penalty,
        });
        match self.search {
            Search::Beam { beams, length_penalty } => {
                json["num_beams"] = beams.into();
                json["length_penalty"] = length_penalty.into();
            }
            Search::Nucleus { top_p, temperature, .. } => {
                json["top_p"] = top_p.into();
                json["temperature"] = temperature.into();
            }
        }
        json
    }
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

fn count(json: &Value, field: &str) -> std::result::Result<Option<usize>, String> {
    read(json, field, "an integer that is not negative", |value| {
        value.as_u64().and_then(|count| usize::try_from(count).ok())
    })
}

fn number(json: &Value, field: &str) -> std::result::Result<Option<f64>, String> {
    read(json, field, "a number", Value::as_f64)
}

fn flag(json: &Value, field: &str) -> std::result::Result<bool, String> {
    read(json, field, "true or false", Value::as_bool).map(|value| value.unwrap_or(false))
}

/// The field `field`, unless it is absent or null.
fn read<T>(
    json: &Value,
    field: &str,
    allowed: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> std::result::Result<Option<T>, String> {
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

    fn load(text: &str, longest: usize) -> Result<Decoding> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(Decoding::FILE_NAME), text).unwrap();
        Decoding::load(folder.path(), longest)
    }

    #[test]
    fn what_is_written_is_read() {
        let searched = Decoding {
            search: Search::Beam { beams: 5, length_penalty: -0.5 },
            max_length: 20,
            min_length: 3,
            repetition_penalty: 1.5,
            sequences: 2,
        };
        let drawn = Decoding {
            search: Search::Nucleus { top_p: 0.7, temperature: 2.0, seed: 42, first: 0 },
            ..searched
        };
        for decoding in [searched, drawn] {
            assert_eq!(load(&decoding.to_json().to_string(), 20).unwrap(), decoding);
        }
    }

    #[test]
    fn what_is_not_said_is_as_lavis_has_it_but_no_longer_than_the_model_reads() {
        let folder = tempfile::tempdir().unwrap();
        let short = |max_length, min_length| Decoding { max_length, min_length, ..Decoding::default() };
        assert_eq!(Decoding::load(folder.path(), 512).unwrap(), Decoding::default());
        assert_eq!(Decoding::load(folder.path(), 20).unwrap(), short(20, 10));
        assert_eq!(Decoding::load(folder.path(), 6).unwrap(), short(6, 6));
        let foreign = r#"{"_from_model_config": true, "eos_token_id": 3, "max_length": null}"#;
        assert_eq!(load(foreign, 20).unwrap(), short(20, 10));
        assert_eq!(load(r#"{"max_length": 8}"#, 20).unwrap(), short(8, 8));
        let drawn = load(r#"{"do_sample": true, "temperature": 0.5}"#, 20).unwrap();
        let search = Search::Nucleus { top_p: 0.9, temperature: 0.5, seed: 42, first: 0 };
        assert_eq!(drawn, Decoding { search, ..short(20, 10) });
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_the_name_of_its_field() {
        for (text, fragment) in [
            (r#"{"max_length": 21}"#, "max_length is 21, but the model reads 20"),
            (r#"{"max_length": "x"}"#, r#"max_length is "x"; it has to be an integer"#),
            (r#"{"num_beams": -1}"#, "num_beams is -1"),
            (r#"{"num_beams": 1.5}"#, "num_beams is 1.5"),
            (r#"{"length_penalty": []}"#, "length_penalty is []; it has to be a number"),
            (r#"{"do_sample": 1}"#, "do_sample is 1; it has to be true or false"),
            (r#"{"min_length": 19, "max_length": 18}"#, "min_length 19 is more than max_length 18"),
            (r#"{"num_return_sequences": 4}"#, "num_return_sequences 4 is more than num_beams 3"),
            (r#"[]"#, "is not a JSON object"),
            (r#"{"num_beams": 1, "num_beams": 2}"#, "num_beams"),
        ] {
            let error = load(text, 20).unwrap_err().to_string();
            assert!(error.contains(Decoding::FILE_NAME) && error.contains(fragment), "{error}");
        }
    }
}
