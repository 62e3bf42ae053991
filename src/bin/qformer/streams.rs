//! The standard streams. Results are on the standard output, and it is an error if they cannot be written; all
//! else is on the standard error, and whether anybody can read that changes nothing.

use qformer::{Error, Result};
use std::fmt::Display;
use std::io::{self, Write};

/// Writes a line to the standard error, if it can be written: a terminal may be closed while the work goes on.
pub(crate) fn say(line: impl Display) {
    let _ = io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Writes a result to the standard output. A reader that has seen enough is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("the standard output".as_ref(), "write to", error))
        }
        _ => Ok(()),
    }
}
