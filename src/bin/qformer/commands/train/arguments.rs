//! The flags of `qformer train stage1`, and what `config.toml` keeps of them.

use super::settings::SettingsArguments;
use super::stage1_settings::Stage1Arguments;
use crate::inputs::data::DataArguments;
use clap::Args;
use clap::builder::PossibleValuesParser;
use qformer::{DeviceName, Error, Result};
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
