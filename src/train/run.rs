//! A run's folder.

use super::checkpoint::{self, Saved};
use super::metrics;
use crate::error::{Error, Result};
use crate::input;
use crate::output::write_atomically;
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Name of the file with a run's settings.
const CONFIG_FILE_NAME: &str = "config.toml";

/// What a file that is being written is called until it is whole ([`write_atomically`]).
const PARTIAL: &str = ".qformer-";
/// Largest file of settings read, in bytes.
const CONFIG_BYTES: u64 = 1 << 16;

/// A run's folder: `config.toml`, `metrics.jsonl`, `curves.svg` and `checkpoints`.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    /// Where it computes, if its settings say so.
    device: Option<String>,
    saved: Option<Saved>,
}

impl Run {
    /// A new run in `folder`, which is made if it is not there; `config` becomes its `config.toml`.
    ///
    /// # Errors
    /// Fails if the folder holds anything or cannot be written to.
    pub fn create(folder: &Path, config: &toml::Table) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|error| Error::io(folder, "create", error))?;
        remove_partial(folder)?;
        let mut entries = folder.read_dir().map_err(|error| Error::io(folder, "list", error))?;
        if entries.next().is_some() {
            return Err(Error::usage(format!(
                "{} is not empty; give another --output, or --resume to continue the run in it",
                folder.display()
            )));
        }
        let path = folder.join(CONFIG_FILE_NAME);
        write_atomically(&path, |file| {
            file.write_all(config.to_string().as_bytes()).map_err(|error| Error::io(&path, "write", error))
        })?;
        Ok(Self { folder: folder.to_owned(), device: device_of(config), saved: None })
    }

    /// Takes back the run in `folder` that could not begin, so that another can.
    ///
    /// # Errors
    /// Fails if the operating system refuses to remove its files.
    pub fn discard(folder: &Path) -> Result<()> {
        remove_partial(folder)?;
        for name in [CONFIG_FILE_NAME, metrics::FILE_NAME, checkpoint::ENCODER_FILE_NAME] {
            let path = folder.join(name);
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

    /// The run that was begun in `folder`, with its newest whole checkpoint; `warn` is told of newer ones
    /// that are not whole.
    ///
    /// # Errors
    /// Fails if there are checkpoints and none is whole.
    pub fn reopen(folder: &Path, warn: &mut dyn FnMut(String)) -> Result<Self> {
        remove_partial(folder)?;
        let device = device_of(&Self::config(folder)?);
        Ok(Self { folder: folder.to_owned(), device, saved: checkpoint::newest(folder, warn)? })
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

/// Removes what writing left that was interrupted.
fn remove_partial(folder: &Path) -> Result<()> {
    for entry in folder.read_dir().map_err(|error| Error::io(folder, "list", error))? {
        let path = entry.map_err(|error| Error::io(folder, "list", error))?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PARTIAL)) {
            fs::remove_file(&path).map_err(|error| Error::io(&path, "remove", error))?;
        }
    }
    Ok(())
}
