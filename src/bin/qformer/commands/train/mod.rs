//! `qformer train`: learning from images and captions.

mod arguments;
mod begin;
mod provenance;
mod report;
mod settings;
mod stage1;
mod stage1_settings;
mod stop;

use crate::Remarks;
use clap::{Args, Subcommand};
use qformer::Result;
use std::process::ExitCode;

/// Train a model
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    stage: Stage,
}

#[derive(Subcommand)]
enum Stage {
    Stage1(Box<arguments::Arguments>),
}

/// Does what the arguments ask for.
pub(crate) fn run(arguments: &Arguments, remarks: Remarks) -> Result<ExitCode> {
    match &arguments.stage {
        Stage::Stage1(arguments) => stage1::run(arguments, remarks),
    }
}
