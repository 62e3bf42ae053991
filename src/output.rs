//! Writing files that are either the old one or the new one, whole, whenever the machine stops.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use crate::error::{Error, Result};
use crate::input;
pub use crate::input::printable;

/// What the name of a file begins with that is being written, before the characters drawn at random.
const TEMPORARY: &str = ".qformer-";
/// How many those are.
const DRAWN: usize = 6;

/// Fails as [`write_atomically`] to `path` would, before the work whose result it is to hold: if its
/// folder does not exist or cannot be written to, or if `path` is a folder, a device or a pipe.
///
/// # Errors
/// That failure.
pub fn check_writable(path: &Path) -> Result<()> {
    refuse_special(path)?;
    tempfile::tempfile_in(folder_of(path)).map(drop).map_err(|source| Error::io(path, "write", source))
}

/// Renaming would put a file in the place of a device.
fn refuse_special(path: &Path) -> Result<()> {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            Err(Error::input(path, "exists and is not a regular file; give another path"))
        }
        _ => Ok(()),
    }
}

/// The folder that `path` is in.
pub fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Writes the file at `path` atomically: `fill` writes to a temporary file in the same folder, which
/// is synchronised with the disk and renamed to `path`; then the folder is synchronised. If anything
/// fails, the temporary file is removed and what was at `path` stays as it was. A process that is killed leaves its
/// temporary file; the next one that writes to the folder removes it.
///
/// # Errors
/// Fails with what `fill` returns, if `path` is a folder, a device or a pipe, or if the operating system refuses any of these steps.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let failed = |source| Error::io(path, "write", source);
    refuse_special(path)?;
    let folder = folder_of(path);
    remove_abandoned(folder);
    let (file, temporary) = temporary_file(folder).map_err(failed)?;
    let mut writer = BufWriter::new(file);
    fill(&mut writer)?;
    writer.flush().map_err(failed)?;
    writer.get_ref().sync_all().map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    // There is nothing by its name any more.
    let _ = temporary.keep();
    synchronise(folder)
}

/// A new temporary file in `folder`, locked for as long as it is open: so a file whose process was killed is
/// told from one that is being written.
fn temporary_file(folder: &Path) -> io::Result<(File, TempPath)> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(TEMPORARY).rand_bytes(DRAWN);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What File::create would ask for; the process's umask is taken off by the system.
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    loop {
        let (file, path) = builder.tempfile_in(folder)?.into_parts();
        // Another process may take it for abandoned before it is locked: then there is a next one.
        let is_taken = matches!(file.try_lock(), Err(TryLockError::WouldBlock));
        if !is_taken && path.exists() {
            return Ok((file, path));
        }
    }
}

/// Removes the temporary files in `folder` that processes left which were killed. What cannot be removed, or not
/// be locked where the file system has no locks, stays and is in nobody's way.
pub fn remove_abandoned(folder: &Path) {
    let Ok(entries) = folder.read_dir() else { return };
    for entry in entries.flatten() {
        let is_temporary = entry.file_name().to_str().is_some_and(is_temporary);
        // Neither a folder nor a pipe, which would wait for its other end.
        if !is_temporary || !entry.file_type().is_ok_and(|kind| kind.is_file()) {
            continue;
        }
        let file = OpenOptions::new().write(true).open(entry.path());
        if file.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether a file of this name may be one that is being written.
fn is_temporary(name: &str) -> bool {
    let drawn = name.strip_prefix(TEMPORARY);
    drawn.is_some_and(|drawn| drawn.len() == DRAWN && drawn.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// Makes the folder at `path`, with those around it that are missing, so that they outlast a loss of power.
///
/// # Errors
/// Fails if the operating system refuses to make or to synchronise one of them.
pub fn create_folder(path: &Path) -> Result<()> {
    let around = folder_of(path);
    if !path.is_dir() {
        if !around.is_dir() {
            create_folder(around)?;
        }
        match fs::create_dir(path) {
            Err(error) if !path.is_dir() => return Err(Error::io(path, "create", error)),
            _ => {}
        }
    }
    // Whoever made it may have been stopped before this.
    synchronise(around)
}

/// Makes the names in `folder` outlast a loss of power, if it may be opened.
pub(crate) fn synchronise(folder: &Path) -> Result<()> {
    #[cfg(unix)]
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            return Err(Error::io(folder, "synchronise", error));
        }
        _ => {}
    }
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

/// A path beside `path` where nothing is, for what is put out of the way: its name after `prefix`, numbered if
/// that is taken.
pub(crate) fn path_aside(path: &Path, prefix: &str) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let numbered = (2..).map(|number: u32| format!("{prefix}{name}-{number}"));
    let mut paths =
        std::iter::once(format!("{prefix}{name}")).chain(numbered).map(|name| path.with_file_name(name));
    paths.find(|path| !input::exists(path)).expect("numbers do not run out")
}

/// Writes `value` to `path` as indented JSON, [atomically](write_atomically).
///
/// # Errors
/// Fails if the operating system refuses to write.
pub fn write_json(path: &Path, value: &serde_json::Value) -> Result<()> {
    write_atomically(path, |file| {
        writeln!(file, "{value:#}").map_err(|source| Error::io(path, "write", source))
    })
}

/// A number for people, with commas between thousands.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).expect("digits")).collect();
    groups.join(",")
}

/// `3 files`, `1 file`: a number of what `one` is called, and more of them with an s.
pub fn counted(number: usize, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::{counted, grouped, is_temporary, remove_abandoned, write_atomically};
    use std::fs::{self, File};
    use std::io::Write;

    #[test]
    fn temporary_files_of_killed_processes_are_removed_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in [".qformer-abcDE1", ".qformer-mine", "qformer-abcDE1", ".qformer-abc.E1"] {
            fs::write(path(name), "left").unwrap();
        }
        fs::create_dir(path(".qformer-folder")).unwrap();
        let live = File::create(path(".qformer-livE00")).unwrap();
        live.lock().unwrap();
        let names = || {
            let entries = folder.path().read_dir().unwrap();
            let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        write_atomically(&path("file"), |file| {
            // While this one is being written, another writer leaves it alone.
            let before = names();
            assert!(!before.contains(&".qformer-abcDE1".to_owned()));
            assert_eq!(before.iter().filter(|name| is_temporary(name)).count(), 3, "{before:?}");
            remove_abandoned(folder.path());
            assert_eq!(names(), before);
            file.write_all(b"whole").unwrap();
            Ok(())
        })
        .unwrap();
        drop(live);
        remove_abandoned(folder.path());
        let left = [".qformer-abc.E1", ".qformer-folder", ".qformer-mine", "file", "qformer-abcDE1"];
        assert_eq!(names(), left);
        assert_eq!(fs::read(path("file")).unwrap(), b"whole");
    }

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|number| counted(number, "file")), ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
