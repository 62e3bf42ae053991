//! Reading fields of JSON objects: types, names and defaults. Bounds are checked in `validate`.

use super::activation::Activation;
use crate::input::printable;
use serde_json::{Map, Value};

/// What is read; the error is a sentence without the file's name.
pub(super) type Parsed<T> = std::result::Result<T, String>;

/// One object of the file, under its name.
pub(super) struct Section<'a> {
    name: &'static str,
    fields: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    /// `value` as the object that it has to be, if it is there at all.
    pub(super) fn new(name: &'static str, value: Option<&'a Value>) -> Parsed<Self> {
        match value {
            None | Some(Value::Null) if !name.is_empty() => Ok(Self { name, fields: None }),
            Some(Value::Object(fields)) => Ok(Self { name, fields: Some(fields) }),
            _ if name.is_empty() => Err("not a JSON object".into()),
            _ => Err(format!("{name} is not an object")),
        }
    }

    pub(super) fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.and_then(|fields| fields.get(field))
    }

    /// The sentence about `field`, whose value is `value` instead of `allowed`.
    fn complaint(&self, field: &str, value: impl ToString, allowed: &str) -> String {
        let dot = if self.name.is_empty() { "" } else { "." };
        let value = printable(&value.to_string());
        let value = if value.is_empty() { "absent" } else { &value };
        format!("{}{dot}{field} is {value}; it has to be {allowed}", self.name)
    }

    /// The field `field` as `read` takes it, `default` where it is absent.
    fn field<T>(
        &self,
        field: &str,
        default: T,
        allowed: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Parsed<T> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => read(value).ok_or_else(|| self.complaint(field, value, allowed)),
        }
    }

    pub(super) fn integer(&self, field: &str, default: usize) -> Parsed<usize> {
        self.field(field, default, "an integer that is not negative", integer)
    }

    /// An integer where there is one: null is as good as absent.
    pub(super) fn optional_integer(&self, field: &str) -> Parsed<Option<usize>> {
        match self.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(_) => self.integer(field, 0).map(Some),
        }
    }

    /// A token where there is one: old files have -1 in place of null.
    pub(super) fn token(&self, field: &str, default: Option<usize>) -> Parsed<Option<usize>> {
        let allowed = "an integer that is not negative, or null";
        self.field(field, default, allowed, |value| match value {
            Value::Null => Some(None),
            value if value.as_i64() == Some(-1) => Some(None),
            value => integer(value).map(Some),
        })
    }

    /// Tokens: a number, a list, or null for none.
    pub(super) fn tokens(&self, field: &str, default: usize) -> Parsed<Vec<usize>> {
        let allowed = "an integer that is not negative, a list of such, or null";
        self.field(field, vec![default], allowed, |value| match value {
            Value::Null => Some(Vec::new()),
            Value::Array(values) => values.iter().map(integer).collect(),
            value => integer(value).map(|token| vec![token]),
        })
    }

    pub(super) fn number(&self, field: &str, default: f64) -> Parsed<f64> {
        self.field(field, default, "a number", Value::as_f64)
    }

    pub(super) fn boolean(&self, field: &str, default: bool) -> Parsed<bool> {
        self.field(field, default, "true or false", Value::as_bool)
    }

    fn text(&self, field: &str, default: &'a str) -> Parsed<&'a str> {
        self.field(field, default, "a string", Value::as_str)
    }

    /// What the string `field` stands for by the list `names`.
    pub(super) fn named<T: Copy>(
        &self,
        field: &str,
        default: &'static str,
        names: &[(&'static str, T)],
    ) -> Parsed<T> {
        let text = self.text(field, default)?;
        match names.iter().find(|(name, _)| *name == text) {
            Some((_, meaning)) => Ok(*meaning),
            None => Err(self.complaint(field, text, &one_of(names))),
        }
    }

    pub(super) fn activation(&self, field: &str, default: Activation) -> Parsed<Activation> {
        self.field(field, default, &format!("one of {}", quoted(&Activation::NAMES)), |value| {
            value.as_str().and_then(Activation::named)
        })
    }

    /// Refuses any value of `field` but `supported`.
    pub(super) fn only(&self, field: &str, supported: &Value) -> Parsed<()> {
        self.field(field, (), &supported.to_string(), |value| (value == supported).then_some(()))
    }

    /// Refuses any number in `field` but `supported`, however it is written.
    pub(super) fn only_number(&self, field: &str, supported: f64) -> Parsed<()> {
        let is_supported = |value: &Value| (value.as_f64() == Some(supported)).then_some(());
        self.field(field, (), &supported.to_string(), is_supported)
    }
}

fn integer(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|value| usize::try_from(value).ok())
}

fn quoted<T>(names: &[(&'static str, T)]) -> String {
    names.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")
}

/// `"a", "b" or "c"`
fn one_of<T>(names: &[(&'static str, T)]) -> String {
    match names {
        [first @ .., (last, _)] if !first.is_empty() => format!("{} or \"{last}\"", quoted(first)),
        names => quoted(names),
    }
}

/// Tokens as [`Section::tokens`] reads them.
pub(super) fn tokens_json(tokens: &[usize]) -> Value {
    match tokens {
        [] => Value::Null,
        [token] => (*token).into(),
        tokens => tokens.into(),
    }
}
