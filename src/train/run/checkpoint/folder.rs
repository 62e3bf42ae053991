//! The folder of a run's checkpoints: which there are, which is taken, and which go.

use super::{FOLDER_NAME, SHARDS, Saved, State};
use crate::error::{Error, Result};
use crate::output::{folder_of, path_aside, synchronise};
use std::fs;
use std::path::{Path, PathBuf};

/// What the name of a checkpoint that is not whole begins with once it is put aside.
const TORN: &str = "torn-";

/// Name of the folder of the checkpoint after step `step`.
pub(super) fn name_of(step: usize) -> String {
    format!("step-{step:08}")
}

/// The newest checkpoint below `run` that is whole, if any was written. Those that are not whole are put aside, and
/// `warn` is told; of older ones than that, only the lengths of their files are looked at. Removes what interrupted
/// writing left.
///
/// # Errors
/// Fails if there are checkpoints and none is whole; then all stay as they are.
pub(in crate::train) fn newest(run: &Path, warn: &mut dyn FnMut(String)) -> Result<Option<Saved>> {
    let mut found: Option<Saved> = None;
    let mut torn = Vec::new();
    for (step, folder) in list(&run.join(FOLDER_NAME))? {
        let checked = State::read(&folder).and_then(|state| {
            if found.is_none() {
                state.check_sums(&folder)?;
            }
            Ok(state)
        });
        match checked {
            Ok(state) if found.is_none() => found = Some(Saved { folder, state }),
            Ok(_) => {}
            Err(error) => torn.push((step, folder, error.to_string())),
        }
    }
    let Some(found) = found else {
        return if torn.is_empty() { Ok(None) } else { Err(none_is_whole(run, &torn)) };
    };
    found.state.check_no_others(&found.folder)?;
    for (step, folder, fault) in &torn {
        let aside = put_aside(folder)?;
        let aside = aside.file_name().unwrap_or_default().display();
        warn(match *step > found.state.global_step {
            true => {
                format!("{fault}; put aside as {aside}; continuing from {} before it", found.folder.display())
            }
            false => format!("{fault}; put aside as {aside}"),
        });
    }
    if !torn.is_empty() {
        point_latest(&found.folder)?;
    }
    Ok(Some(found))
}

fn none_is_whole(run: &Path, torn: &[(usize, PathBuf, String)]) -> Error {
    let faults: Vec<&str> = torn.iter().map(|(_, _, fault)| &**fault).collect();
    let remedy = match faults.iter().all(|fault| fault.contains(SHARDS[1])) {
        // One file by several names: what tears one tears all.
        true => {
            "this file is the image encoder, which all checkpoints share: put a copy of it there, or the \
             image-encoder.safetensors of a new run from the same model"
        }
        false => "start the run anew in another folder",
    };
    let what = format_args!("no checkpoint is whole ({}); {remedy}", faults.join("; "));
    Error::input(&run.join(FOLDER_NAME), what)
}

/// Removes all but the `keep` newest whole checkpoints beside `newest`, which is one of those. Others that are not
/// whole stay: they do not count.
pub(in crate::train) fn tidy(newest: &Path, keep: usize) -> Result<()> {
    let others = list(folder_of(newest))?.into_iter().map(|(_, folder)| folder);
    let whole = others.filter(|folder| folder != newest && State::read(folder).is_ok());
    for old in whole.skip(keep.saturating_sub(1)) {
        retire(&old)?;
    }
    Ok(())
}

/// Steps and folders of the checkpoints in `folder`, the newest first. Removes what interrupted writing left.
fn list(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in folder.read_dir().map_err(|error| Error::io(folder, "list", error))? {
        let path = entry.map_err(|error| Error::io(folder, "list", error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(step) = step_of(&name) {
            found.push((step, path));
        } else if is_left(&name) {
            remove(&path)?;
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The step of the checkpoint whose folder has this name.
fn step_of(name: &str) -> Option<usize> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (name == name_of(step)).then_some(step)
}

/// Whether this is the name of a checkpoint that was being written or removed.
fn is_left(name: &str) -> bool {
    let hidden = name.strip_prefix('.');
    let hidden = hidden.and_then(|name| name.strip_suffix(".partial").or_else(|| name.strip_suffix(".old")));
    hidden.is_some_and(|name| step_of(name).is_some())
}

/// Renames a checkpoint that is not whole, so that it is neither taken nor removed; returns where it is.
pub(super) fn put_aside(folder: &Path) -> Result<PathBuf> {
    let aside = path_aside(folder, TORN);
    fs::rename(folder, &aside).map_err(|error| Error::io(folder, "put aside", error))?;
    Ok(aside)
}

/// Removes a checkpoint; it is hidden first, as removing takes time.
fn retire(folder: &Path) -> Result<()> {
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let hidden = folder.with_file_name(format!(".{name}.old"));
    remove(&hidden)?;
    fs::rename(folder, &hidden).map_err(|error| Error::io(folder, "remove", error))?;
    remove(&hidden)
}

/// Removes what is at `path`, a folder with all in it, if there is anything.
pub(super) fn remove(path: &Path) -> Result<()> {
    let removed = path.symlink_metadata().and_then(|found| match found.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    });
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path, "remove", error)),
        _ => Ok(()),
    }
}

/// Lets `latest` beside `target` point at it.
pub(super) fn point_latest(target: &Path) -> Result<()> {
    let folder = folder_of(target);
    #[cfg(unix)]
    {
        let (link, new) = (folder.join("latest"), folder.join(".latest.new"));
        let failed = |error| Error::io(&link, "write", error);
        remove(&new)?;
        std::os::unix::fs::symlink(target.file_name().expect("a checkpoint's folder"), &new)
            .map_err(failed)?;
        fs::rename(&new, &link).map_err(failed)?;
    }
    synchronise(folder)
}
