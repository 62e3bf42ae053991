//! PTX text to tokens. Comments and debug sections disappear here; `.loc` and `.file` lines become one token each.

use super::Untranslated;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// A name with all that hangs on it: `%rd4`, `%tid.x`, `ld.global.nc.L1::no_allocate.v4.u32`, `$L__BB0_2`.
    Word(&'a str),
    /// `.reg`, `.b32`: without the dot.
    Directive(&'a str),
    /// As written: `12`, `0x1fU`, `0f3F800000`, `8.8`.
    Number(&'a str),
    /// What stands between the quotes.
    Text(&'a str),
    /// `.file 1 "a.cu"`: the number and the path of a source file.
    File(u32, &'a str),
    /// `.loc 1 23 5`: the file's number and the line that the next instructions come from.
    Location(u32, u32),
    Symbol(char),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'a> {
    pub(super) kind: Kind<'a>,
    /// Line of the PTX text, counted from 1.
    pub(super) line: usize,
}

/// # Errors
/// A character that PTX does not know.
pub(super) fn lex(ptx: &str) -> Result<Vec<Token<'_>>, Untranslated> {
    let (mut tokens, mut rest, mut line) = (vec![], ptx, 1);
    while let Some(first) = rest.chars().next() {
        let (kind, length) = match first {
            c if c.is_whitespace() => (None, c.len_utf8()),
            '/' if rest.starts_with("//") => (None, until(rest, "\n")),
            '/' if rest.starts_with("/*") => (None, until(rest, "*/") + 2),
            '.' => directive(rest),
            '"' => {
                let end = until(&rest[1..], "\"") + 1;
                (Some(Kind::Text(&rest[1..end])), end + 1)
            }
            c if c.is_ascii_digit() => {
                let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '.')).unwrap_or(rest.len());
                (Some(Kind::Number(&rest[..end])), end)
            }
            c if c.is_ascii_alphabetic() || "_$%".contains(c) => {
                let end = word(rest);
                (Some(Kind::Word(&rest[..end])), end)
            }
            c if "{}[]()<>,;:=+-!|@".contains(c) => (Some(Kind::Symbol(c)), 1),
            c => {
                return Err(Untranslated::new(
                    line,
                    rest.lines().next().unwrap_or(""),
                    &format!("character {c:?}"),
                ));
            }
        };
        tokens.extend(kind.map(|kind| Token { kind, line }));
        let length = length.min(rest.len());
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    Ok(tokens)
}

fn until(text: &str, end: &str) -> usize {
    text.find(end).unwrap_or(text.len())
}

/// Length of the word `text` starts with. A dot or a double colon belongs to it when a letter or digit follows.
fn word(text: &str) -> usize {
    let bytes = text.as_bytes();
    let alphanumeric = |i: usize| bytes.get(i).is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    let mut end = 1;
    loop {
        match bytes.get(end) {
            Some(b'$') => end += 1,
            Some(b'.') if alphanumeric(end + 1) => end += 2,
            Some(b':') if bytes.get(end + 1) == Some(&b':') && alphanumeric(end + 2) => end += 3,
            _ if alphanumeric(end) => end += 1,
            _ => return end,
        }
    }
}

fn directive(text: &str) -> (Option<Kind<'_>>, usize) {
    let end =
        1 + text[1..].find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len() - 1);
    let line_end = until(text, "\n");
    let mut fields = text[end..line_end].split_whitespace().map(|field| field.trim_end_matches(','));
    let mut number = || fields.next().and_then(|field| field.parse().ok()).unwrap_or(0);
    match &text[1..end] {
        "loc" => (Some(Kind::Location(number(), number())), line_end),
        "file" => {
            let path = text[..line_end].split('"').nth(1).unwrap_or("");
            (Some(Kind::File(number(), path)), line_end)
        }
        "section" => (None, until(text, "}") + 1),
        name => (Some(Kind::Directive(name)), end),
    }
}
