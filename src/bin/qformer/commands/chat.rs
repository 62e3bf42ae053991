//! `qformer chat`: a dialogue about an image, in the terminal or line by line.

use crate::Remarks;
use crate::decoding::DecodingArguments;
use crate::inputs::language::LanguageArguments;
use crate::inputs::{ModelArguments, load};
use clap::Args;
use qformer::generate::Decoding;
use qformer::output::printable;
use qformer::{Chat, Error, Image, Parts, Pipeline, Result, TextTask};
use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;
use std::io::{self, BufRead, IsTerminal};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// What is said of the commands.
const COMMANDS: &str = "/image FILE looks at another image, /reset forgets the dialogue, /quit ends it";

/// Set by Ctrl-C while an answer is made.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Talk about an image with a language model
///
/// Answers appear word by word, unless beams are searched, and every question is put with those before it and their answers.
/// /image FILE looks at another image, /reset forgets the dialogue, /quit ends it; Ctrl-C ends an answer. Where the input
/// is no terminal, every line of it is a question, and a line is printed for every answer.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    model: ModelArguments,
    #[command(flatten)]
    language: LanguageArguments,
    /// JPEG, PNG or WebP file
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    #[command(flatten)]
    decoding: DecodingArguments,
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<()> {
    let builder = arguments.language.with(arguments.model.open()?)?;
    builder.require_language_model()?;
    builder.require_encoder()?;
    let decoding = arguments.decoding.decoding(builder.decoding_for(TextTask::Chat)?, None)?;
    let pipeline = load(builder, Parts::All, remarks)?;
    let chat = pipeline.chat(Image::File(&arguments.image))?;
    let mut dialogue = Dialogue { pipeline: &pipeline, chat, decoding };
    if io::stdin().is_terminal() {
        ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
            .map_err(|error| Error::device(format!("cannot watch for Ctrl-C: {error}")))?;
        remarks.note(COMMANDS);
        return dialogue.in_terminal();
    }
    for line in io::stdin().lock().lines() {
        let line = line.map_err(|error| Error::io("the standard input".as_ref(), "read", error))?;
        if !line.trim().is_empty() && dialogue.take(&line, Answers::ByLine)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// How answers are printed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Answers {
    /// Part by part.
    AsTheyCome,
    /// A line each.
    ByLine,
}

/// A dialogue that goes on.
struct Dialogue<'p> {
    pipeline: &'p Pipeline,
    chat: Chat<'p>,
    decoding: Decoding,
}

impl Dialogue<'_> {
    /// Reads lines with an editor that remembers them; what goes wrong with one is told, and the next is read.
    fn in_terminal(&mut self) -> Result<()> {
        let failed = |error: ReadlineError| Error::device(format!("cannot read from the terminal: {error}"));
        let mut editor = DefaultEditor::new().map_err(failed)?;
        loop {
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    // History is a convenience: what cannot be remembered is asked all the same.
                    let _ = editor.add_history_entry(&line);
                    match self.take(&line, Answers::AsTheyCome) {
                        Ok(ControlFlow::Continue(())) => {}
                        Ok(ControlFlow::Break(())) => return Ok(()),
                        Err(error) => crate::say(format_args!("error: {}", crate::flags::message(&error))),
                    }
                }
                Err(ReadlineError::Interrupted) => {}
                Err(ReadlineError::Eof) => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
        }
    }

    /// Does what a line asks for; a break ends the dialogue.
    fn take(&mut self, line: &str, answers: Answers) -> Result<ControlFlow<()>> {
        let line = line.trim();
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        match command {
            "/quit" => return Ok(ControlFlow::Break(())),
            "/reset" => self.chat.reset(),
            "/image" => self.chat = self.pipeline.chat(Image::File(Path::new(rest.trim())))?,
            _ if command.starts_with('/') => {
                return Err(Error::usage(format!("{command} is no command here: {COMMANDS}")));
            }
            _ => self.answer(line, answers)?,
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Prints the answer to a question.
    fn answer(&mut self, question: &str, answers: Answers) -> Result<()> {
        if answers == Answers::ByLine {
            let answer = self.chat.ask(question, &self.decoding, &mut |_| ControlFlow::Continue(()))?;
            return crate::print(&format!("{}\n", printable(&answer)));
        }
        INTERRUPTED.store(false, Ordering::Relaxed);
        let mut printed = Ok(());
        self.chat.ask(question, &self.decoding, &mut |part| {
            printed = crate::print(part);
            match printed.is_err() || INTERRUPTED.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?;
        printed?;
        crate::print("\n")
    }
}
