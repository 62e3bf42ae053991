//! `qformer`: BLIP-2's Q-Former from the command line.

mod commands;
mod decoding;
mod flags;
mod inputs;
mod outputs;
mod page;
mod progress;
mod shell;
mod spool;
mod streams;
mod threads;

use clap::{Args, Parser, Subcommand};
use commands::{
    answer, attention, caption, chat, demo, embed, encode, evaluate, init, inspect, score, train,
};
use qformer::Result;
use qformer::output::counted;
use std::fmt::Display;
use std::mem;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
pub(crate) use streams::{print, say};

/// Image-text retrieval and matching with BLIP-2's Q-Former.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct CommandLine {
    #[command(flatten)]
    session: Session,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(Args)]
struct Session {
    /// Threads to compute with [default: $RAYON_NUM_THREADS, else $OMP_NUM_THREADS, else all cores]
    #[arg(long, value_name = "N", global = true, env = "QFORMER_THREADS",
        value_parser = threads::parser())]
    threads: Option<u16>,
    /// Show neither progress nor notes; warnings and errors are shown
    #[arg(long, short, global = true)]
    quiet: bool,
}

#[derive(Subcommand)]
enum Command {
    Embed(embed::Arguments),
    Encode(encode::Arguments),
    Score(score::Arguments),
    Caption(caption::Arguments),
    Answer(answer::Arguments),
    Chat(chat::Arguments),
    Attention(attention::Arguments),
    Evaluate(evaluate::Arguments),
    Init(init::Arguments),
    Inspect(inspect::Arguments),
    Train(train::Arguments),
    Demo(demo::Arguments),
}

/// Where a run's remarks go: all but results, which are on the standard output.
#[derive(Clone, Copy)]
pub(crate) enum Remarks {
    /// To the standard error.
    Shown,
    /// Nowhere, but for warnings.
    Quiet,
}

impl Remarks {
    /// Tells of something that is as it should be.
    pub(crate) fn note(self, what: impl Display) {
        if let Self::Shown = self {
            say(format_args!("note: {what}"));
        }
    }

    /// Tells of something that may not be meant so.
    pub(crate) fn warning(self, what: impl Display) {
        say(format_args!("warning: {what}"));
    }

    /// Tells of weights that no computation can make sense of.
    pub(crate) fn warn_of_not_finite(self, tensors: &[(String, usize)]) {
        for (name, count) in tensors {
            self.warning(format_args!(
                "tensor \"{name}\" has {} infinite or not a number; so may all results be",
                counted(*count, "value")
            ));
        }
    }
}

/// Where the last panic happened, and its message.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let CommandLine { session, command } = CommandLine::parse();
    // Some panics are caught within the library and told as errors: none is to be printed.
    panic::set_hook(Box::new(|panic| {
        let message = panic.to_string().replace('\n', " ");
        *PANIC.lock().unwrap_or_else(PoisonError::into_inner) = message;
    }));
    match panic::catch_unwind(AssertUnwindSafe(|| run(&session, command))) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => {
            say(format_args!("error: {}", flags::message(&error)));
            ExitCode::from(error.exit_code())
        }
        Err(_) => {
            let message = mem::take(&mut *PANIC.lock().unwrap_or_else(PoisonError::into_inner));
            say(format_args!("error: a fault of qformer itself; please report this line: {message}"));
            ExitCode::FAILURE
        }
    }
}

fn run(session: &Session, command: Command) -> Result<ExitCode> {
    threads::start(session.threads)?;
    let remarks = if session.quiet { Remarks::Quiet } else { Remarks::Shown };
    let done = match command {
        // It may also be stopped.
        Command::Train(arguments) => return train::run(&arguments, remarks),
        Command::Embed(arguments) => embed::run(&arguments, remarks),
        Command::Encode(arguments) => encode::run(&arguments, remarks),
        Command::Score(arguments) => score::run(&arguments, remarks),
        Command::Caption(arguments) => caption::run(&arguments, remarks),
        Command::Answer(arguments) => answer::run(&arguments, remarks),
        Command::Chat(arguments) => chat::run(&arguments, remarks),
        Command::Attention(arguments) => attention::run(&arguments, remarks),
        Command::Evaluate(arguments) => evaluate::run(&arguments, remarks),
        Command::Init(arguments) => init::run(&arguments, remarks),
        Command::Inspect(arguments) => inspect::run(&arguments, remarks),
        Command::Demo(arguments) => demo::run(&arguments, remarks),
    };
    done.map(|()| ExitCode::SUCCESS)
}
