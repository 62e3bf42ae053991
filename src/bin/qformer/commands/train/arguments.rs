//! The flags of `qformer train stage1`, and what `config.toml` keeps of them.

use super::stage1_settings::Stage1Arguments;
use crate::inputs::data::DataArguments;
use clap::Args;
use clap::builder::PossibleValuesParser;
use qformer::train::Settings;
use qformer::{DeviceName, Error, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf, absolute};
use toml::{Table, Value};

/// Train the Q-Former from images and captions, by ITC, ITM and ITG
///
/// The folder --output becomes a run: config.toml with every setting, metrics.jsonl with a line a step,
/// curves.svg, and checkpoints, each a folder that this program and transformers open. One Ctrl-C (or
/// SIGTERM, or a terminal that is closed, unless begun by nohup) ends the run after a checkpoint, with exit
/// code 75; --resume continues it as if it had never stopped.
#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(super) model: ModelArguments,
    #[command(flatten)]
    pub(super) data: DataArguments,
    #[command(flatten)]
    pub(super) settings: SettingsArguments<Stage1Arguments>,
    /// Where to compute: auto, cpu, cuda or cuda:N; a run goes on where it was begun [env: QFORMER_DEVICE=] [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub(super) device: Option<DeviceName>,
    /// Folder of the run; empty or not there, unless with --resume
    #[arg(long, short, value_name = "RUN")]
    pub(super) output: PathBuf,
    /// Continue the run in --output from its newest checkpoint; other flags may be left away, and may not
    /// contradict it, but for --max-bad-samples, --save-frequency, --log-every-n-steps and --keep. Begins a
    /// run if there is none
    #[arg(long)]
    pub(super) resume: bool,
}

impl Arguments {
    /// Refuses paths that `config.toml` cannot keep.
    pub(super) fn check_paths(&self) -> Result<()> {
        let (model, data) = (&self.model, &self.data);
        let single = [
            ("model", &model.model),
            ("bert", &model.bert),
            ("vision-model", &model.vision_model),
            ("image-root", &data.images.image_root),
            ("captions", &data.captions),
        ];
        let lists = [("data", &data.images.data), ("features", &data.features)];
        let single = single.into_iter().flat_map(|(flag, path)| path.iter().map(move |path| (flag, path)));
        let lists = lists.into_iter().flat_map(|(flag, paths)| paths.iter().map(move |path| (flag, path)));
        single.chain(lists).try_for_each(|(flag, path)| kept(flag, path).map(drop))
    }
}

/// Where a run's model comes from.
#[derive(Args, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) struct ModelArguments {
    /// Folder of the checkpoint to begin with; a language-modelling head and a temperature that it lacks are
    /// begun anew
    #[arg(long, value_name = "DIR", conflicts_with = "preset")]
    pub(super) model: Option<PathBuf>,
    /// Begin with a new model of these sizes; features of another shape than its image encoder makes take
    /// the encoder's place
    #[arg(long, value_name = "NAME", value_parser = PossibleValuesParser::new(["blip2-vit-g", "tiny"]))]
    pub(super) preset: Option<String>,
    /// Folder of bert-base-uncased, from which BLIP-2 begins: its weights and its tokenizer
    #[arg(long, value_name = "DIR")]
    pub(super) bert: Option<PathBuf>,
    /// Folder of a checkpoint with the image encoder that the new model sees by; --data needs it
    #[arg(long, value_name = "DIR", requires = "preset", conflicts_with = "model")]
    pub(super) vision_model: Option<PathBuf>,
}

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

/// Paths among the flags, so that they hold in other folders too.
pub(super) fn with_absolute_paths(mut table: Table) -> Result<Table> {
    for (key, value) in &mut table {
        if key != "preset" && key != "split" {
            make_absolute(key, value)?;
        }
    }
    Ok(table)
}

fn make_absolute(flag: &str, value: &mut Value) -> Result<()> {
    match value {
        Value::String(path) => {
            *path = kept(flag, path.as_ref())?;
        }
        Value::Array(paths) => paths.iter_mut().try_for_each(|path| make_absolute(flag, path))?,
        _ => {}
    }
    Ok(())
}

/// A path as `config.toml` keeps it: absolute, and a string.
fn kept(flag: &str, path: &Path) -> Result<String> {
    let whole = absolute(path).map_err(|error| Error::io(path, "find", error))?;
    whole.into_os_string().into_string().map_err(|whole| {
        Error::usage(format!(
            "--{flag}: {whole:?} is not UTF-8, as config.toml has to be, which keeps the path; rename it, or give \
             a link to it"
        ))
    })
}

/// Refuses flags that contradict what the run in `folder` was begun with.
pub(super) fn check_against(folder: &Path, given: &Table, begun: Option<&Value>) -> Result<()> {
    for (flag, value) in given {
        let stored = begun.and_then(|table| table.get(flag));
        if stored != Some(value) {
            let stored = stored.map_or("without it".to_owned(), |stored| format!("with {stored}"));
            return Err(Error::usage(format!(
                "--{flag} {value} contradicts the run in {}, which was begun {stored}; leave the flag away, \
                 or begin another run with another --output",
                folder.display()
            )));
        }
    }
    Ok(())
}

/// The environment variable that stands for `--device` where the flag is not given.
pub(super) const DEVICE_VARIABLE: &str = "QFORMER_DEVICE";

/// The device that [`DEVICE_VARIABLE`] names, if it is set.
pub(super) fn device_of_environment() -> Result<Option<DeviceName>> {
    let Some(name) = std::env::var_os(DEVICE_VARIABLE) else { return Ok(None) };
    let wrong =
        || Error::usage(format!("{DEVICE_VARIABLE} is {name:?}; it has to be auto, cpu, cuda or cuda:N"));
    name.to_str().and_then(|name| name.parse().ok()).map(Some).ok_or_else(wrong)
}
