//! PTX to C++: one function per kernel, run by the emulator on fibers. Registers become local variables, labels stay
//! labels, loads and stores become checked accesses, tensor-core and asynchronous instructions calls of the emulator.
//! Each instruction is one statement, so that a report of the emulator can name the line of the CUDA source.

mod ast;
mod emit;
mod lex;
mod parse;
mod types;

use std::fmt;

/// A statement of the PTX that has no translation here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Untranslated {
    /// Line of the PTX text, counted from 1.
    pub line: usize,
    /// The statement, as written or normalised.
    pub statement: String,
    /// What about it is not known.
    pub reason: String,
}

impl Untranslated {
    fn new(line: usize, statement: &str, reason: &str) -> Self {
        Self { line, statement: statement.trim().to_owned(), reason: reason.to_owned() }
    }
}

impl fmt::Display for Untranslated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}: {}", self.line, self.statement, self.reason)
    }
}

/// The C++ of the kernels in `ptx`; `unit` names the text in comments. It includes `kernel.h` and wants a compiler that
/// neither fuses floating-point operations (`-ffp-contract=off`) nor lets signed arithmetic overflow into undefined
/// behaviour (`-fwrapv`).
///
/// # Errors
/// Every statement that is not known, down to the modifier: nothing is left out silently.
pub fn translate(unit: &str, ptx: &str) -> Result<String, Vec<Untranslated>> {
    let module = parse::parse(ptx).map_err(|error| vec![error])?;
    emit::module(unit, &module)
}
