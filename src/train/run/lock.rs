//! One process a run.

use crate::error::{Error, Result};
use crate::input;
use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;

/// Name of the file in a run's folder that is locked by the process that trains in it.
pub(super) const FILE_NAME: &str = ".lock";

/// Keeps other processes from training in a folder, until it is dropped or its process has ended, however that was.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // By itself it would stay with a process that is just being started and has the file open, too.
        let _ = self.file.unlock();
    }
}

impl Lock {
    /// Takes the lock of the run's folder `folder`. Where the file system has no locks, nobody is kept out.
    pub(super) fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE_NAME);
        loop {
            if input::exists(&path) {
                // A pipe would wait for its other end.
                match input::open_own(&path) {
                    Err(_) if !input::exists(&path) => {}
                    opened => drop(opened?),
                }
            }
            let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
            let file = opened.map_err(|error| Error::io(&path, "write", error))?;
            if let Err(TryLockError::WouldBlock) = file.try_lock() {
                return Err(Error::value(format!(
                    "another process is training in {}; wait until it ends, or give another `folder`",
                    folder.display()
                ))
                .naming(&["folder"]));
            }
            // A run that could not begin removes its lock: this may be one that is gone.
            if is_at(&file, &path) {
                return Ok(Self { file });
            }
        }
    }
}

/// Whether `file` is the one at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    file.metadata().and_then(|own| Ok(identity(own) == identity(path.metadata()?))).unwrap_or(false)
}

/// Whether `file` is the one at `path`, which is taken for granted: open files are not removed here.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}
