//! What all kinds of `tokenizer.json` have: types of components, vocabularies and added tokens.

use crate::input::printable;
use serde_json::Value;
use tokenizers::AddedToken;

/// What is read; the error is a sentence without the file's name.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// Most tokens of a vocabulary: BERT's largest, that of a hundred languages, has 119547.
pub(super) const TOKENS: usize = 1 << 17;

/// Most added tokens.
pub(super) const ADDED: usize = 1 << 10;

/// Longest added token, in bytes.
pub(super) const ADDED_BYTES: usize = 256;

/// Fails unless `json[part]` is of the type `supported`.
pub(super) fn expect_type(json: &Value, part: &str, supported: &str) -> Parsed<()> {
    let kind = &json[part]["type"];
    if kind == supported {
        return Ok(());
    }
    let kind = kind.as_str().unwrap_or("not given");
    Err(format!("the {part} is {}; only {supported} is supported", printable(kind)))
}

/// Tokens by id, from an object of ids by token.
pub(super) fn vocabulary(ids: &Value) -> Parsed<Vec<String>> {
    let Some(ids) = ids.as_object() else {
        return Err("the model's vocab is not an object".into());
    };
    if ids.len() > TOKENS {
        return Err(format!("has more than {TOKENS} tokens"));
    }
    let mut tokens = vec![None; ids.len()];
    for (token, id) in ids {
        let place = id.as_u64().and_then(|id| usize::try_from(id).ok()).and_then(|id| tokens.get_mut(id));
        match place {
            Some(place @ None) => *place = Some(token.clone()),
            _ => {
                let (token, id) = (printable(token), printable(&id.to_string()));
                let count = ids.len();
                return Err(format!(
                    "the token \"{token}\" has the id {id}; the ids of {count} tokens have to be 0 to {count} - 1, each once"
                ));
            }
        }
    }
    Ok(tokens.into_iter().flatten().collect())
}

/// An entry of `added_tokens`, with its id.
pub(super) fn added_token(json: &Value) -> Parsed<(u64, AddedToken)> {
    let (Some(id), Some(content)) = (json["id"].as_u64(), json["content"].as_str()) else {
        return Err("an added token lacks its id or content".into());
    };
    if content.is_empty() {
        return Err(format!("the added token {id} is empty"));
    }
    if content.len() > ADDED_BYTES {
        return Err(format!("the added token {id} is longer than {ADDED_BYTES} bytes"));
    }
    let flag = |name: &str| {
        json[name].as_bool().ok_or_else(|| format!("{name} of added token {id} is not true or false"))
    };
    let token = AddedToken::from(content, flag("special")?)
        .single_word(flag("single_word")?)
        .lstrip(flag("lstrip")?)
        .rstrip(flag("rstrip")?)
        .normalized(flag("normalized")?);
    Ok((id, token))
}
