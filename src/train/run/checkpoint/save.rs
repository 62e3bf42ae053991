//! Writing a checkpoint.

use super::folder::{name_of, point_latest, put_aside, remove, tidy};
use super::{FOLDER_NAME, FileSum, Frozen, OPTIMIZER_FILE_NAME, SHARDS, State};
use crate::config::{self, Config};
use crate::error::{Error, Result};
use crate::input;
use crate::output::{create_folder, synchronise, write_atomically, write_json};
use crate::params::safetensors::{Checkpoint, FILE_NAME, INDEX_FILE_NAME, NewTensor, write};
use crate::train::run::model::Companions;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file with the model card, as model hubs have it.
const CARD_FILE_NAME: &str = "README.md";

/// Tensors of a checkpoint, by file.
pub(in crate::train) struct Tensors<'a> {
    /// Of the model, as transformers knows it.
    pub(in crate::train) model: Vec<NewTensor<'a>>,
    /// What transformers has no place for, and the name of the file for it.
    pub(in crate::train) extra: Option<(&'static str, Vec<NewTensor<'a>>)>,
    /// Both moments.
    pub(in crate::train) moments: Vec<NewTensor<'a>>,
    /// The image encoder's file, if there is one.
    pub(in crate::train) frozen: Option<&'a Frozen>,
}

/// Writes the checkpoint of `state`, whose list of files is still to come, and of a model with its card below `run`,
/// then lets `latest` point at it and removes older ones but for so many that `keep` are left; returns its folder.
pub(in crate::train) fn save(
    run: &Path,
    state: State,
    model: (&Config, &Companions, &str),
    tensors: Tensors<'_>,
    keep: usize,
) -> Result<PathBuf> {
    let folder = run.join(FOLDER_NAME);
    create_folder(&folder)?;
    let name = name_of(state.global_step);
    let partial = folder.join(format!(".{name}.partial"));
    remove(&partial)?;
    fs::create_dir(&partial).map_err(|error| Error::io(&partial, "create", error))?;
    let target = folder.join(name);
    let saved = fill(&partial, state, model, tensors).and_then(|()| {
        if input::exists(&target) {
            put_aside(&target)?;
        }
        fs::rename(&partial, &target).map_err(|error| Error::io(&target, "write", error))
    });
    if let Err(error) = saved {
        // What matters is told; the next run removes what is left.
        let _ = fs::remove_dir_all(&partial);
        return Err(error);
    }
    synchronise(&folder)?;
    point_latest(&target)?;
    tidy(&target, keep)?;
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
    let path = folder.join(CARD_FILE_NAME);
    write_atomically(&path, |file| {
        file.write_all(card.as_bytes()).map_err(|error| Error::io(&path, "write", error))
    })?;
    let mut files = BTreeMap::new();
    match tensors.frozen {
        None => write(&folder.join(FILE_NAME), &none, tensors.model)?,
        Some(frozen) => {
            let shards = SHARDS.map(|name| folder.join(name));
            write(&shards[0], &none, tensors.model)?;
            frozen.link(&shards[1])?;
            files.insert(SHARDS[1].to_owned(), frozen.sum.clone());
            write_index(folder, &shards)?;
        }
    }
    if let Some((name, tensors)) = tensors.extra {
        write(&folder.join(name), &none, tensors)?;
    }
    write(&folder.join(OPTIMIZER_FILE_NAME), &none, tensors.moments)?;
    for entry in folder.read_dir().map_err(|error| Error::io(folder, "list", error))? {
        let name = entry.map_err(|error| Error::io(folder, "list", error))?.file_name();
        if let Entry::Vacant(sum) = files.entry(name.to_string_lossy().into_owned()) {
            sum.insert(FileSum::of(&folder.join(&name))?);
        }
    }
    state.files = files;
    state.write(folder)
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
