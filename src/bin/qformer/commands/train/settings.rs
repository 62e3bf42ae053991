//! The flags of the settings that every objective has.

use clap::Args;
use clap::builder::PossibleValuesParser;
use qformer::train::Settings;
use qformer::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::Table;

/// The settings that every run has, as far as they are given, and those of its objective.
#[derive(Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct SettingsArguments<O: Args> {
    /// Steps of the optimiser
    #[arg(long, value_name = "N")]
    steps: Option<usize>,
    /// Steps as so many times the data set [default: 10]
    #[arg(long, value_name = "N", conflicts_with = "steps")]
    #[serde(skip)]
    epochs: Option<usize>,
    /// Examples computed at a time [default: 100]
    #[arg(long, value_name = "N")]
    batch_size: Option<usize>,
    /// Batches of a step: as if one batch were so much larger, with the memory of one [default: 1]
    #[arg(long, value_name = "N")]
    accum_freq: Option<usize>,
    /// Highest learning rate [default: 1e-4]
    #[arg(long, value_name = "RATE")]
    lr: Option<f64>,
    /// Learning rate at which the cosine ends [default: a tenth of --lr]
    #[arg(long, value_name = "RATE")]
    lr_min: Option<f64>,
    /// Learning rate after the warm-up [default: cosine]
    #[arg(long, value_parser = PossibleValuesParser::new(["const", "cosine"]))]
    lr_scheduler: Option<String>,
    /// Steps in which the learning rate rises [default: 5000, but at most a tenth of the steps]
    #[arg(long, value_name = "N")]
    warmup: Option<usize>,
    /// Weight decay of matrices and tables [default: 0.05]
    #[arg(long, value_name = "X")]
    wd: Option<f64>,
    /// AdamW's β1 [default: 0.9]
    #[arg(long, value_name = "X")]
    beta1: Option<f64>,
    /// AdamW's β2 [default: 0.98]
    #[arg(long, value_name = "X")]
    beta2: Option<f64>,
    /// AdamW's ε [default: 1e-8]
    #[arg(long, value_name = "X")]
    eps: Option<f64>,
    /// Scale the gradient down to this norm if it is larger [default: leave it]
    #[arg(long, value_name = "NORM")]
    grad_clip_norm: Option<f64>,
    #[command(flatten)]
    #[serde(flatten)]
    objective: O,
    /// Order of an epoch's examples [default: shuffled]
    #[arg(long, value_parser = PossibleValuesParser::new(["shuffled", "given"]))]
    order: Option<String>,
    /// What becomes of pictures: LAVIS's blip2_image_train, a random crop and flip; its blip_image_train,
    /// which adds RandAugment; or nothing [default: blip2-train]
    #[arg(long, value_parser = PossibleValuesParser::new(["blip2-train", "blip-train", "none"]))]
    augment: Option<String>,
    /// Unreadable samples to leave out before it is an error [default: 100]
    #[arg(long, value_name = "N")]
    max_bad_samples: Option<usize>,
    /// Most tokens of a text, with [CLS] and [SEP] [default: 32]
    #[arg(long, value_name = "N")]
    text_length: Option<usize>,
    /// Seed of the new weights, the data's order, dropout and the negatives' draw [default: 42]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Steps from one checkpoint to the next [default: 1000]
    #[arg(long, value_name = "N")]
    save_frequency: Option<usize>,
    /// Steps from one line of progress to the next [default: 10]
    #[arg(long, value_name = "N")]
    log_every_n_steps: Option<usize>,
    /// Checkpoints to keep, the newest [default: 2]
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
}

/// Settings of an objective, as far as they are given.
pub(super) trait ObjectiveArguments: Args + Serialize {
    /// All of them.
    type Settings: Serialize + DeserializeOwned;

    /// The settings of a run where nothing is given, of so many steps of so many examples.
    fn defaults(steps: usize, batch_size: usize) -> Settings<Self::Settings>;

    /// Refuses what the flags' own types do not.
    fn check(&self) -> Result<()>;
}

impl<O: ObjectiveArguments> SettingsArguments<O> {
    /// The settings asked for, of a data set of so many captions.
    pub(super) fn resolve(&self, captions: usize) -> Result<Settings<O::Settings>> {
        let batch_size = self.batch_size.unwrap_or(100);
        let step = batch_size.saturating_mul(self.accum_freq.unwrap_or(1)).max(1);
        let of_epochs = || captions.saturating_mul(self.epochs.unwrap_or(10)).div_ceil(step);
        let mut settings = O::defaults(self.steps.unwrap_or_else(of_epochs), batch_size);
        if let Some(lr) = self.lr {
            settings.lr_min = lr / 10.0;
        }
        let mut table = settings.to_table()?;
        table.extend(self.given()?);
        Settings::from_table(table)
    }

    /// What was given, by the names of [`Settings`].
    pub(super) fn given(&self) -> Result<Table> {
        self.objective.check()?;
        table(self)
    }

    /// Whether the number of steps was given as epochs.
    pub(super) fn is_by_epochs(&self) -> bool {
        self.epochs.is_some()
    }
}

/// A setting's table.
pub(super) fn table(settings: &impl Serialize) -> Result<Table> {
    Table::try_from(settings).map_err(|error| Error::usage(error.to_string()))
}
