//! The crate's one error type: a kind, which decides the exit code, and a sentence that names the
//! file, tensor or setting at fault and the remedy.

use std::fmt;
use std::path::Path;

/// Result of every fallible call of the crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in the terms of who can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// The call or the command line asks for something that cannot be done.
    Usage,
    /// A file or value given to the crate is not what it should be.
    Input,
    /// The operating system refused to read or write.
    Io,
    /// Memory for weights or activations is not to be had.
    OutOfMemory,
    /// The device asked for is not there or failed.
    Device,
}

/// An error: its [`Kind`], a message for people, and the operating system's own error where it refused something
/// ([`source`](std::error::Error::source)).
///
/// ```
/// use qformer::{Config, error::Kind};
/// use std::error::Error;
///
/// let error = Config::load("no/such/folder".as_ref()).unwrap_err();
/// assert_eq!(error.kind(), Kind::Io);
/// let refusal = error.source().and_then(|source| source.downcast_ref::<std::io::Error>());
/// assert_eq!(refusal.unwrap().kind(), std::io::ErrorKind::NotFound);
/// ```
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<std::io::Error>,
    /// Those that the message names.
    settings: Vec<&'static str>,
}

impl Error {
    fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None, settings: Vec::new() }
    }

    /// A request that cannot be carried out as made.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Something wrong in `path`.
    pub fn input(path: &Path, what: impl fmt::Display) -> Self {
        Self::new(Kind::Input, format!("{}: {what}", path.display()))
    }

    /// A value, not tied to a file, that is not what it should be.
    pub fn value(message: impl Into<String>) -> Self {
        Self::new(Kind::Input, message)
    }

    /// The operating system's refusal while doing `what` ("open", "write", …) to `path`.
    pub fn io(path: &Path, what: &str, source: std::io::Error) -> Self {
        let message = format!("cannot {what} {}: {source}", path.display());
        Self { source: Some(source), ..Self::new(Kind::Io, message) }
    }

    /// `bytes` of memory, wanted for `purpose`, are not available.
    pub fn out_of_memory(bytes: usize, purpose: &str) -> Self {
        let message = format!("cannot allocate {} of memory for {purpose}", Size(bytes));
        Self::new(Kind::OutOfMemory, message)
    }

    /// The same, of `bytes` for work on `items` (as `what` names them) at a time: tells how many would fit
    /// in the `free` bytes that there are, if that is known.
    pub(crate) fn for_batch(self, items: usize, what: &str, bytes: usize, free: Option<usize>) -> Self {
        if self.kind != Kind::OutOfMemory {
            return self;
        }
        let fit = match free {
            Some(free) => {
                let fit = items as u128 * free as u128 / bytes.max(1) as u128;
                format!(": {} are free, enough for about {fit} of the {items} {what}", Size(free))
            }
            None => String::new(),
        };
        Self { message: format!("{}{fit}; use a smaller batch", self.message), ..self }
    }

    /// The same with something more to know.
    pub(crate) fn with(self, more: impl fmt::Display) -> Self {
        Self { message: format!("{}; {more}", self.message), ..self }
    }

    /// The device asked for cannot be used.
    pub fn device(message: impl Into<String>) -> Self {
        Self::new(Kind::Device, message)
    }

    /// The same; its message names these settings between backticks, as in "`lr_min` is more than `lr`".
    pub(crate) fn naming(self, settings: &[&'static str]) -> Self {
        debug_assert!(settings.iter().all(|name| self.message.contains(&format!("`{name}`"))), "{self:?}");
        Self { settings: settings.to_vec(), ..self }
    }

    /// The fields, or arguments, that it is about: the message has their names between backticks.
    pub fn settings(&self) -> &[&'static str] {
        &self.settings
    }

    /// The message for people who know a setting by another name, such as a command line's flag: `name_of` tells
    /// it.
    pub fn message_with(&self, name_of: impl Fn(&str) -> String) -> String {
        let renamed = |message: String, name: &&str| message.replace(&format!("`{name}`"), &name_of(name));
        self.settings.iter().fold(self.message.clone(), renamed)
    }

    /// What kind of fault this is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Exit code of a program that ends with this error: 2 for usage, 1 for all else.
    pub fn exit_code(&self) -> u8 {
        if self.kind == Kind::Usage { 2 } else { 1 }
    }
}

/// Bytes for people.
struct Size(usize);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / f64::from(1 << 20);
        if mib < 1024.0 { write!(f, "{mib:.1} MiB") } else { write!(f, "{:.2} GiB", mib / 1024.0) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_can_be_told_by_other_names() {
        let error = Error::input(Path::new("a.toml"), "`lr_min` is more than `lr`").naming(&["lr_min", "lr"]);
        assert_eq!(error.settings(), ["lr_min", "lr"]);
        let error = error.with("see `b`");
        assert_eq!(error.message_with(str::to_uppercase), "a.toml: LR_MIN is more than LR; see `b`");
        assert_eq!(Error::value("`lr` is text here").message_with(str::to_uppercase), "`lr` is text here");
    }
}
