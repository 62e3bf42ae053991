//! `qformer train stage1`

use super::arguments::{
    Arguments, DEVICE_VARIABLE, ModelArguments, check_against, device_of_environment, with_absolute_paths,
};
use super::provenance::provenance;
use super::settings::table;
use super::{begin, report, stop};
use crate::inputs::data::DataArguments;
use crate::inputs::tell_of_fallback;
use crate::shell::quoted;
use crate::{Remarks, say};
use qformer::data::{Dataset, Kind};
use qformer::device::Device;
use qformer::ops::Backend;
use qformer::train::{Ending, Run, Settings, Stage1, Stage1Settings, Trainer, TrainingStart};
use qformer::{DeviceName, Error, OnDevice, Result};
use serde::de::DeserializeOwned;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use toml::{Table, Value};

/// Settings that may change when a run goes on: no number that it computes depends on them.
const CHANGEABLE: [&str; 4] = ["max-bad-samples", "save-frequency", "log-every-n-steps", "keep"];

/// All that a run is begun with: the tables of its `config.toml`.
struct Begun {
    model: ModelArguments,
    data: DataArguments,
    settings: Settings<Stage1Settings>,
    dataset: Arc<Dataset>,
}

/// Does what the arguments ask for.
pub(super) fn run(arguments: &Arguments, remarks: Remarks) -> Result<ExitCode> {
    let folder = &arguments.output;
    arguments.check_paths()?;
    let continued = arguments.resume && Run::exists(folder);
    let stored = match continued {
        true => Some(Run::config(folder)?),
        false => {
            Run::check_free(folder)?;
            None
        }
    };
    let device = match (&stored, arguments.device) {
        (Some(config), given) => device_again(folder, config, given, remarks)?,
        (None, Some(given)) => given,
        (None, None) => device_of_environment()?.unwrap_or_default(),
    };
    device.run(Training { arguments, stored, name: device, remarks })?
}

/// A run that waits for its device.
struct Training<'a> {
    arguments: &'a Arguments,
    /// The settings of a run that goes on.
    stored: Option<Table>,
    /// The device's name.
    name: DeviceName,
    remarks: Remarks,
}

impl OnDevice for Training<'_> {
    type Output = Result<ExitCode>;

    fn run<B: Backend + Clone>(self, device: B, fallback: Option<Error>) -> Result<ExitCode> {
        let Self { arguments, stored, name, remarks } = self;
        tell_of_fallback(fallback.as_ref(), remarks);
        let folder = &arguments.output;
        let (begun, run) = match &stored {
            Some(config) => {
                let begun = Begun::again(arguments, config)?;
                let run = Run::reopen(folder, &mut |fault| remarks.warning(fault))?;
                if run.saved().is_none() {
                    remarks.note("no checkpoint was written yet; beginning with the first step");
                }
                (begun, run)
            }
            None => {
                let begun = Begun::new(arguments)?;
                let config = begun.config(name, &device)?;
                (begun, Run::create(folder, &config)?)
            }
        };
        train(begun, run, device, remarks)
    }
}

impl Begun {
    /// A run as the flags ask for it.
    fn new(arguments: &Arguments) -> Result<Self> {
        let dataset = Arc::new(Dataset::open(&arguments.data.source()?)?);
        let model = &arguments.model;
        if model.preset.is_some() && model.vision_model.is_none() && dataset.kind() == Kind::Pictures {
            return Err(Error::usage(
                "--preset begins without a trained image encoder, which --data needs; give --vision-model DIR, the \
                 folder of a checkpoint that has one, or --features of one",
            ));
        }
        let settings = arguments.settings.resolve(dataset.captions().len())?;
        Ok(Self { model: model.clone(), data: arguments.data.clone(), settings, dataset })
    }

    /// The run of `config`, which the flags may not contradict.
    fn again(arguments: &Arguments, begun: &Table) -> Result<Self> {
        let folder = &arguments.output;
        let given = with_absolute_paths(table(&arguments.model)?)?;
        check_against(folder, &given, begun.get("model"))?;
        let given = with_absolute_paths(table(&arguments.data)?)?;
        check_against(folder, &given, begun.get("data"))?;
        let data: DataArguments = section(folder, begun, "data")?;
        let dataset = Arc::new(Dataset::open(&data.source()?)?);
        let mut given = arguments.settings.given()?;
        if arguments.settings.is_by_epochs() {
            let steps = arguments.settings.resolve(dataset.captions().len())?.steps;
            given.insert("steps".to_owned(), Value::Integer(steps as i64));
        }
        let changed: Vec<_> = CHANGEABLE.iter().filter_map(|&flag| given.remove_entry(flag)).collect();
        check_against(folder, &given, begun.get("train"))?;
        let mut train: Table = section(folder, begun, "train")?;
        train.extend(changed);
        let settings = Settings::from_table(train)
            .map_err(|error| Error::input(folder, format_args!("config.toml: [train]: {error}")))?;
        let model = section(folder, begun, "model")?;
        Ok(Self { model, data, settings, dataset })
    }

    /// Everything that another run needs to be the same.
    fn config(&self, name: DeviceName, device: &impl Device) -> Result<Table> {
        let chosen = match (name, device.gpu_name()) {
            (DeviceName::Auto, None) => DeviceName::Cpu,
            (DeviceName::Auto, Some(_)) => DeviceName::Cuda(0),
            (name, _) => name,
        };
        Ok(Table::from_iter([
            ("device".to_owned(), Value::from(chosen.to_string())),
            ("model".to_owned(), with_absolute_paths(table(&self.model)?)?.into()),
            ("data".to_owned(), with_absolute_paths(table(&self.data)?)?.into()),
            ("train".to_owned(), self.settings.to_table()?.into()),
            ("provenance".to_owned(), provenance(device).into()),
        ]))
    }
}

/// Where the run of `config` was begun, and so goes on: its numbers are of that device. A flag that says
/// otherwise contradicts it; the environment variable is for what has no device yet.
fn device_again(
    folder: &Path,
    config: &Table,
    given: Option<DeviceName>,
    remarks: Remarks,
) -> Result<DeviceName> {
    let begun = config.get("device").and_then(Value::as_str).and_then(|name| name.parse().ok());
    let begun = begun.filter(|&device| device != DeviceName::Auto).ok_or_else(|| {
        Error::input(
            folder,
            "config.toml: device has to be \"cpu\", \"cuda\" or \"cuda:N\", as it was when the run was begun",
        )
    })?;
    let differs = |device: &DeviceName| ![DeviceName::Auto, begun].contains(device);
    if let Some(given) = given.filter(differs) {
        let given = Table::from_iter([("device".to_owned(), given.to_string().into())]);
        check_against(folder, &given, Some(&Value::Table(config.clone())))?;
    }
    if given.is_none() && device_of_environment()?.is_some_and(|device| differs(&device)) {
        remarks.note(format_args!(
            "computing on {begun}, where the run was begun, whatever {DEVICE_VARIABLE} says"
        ));
    }
    Ok(begun)
}

/// A table of the `config.toml` in `folder`.
fn section<T: DeserializeOwned>(folder: &Path, config: &Table, name: &str) -> Result<T> {
    let table = config.get(name).cloned().unwrap_or_else(|| Table::new().into());
    table.try_into().map_err(|error: toml::de::Error| {
        Error::input(folder, format_args!("config.toml: [{name}]: {}", error.message()))
    })
}

fn train<B: Backend + Clone>(begun: Begun, run: Run, device: B, remarks: Remarks) -> Result<ExitCode> {
    // Held until the end: the folder is this process's.
    let held = run.clone();
    let saved = held.saved().map(|saved| saved.folder.clone());
    let Begun { model, settings, dataset, .. } = begun;
    let (stop, every) = (stop::watch()?, settings.log_every_n_steps);
    let prepare = |model: TrainingStart<'_>| {
        Trainer::<Stage1<B>>::new(device, settings.clone(), model, dataset.clone(), run)
    };
    let prepared = match &saved {
        Some(folder) => begin::reopen(folder, prepare),
        None => model.open(&settings, &dataset, remarks, prepare),
    };
    let mut trainer = match prepared {
        Ok(trainer) => trainer,
        Err(error) => {
            held.discard()?;
            return Err(error);
        }
    };
    for warning in trainer.warnings() {
        remarks.warning(warning);
    }
    if let Some(saved) = &saved {
        remarks.note(format_args!("continuing from {}", saved.display()));
    }
    report::memory(&trainer.memory(), remarks);
    let first = trainer.steps_done() + 1;
    let ending = trainer.run(stop, &mut |step| report::tell(step, first, every, remarks))?;
    if trainer.bad_samples() > 0 {
        remarks.note(format_args!("samples left out because they cannot be read: {}", trainer.bad_samples()));
    }
    match ending {
        Ending::Done => {
            if let Some(saved) = trainer.saved() {
                remarks.note(format_args!("done; the model is {}", saved.display()));
            }
            Ok(ExitCode::SUCCESS)
        }
        Ending::Stopped => {
            let step = trainer.steps_done();
            say(format_args!("stopped after step {step}, which is saved; continue with"));
            say(format_args!("  qformer train stage1 --output {} --resume", quoted(held.folder())));
            Ok(ExitCode::from(stop::STOPPED))
        }
    }
}
