//! Checkpoints of a run: whole or not there, whenever the machine stops.
//!
//! ```text
//! RUN/checkpoints/step-00000100/
//!   config.json, generation_config.json, processor and tokenizer files
//!   README.md                the model card
//!   model.safetensors        trained tensors that transformers knows; model-00001-of-00002.safetensors where
//!                            an image encoder belongs to the run, which then is the second shard
//!   stage1.safetensors       those that it has no place for: temperature, language-modelling head
//!   optimizer.safetensors    moments: exp_avg.NAME, exp_avg_sq.NAME
//!   trainer_state.json       step, place in the data, samples left out, seed, and a checksum of every other
//!                            file
//! RUN/checkpoints/latest     the newest
//! ```

use super::card;
use super::model::Companions;
use super::run::Run;
use crate::config::{self, Config};
use crate::data::Position;
use crate::error::{Error, Result};
use crate::input;
use crate::output::{write_atomically, write_json};
use crate::params::safetensors::{Checkpoint, Dtype, FILE_NAME, INDEX_FILE_NAME, NewTensor, write};
use crate::params::{Part, TensorSource, Tree};
use crate::vision::encoder;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Name of the folder of a run's checkpoints.
const FOLDER_NAME: &str = "checkpoints";
/// Name of the file with the moments.
const OPTIMIZER_FILE_NAME: &str = "optimizer.safetensors";
/// Name of the file that says where the run stood.
const STATE_FILE_NAME: &str = "trainer_state.json";
/// Name of the file with what transformers has no place for.
const STAGE1_FILE_NAME: &str = "stage1.safetensors";
/// The shards where there is an image encoder.
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
/// Largest state file read, in bytes.
const STATE_BYTES: u64 = 256 << 20;

/// Where a run stood.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Steps done.
    pub global_step: usize,
    /// Where the next step's data begin.
    pub position: Position,
    /// Of everything random, which is a function of it and the step.
    pub seed: u32,
    /// [`Dataset::fingerprint`](crate::data::Dataset::fingerprint) of what is learnt from.
    pub dataset: u32,
    /// Faults of the samples left out so far, which count against what is allowed.
    pub unreadable: Vec<String>,
    /// CRC-32 of every other file of the folder, in hexadecimal digits.
    pub checksums: BTreeMap<String, String>,
}

/// A whole checkpoint of a run.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Its folder.
    pub folder: PathBuf,
    /// Where the run stood.
    pub state: State,
}

/// Tensors of a checkpoint, by file.
pub(super) struct Tensors<'a> {
    /// Of the model, as transformers knows it.
    pub(super) model: Vec<NewTensor<'a>>,
    /// What transformers has no place for.
    pub(super) stage1: Vec<NewTensor<'a>>,
    /// Both moments.
    pub(super) moments: Vec<NewTensor<'a>>,
    /// The image encoder's file, if there is one.
    pub(super) frozen: Option<&'a Frozen>,
}

/// The frozen image encoder's file, written once a run.
pub(super) struct Frozen {
    pub(super) path: PathBuf,
    /// As in [`State::checksums`].
    pub(super) checksum: String,
}

/// Name of the file with a run's image encoder, in the run's folder.
pub(super) const ENCODER_FILE_NAME: &str = "image-encoder.safetensors";

impl Frozen {
    /// The image encoder's file of `run`, from `source` unless it is there.
    pub(super) fn of(run: &Run, config: &Config, source: &dyn TensorSource) -> Result<Self> {
        let path = run.folder().join(ENCODER_FILE_NAME);
        let saved = run.saved().and_then(|saved| saved.state.checksums.get(SHARDS[1]));
        if path.exists() {
            let checksum = saved.map_or_else(|| checksum(&path), |known| Ok(known.clone()))?;
            return Ok(Self { path, checksum });
        }
        let mut parts = Vec::new();
        encoder::Parameters::spec(&config.vision).map(&mut |spec| parts.extend(spec.parts.clone()));
        let tensors = parts.iter().map(|part| {
            // One tensor at a time is in memory.
            let mut values = Vec::new();
            NewTensor::new(&part.name, Dtype::F32, &part.shape, move |first, block: &mut [f32]| {
                if first == 0 {
                    values.resize(part.len(), 0.0);
                    source.read(part, &mut |at, read| values[at..at + read.len()].copy_from_slice(read))?;
                }
                let end = first + block.len();
                block.copy_from_slice(&values[first..end]);
                if end == part.len() {
                    values = Vec::new();
                }
                Ok(())
            })
        });
        write(&path, &BTreeMap::new(), tensors.collect())?;
        let checksum = checksum(&path)?;
        Ok(Self { path, checksum })
    }
}

/// The moments in a checkpoint's folder.
pub(super) struct Moments(Checkpoint);

impl Moments {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        Checkpoint::open(&folder.join(OPTIMIZER_FILE_NAME)).map(Self)
    }
}

impl TensorSource for Moments {
    fn check(&self, parts: &[&Part]) -> Result<()> {
        let fault = parts.iter().find_map(|part| match self.0.get(&part.name) {
            None => Some(format!("tensor \"{}\" {:?} is missing", part.name, part.shape)),
            Some(found) if found.shape != part.shape => {
                let (found, expected) = (&found.shape, &part.shape);
                Some(format!("tensor \"{}\" has shape {found:?}, expected {expected:?}", part.name))
            }
            Some(_) => None,
        });
        let remedy = "it has to be of the same model as the folder's weights";
        fault.map_or(Ok(()), |fault| Err(Error::input(self.0.path(), format_args!("{fault}; {remedy}"))))
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        self.0.read_f32(&part.name, sink)
    }
}

/// Writes the checkpoint of `state`, whose checksums are still to come, and of a model with its card below `run`, then lets `latest`
/// point at it and removes all but the newest `keep`; returns its folder.
pub(super) fn save(
    run: &Path,
    state: State,
    model: (&Config, &Companions, &str),
    tensors: Tensors<'_>,
    keep: usize,
) -> Result<PathBuf> {
    let folder = run.join(FOLDER_NAME);
    fs::create_dir_all(&folder).map_err(|error| Error::io(&folder, "create", error))?;
    let name = format!("step-{:08}", state.global_step);
    let partial = folder.join(format!(".{name}.partial"));
    remove_folder(&partial)?;
    fs::create_dir(&partial).map_err(|error| Error::io(&partial, "create", error))?;
    let target = folder.join(name);
    let saved = fill(&partial, state, model, tensors).and_then(|()| {
        // One that was found torn may be in the way.
        retire(&target)?;
        fs::rename(&partial, &target).map_err(|error| Error::io(&target, "write", error))
    });
    if let Err(error) = saved {
        // What matters is told; the next run removes what is left.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    synchronise(&folder)?;
    point_latest(&folder, &target)?;
    for (_, old) in list(run)?.into_iter().skip(keep) {
        retire(&old)?;
    }
    Ok(target)
}

fn fill(
    folder: &Path,
    mut state: State,
    (config, companions, card): (&Config, &Companions, &str),
    tensors: Tensors<'_>,
) -> Result<()> {
    let none = BTreeMap::new();
    write_json(&folder.join(config::FILE_NAME), &config.to_json())?;
    companions.write(folder)?;
    let path = folder.join(card::FILE_NAME);
    write_atomically(&path, |file| {
        file.write_all(card.as_bytes()).map_err(|error| Error::io(&path, "write", error))
    })?;
    let mut sums = BTreeMap::new();
    match tensors.frozen {
        None => write(&folder.join(FILE_NAME), &none, tensors.model)?,
        Some(frozen) => {
            let shards = SHARDS.map(|name| folder.join(name));
            write(&shards[0], &none, tensors.model)?;
            link(&frozen.path, &shards[1])?;
            sums.insert(SHARDS[1].to_owned(), frozen.checksum.clone());
            write_index(folder, &shards)?;
        }
    }
    write(&folder.join(STAGE1_FILE_NAME), &none, tensors.stage1)?;
    write(&folder.join(OPTIMIZER_FILE_NAME), &none, tensors.moments)?;
    for entry in folder.read_dir().map_err(|error| Error::io(folder, "list", error))? {
        let name = entry.map_err(|error| Error::io(folder, "list", error))?.file_name();
        if let Entry::Vacant(sum) = sums.entry(name.to_string_lossy().into_owned()) {
            sum.insert(checksum(&folder.join(&name))?);
        }
    }
    state.checksums = sums;
    write_json(&folder.join(STATE_FILE_NAME), &serde_json::to_value(&state).expect("plain data"))
}

/// Says which shard holds which tensor.
fn write_index(folder: &Path, shards: &[PathBuf]) -> Result<()> {
    let (mut weight_map, mut total) = (Map::new(), 0);
    for (path, name) in shards.iter().zip(SHARDS) {
        let shard = Checkpoint::open(path)?;
        for tensor in shard.names() {
            total += shard.get(tensor).expect("a name of its own").bytes();
            weight_map.insert(tensor.to_owned(), name.into());
        }
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&folder.join(INDEX_FILE_NAME), &index)
}

/// Gives the file `from` the name `to` too; copies it where a file has one name only.
fn link(from: &Path, to: &Path) -> Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let mut source = File::open(from).map_err(|error| Error::io(from, "open", error))?;
    write_atomically(to, |file| {
        std::io::copy(&mut source, file).map(drop).map_err(|error| Error::io(to, "write", error))
    })
}

/// CRC-32 of a file's bytes, in hexadecimal digits.
fn checksum(path: &Path) -> Result<String> {
    let failed = |error| Error::io(path, "read", error);
    let mut file = File::open(path).map_err(failed)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(failed)? {
            0 => return Ok(format!("{:08x}", hasher.finalize())),
            count => hasher.update(&block[..count]),
        }
    }
}

impl Saved {
    /// Reads where the run stood, and checks that no file is torn.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE_FILE_NAME);
        let json = input::parse_json(&path, &input::read_text(&path, STATE_BYTES)?)?;
        let state: State = serde_json::from_value(json).map_err(|error| Error::input(&path, error))?;
        for (name, expected) in &state.checksums {
            let path = folder.join(name);
            let found = checksum(&path)?;
            if found != *expected {
                let what = format_args!("its checksum is {found}, but {STATE_FILE_NAME} says {expected}");
                return Err(Error::input(&path, what));
            }
        }
        if folder.file_name().is_none_or(|name| *name != *format!("step-{:08}", state.global_step)) {
            let what = format_args!("says step {}, but its folder another", state.global_step);
            return Err(Error::input(&path, what));
        }
        Ok(Self { folder: folder.to_owned(), state })
    }
}

/// The newest checkpoint below `run` that is whole, if any was written; `warn` is told of those that are
/// not. Removes what interrupted writing left.
///
/// # Errors
/// Fails if there are checkpoints and none is whole.
pub(super) fn newest(run: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<Saved>> {
    let mut faults = Vec::new();
    for (_, folder) in list(run)? {
        match Saved::open(&folder) {
            Ok(saved) => {
                for fault in faults {
                    warn(format!("{fault}; continuing from {} before it", folder.display()));
                }
                return Ok(Some(saved));
            }
            Err(error) => faults.push(error.to_string()),
        }
    }
    match faults.is_empty() {
        true => Ok(None),
        false => Err(Error::input(
            &run.join(FOLDER_NAME),
            format_args!(
                "no checkpoint is whole ({}); start the run anew in another folder",
                faults.join("; ")
            ),
        )),
    }
}

/// Steps and folders of the checkpoints, the newest first.
fn list(run: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let folder = run.join(FOLDER_NAME);
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(|error| Error::io(&folder, "list", error))? {
        let path = entry.map_err(|error| Error::io(&folder, "list", error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with(".step-") {
            remove_folder(&path)?;
        } else if let Some(step) = name.strip_prefix("step-").and_then(|step| step.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Removes a checkpoint, if it is there; it is hidden first, as removing takes time.
fn retire(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let hidden = folder.with_file_name(format!(".{name}.old"));
    remove_folder(&hidden)?;
    fs::rename(folder, &hidden).map_err(|error| Error::io(folder, "remove", error))?;
    remove_folder(&hidden)
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(folder, "remove", error)),
        _ => Ok(()),
    }
}

/// Lets `latest` in `folder` point at `target`.
fn point_latest(folder: &Path, target: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        let (link, new) = (folder.join("latest"), folder.join(".latest.new"));
        let failed = |error| Error::io(&link, "write", error);
        let _ = fs::remove_file(&new);
        std::os::unix::fs::symlink(target.file_name().expect("a checkpoint's folder"), &new)
            .map_err(failed)?;
        fs::rename(&new, &link).map_err(failed)?;
    }
    #[cfg(not(unix))]
    let _ = target;
    synchronise(folder)
}

/// Makes the names in `folder` outlast a loss of power.
fn synchronise(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|error| Error::io(folder, "synchronise", error))?;
    Ok(())
}
