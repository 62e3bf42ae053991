//! The flags of `qformer train stage1` that are about its losses.

use super::settings::ObjectiveArguments;
use clap::Args;
use clap::builder::PossibleValuesParser;
use qformer::train::{Settings, Stage1Settings};
use qformer::{Error, Result};
use serde::Serialize;

/// [`Stage1Settings`], as far as they are given.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Stage1Arguments {
    /// Dropout [default: 0.1]
    #[arg(long, value_name = "P")]
    dropout: Option<f64>,
    /// Label smoothing of ITC and ITG [default: 0.1]
    #[arg(long, value_name = "X")]
    label_smoothing: Option<f64>,
    /// Weights of the losses [default: 1,1,1]
    #[arg(long, value_name = "ITC,ITM,LM", value_delimiter = ',')]
    loss_weights: Option<Vec<f64>>,
    /// Hard negatives of ITM: drawn by similarity, or the most similar [default: sampled]
    #[arg(long, value_parser = PossibleValuesParser::new(["sampled", "hardest"]))]
    negatives: Option<String>,
    /// Differentiate each direction of ITC by its own side, as LAVIS does, or by both [default: one-sided]
    #[arg(long, value_parser = PossibleValuesParser::new(["one-sided", "full"]))]
    itc_gradient: Option<String>,
    /// What ITM tells pairs by: a two-class head, or the largest cosine of a query [default: classifier]
    #[arg(long, value_parser = PossibleValuesParser::new(["classifier", "max-similarity"]))]
    matching: Option<String>,
    /// Compute what is within the blocks again in the backward pass: less memory for more time [default: none]
    #[arg(long, num_args = 0..=1, default_missing_value = "blocks",
        value_parser = PossibleValuesParser::new(["none", "blocks"]))]
    grad_checkpointing: Option<String>,
}

impl ObjectiveArguments for Stage1Arguments {
    type Settings = Stage1Settings;

    fn defaults(steps: usize, batch_size: usize) -> Settings<Stage1Settings> {
        Settings::stage1(steps, batch_size)
    }

    fn check(&self) -> Result<()> {
        match &self.loss_weights {
            Some(weights) if weights.len() != 3 => {
                Err(Error::usage("--loss-weights takes three numbers, as in 1,1,0.5"))
            }
            _ => Ok(()),
        }
    }
}
