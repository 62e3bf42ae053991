//! Names of what is written: none may promise another format than it has.

use qformer::{Error, Result};
use std::path::Path;

/// Extensions of files, which no folder is given by mistake.
const OF_FILES: [&str; 16] = [
    "safetensors",
    "json",
    "jsonl",
    "csv",
    "tsv",
    "txt",
    "parquet",
    "npy",
    "npz",
    "h5",
    "pt",
    "pth",
    "bin",
    "ckpt",
    "onnx",
    "tar",
];

/// Refuses the name of a file in another format than `extension`, in which it is written.
pub(crate) fn check_file_name(path: &Path, extension: &str) -> Result<()> {
    match path.extension() {
        Some(found) if !found.eq_ignore_ascii_case(extension) => Err(Error::usage(format!(
            "{}: .{} is not written; give a name that ends in .{extension}, which is",
            path.display(),
            found.to_string_lossy()
        ))),
        _ => Ok(()),
    }
}

/// Refuses the name of a file for a folder.
pub(crate) fn check_folder_name(path: &Path) -> Result<()> {
    match path.extension() {
        Some(found) if OF_FILES.iter().any(|name| found.eq_ignore_ascii_case(name)) => {
            Err(Error::usage(format!(
                "{}: a folder is written, not a .{} file; give a folder's name",
                path.display(),
                found.to_string_lossy()
            )))
        }
        _ => Ok(()),
    }
}
