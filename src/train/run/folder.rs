//! A run's folder.

use super::checkpoint::{self, Saved};
use super::lock::{self, Lock};
use super::metrics;
use crate::error::{Error, Result};
use crate::input;
use crate::output::{create_folder, folder_of, remove_abandoned, synchronise, write_atomically};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Name of the file with a run's settings.
const CONFIG_FILE_NAME: &str = "config.toml";

/// Largest file of settings read, in bytes.
const CONFIG_BYTES: u64 = 1 << 16;

/// A run's folder: `config.toml`, `metrics.jsonl`, `curves.svg` and `checkpoints`. As long as there is a clone of this
/// value, no other process can train in the folder.
#[derive(Clone, Debug)]
pub struct Run {
    folder: PathBuf,
    /// Where it computes, if its settings say so.
    device: Option<String>,
    saved: Option<Saved>,
    /// Whether this process began it.
    is_new: bool,
    _lock: Arc<Lock>,
}

impl Run {
    /// A new run in `folder`, which is made if it is not there; `config` becomes its `config.toml`.
    ///
    /// # Errors
    /// Fails if the folder holds anything, if another process is training in it, or if it cannot be written to.
    pub fn create(folder: &Path, config: &toml::Table) -> Result<Self> {
        create_folder(folder)?;
        Self::check_free(folder)?;
        // Once more with the lock: another process may have begun a run meanwhile.
        let lock = Lock::take(folder)?;
        expect_empty(folder)?;
        let path = folder.join(CONFIG_FILE_NAME);
        write_atomically(&path, |file| {
            file.write_all(config.to_string().as_bytes()).map_err(|error| Error::io(&path, "write", error))
        })?;
        let (folder, device) = (folder.to_owned(), device_of(config));
        Ok(Self { folder, device, saved: None, is_new: true, _lock: Arc::new(lock) })
    }

    /// Checks that a run can be [created](Self::create) in `folder`.
    ///
    /// # Errors
    /// Fails if the folder holds anything.
    pub fn check_free(folder: &Path) -> Result<()> {
        if !folder.exists() {
            return Ok(());
        }
        remove_abandoned(folder);
        expect_empty(folder)
    }

    /// Takes back a run that could not begin, so that another can; one that was reopened stays as it is.
    ///
    /// # Errors
    /// Fails if the operating system refuses to remove its files.
    pub fn discard(self) -> Result<()> {
        if !self.is_new {
            return Ok(());
        }
        // The lock is held until all else is gone.
        for name in [metrics::FILE_NAME, checkpoint::ENCODER_FILE_NAME, CONFIG_FILE_NAME, lock::FILE_NAME] {
            let path = self.folder.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::io(&path, "remove", error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether there is a run in `folder`.
    pub fn exists(folder: &Path) -> bool {
        folder.join(CONFIG_FILE_NAME).exists()
    }

    /// The settings of the run in `folder`.
    ///
    /// # Errors
    /// Fails if there are none, or not in TOML.
    pub fn config(folder: &Path) -> Result<toml::Table> {
        let path = folder.join(CONFIG_FILE_NAME);
        let text = input::read_text(&path, CONFIG_BYTES)?;
        text.parse().map_err(|error: toml::de::Error| {
            Error::input(&path, format_args!("is not TOML: {}", error.message()))
        })
    }

    /// The run that was begun in `folder`, with its newest whole checkpoint; those that are not whole are put
    /// aside, and `warn` is told.
    ///
    /// # Errors
    /// Fails if another process is training in the folder, if there are checkpoints and none is whole, and if there
    /// are files in the newest that do not belong to it.
    pub fn reopen(folder: &Path, warn: &mut dyn FnMut(String)) -> Result<Self> {
        let lock = Lock::take(folder)?;
        remove_abandoned(folder);
        // Whoever began it may have been stopped before this.
        synchronise(folder_of(folder))?;
        let device = device_of(&Self::config(folder)?);
        let saved = checkpoint::newest(folder, warn)?;
        Ok(Self { folder: folder.to_owned(), device, saved, is_new: false, _lock: Arc::new(lock) })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where it computes, if its `config.toml` says so.
    pub(super) fn device(&self) -> Option<&str> {
        self.device.as_deref()
    }

    /// The checkpoint that it goes on from.
    pub fn saved(&self) -> Option<&Saved> {
        self.saved.as_ref()
    }
}

fn device_of(config: &toml::Table) -> Option<String> {
    config.get("device").and_then(toml::Value::as_str).map(str::to_owned)
}

/// Refuses a folder that holds anything but the lock.
fn expect_empty(folder: &Path) -> Result<()> {
    let failed = |error| Error::io(folder, "list", error);
    let entries = folder.read_dir().map_err(failed)?.collect::<std::io::Result<Vec<_>>>().map_err(failed)?;
    if entries.iter().all(|entry| entry.file_name() == lock::FILE_NAME) {
        return Ok(());
    }
    let shown = folder.display();
    Err(match (Run::exists(folder), folder.join(checkpoint::FOLDER_NAME).exists()) {
        (true, _) => {
            let what = format!("{shown} is not empty; give another `folder`, or `reopen` the run in it");
            Error::usage(what).naming(&["folder", "reopen"])
        }
        (false, true) => Error::usage(format!(
            "{shown} has checkpoints, but {CONFIG_FILE_NAME} with the run's settings is gone; put it back and `reopen` the \
             run, or begin another from a checkpoint by `model` {shown}/{}/latest in another `folder`",
            checkpoint::FOLDER_NAME
        ))
        .naming(&["reopen", "model", "folder"]),
        (false, false) => {
            Error::usage(format!("{shown} is not empty; give another `folder`")).naming(&["folder"])
        }
    })
}
