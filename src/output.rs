//! Writing files that are either the old one or the new one, whole, whenever the machine stops.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::error::{Error, Result};
pub use crate::input::printable;

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
/// fails, the temporary file is removed and what was at `path` stays as it was.
///
/// # Errors
/// Fails with what `fill` returns, if `path` is a folder, a device or a pipe, or if the operating system refuses any of these steps.
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut BufWriter<File>) -> Result<()>) -> Result<()> {
    let failed = |source| Error::io(path, "write", source);
    refuse_special(path)?;
    let folder = folder_of(path);
    let mut builder = tempfile::Builder::new();
    builder.prefix(".qformer-");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        // What File::create would ask for; the process's umask is taken off by the system.
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let (file, temporary) = builder.tempfile_in(folder).map_err(failed)?.into_parts();
    let mut writer = BufWriter::new(file);
    fill(&mut writer)?;
    writer.flush().map_err(failed)?;
    writer.get_ref().sync_all().map_err(failed)?;
    temporary.persist(path).map_err(|error| failed(error.error))?;
    #[cfg(unix)]
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
    Ok(())
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
    use super::{counted, grouped};

    #[test]
    fn one_is_not_many() {
        assert_eq!([0, 1, 2].map(|number| counted(number, "file")), ["0 files", "1 file", "2 files"]);
    }

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
