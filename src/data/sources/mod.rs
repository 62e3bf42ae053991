//! Where a data set is, and what reads each kind.

pub(in crate::data) mod coco;
pub(in crate::data) mod features;
pub(in crate::data) mod records;
pub(in crate::data) mod webdataset;

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::output::folder_of;

/// Where a data set is, and in which format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A line of `{"image": path, "caption": text or list of texts}` for each image; paths are relative
    /// to the file's folder. A JSON array of such objects, as LAVIS has them, is read too.
    Jsonl(PathBuf),
    /// Tar shards as img2dataset and webdataset write them: the entries of a sample share their name
    /// up to the first dot; `.jpg`, `.jpeg`, `.png` or `.webp` is its image, `.txt` or else the `caption` of
    /// `.json`, a text or a list of texts, what is said of it.
    WebDataset(Vec<PathBuf>),
    /// COCO's captions JSON (`images` and `annotations`), Karpathy's (`images` with `sentences`), or
    /// LAVIS's array of `image` and `caption`.
    Coco {
        /// The JSON file.
        annotations: PathBuf,
        /// The folder that the images' names are relative to.
        images: PathBuf,
        /// Of a file whose images have a `split`, the one to take; Karpathy's `restval` is part of
        /// `train`, as in LAVIS.
        split: Option<String>,
    },
    /// The image encoder's output, as `qformer encode` writes it.
    Features {
        /// Safetensors files with the tensor `vision_output` [images, N, W], before the last norm.
        features: Vec<PathBuf>,
        /// Line i holds the captions of row i, counted through all the files; as of `Jsonl`.
        captions: PathBuf,
    },
}

impl Source {
    /// The data set of images at `paths`, its format told by the ending: `.jsonl`, `.json` (names
    /// relative to the folder `images`, or else to the file's), or `.tar`, of which there may be many;
    /// a folder stands for the `.tar` files in it.
    ///
    /// # Errors
    /// Fails if it is none of these, and if `images` or `split` is given to a format without it.
    pub fn of_images(paths: &[PathBuf], images: Option<&Path>, split: Option<&str>) -> Result<Self> {
        let is = |path: &Path, ending: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(ending));
        let source = match paths {
            [path] if is(path, "jsonl") => Self::Jsonl(path.clone()),
            [path] if is(path, "json") => {
                return Ok(Self::Coco {
                    annotations: path.clone(),
                    images: images.unwrap_or_else(|| folder_of(path)).to_owned(),
                    split: split.map(str::to_owned),
                });
            }
            [folder] if folder.is_dir() => Self::WebDataset(tars_in(folder)?),
            [_, ..] if paths.iter().all(|path| is(path, "tar")) => Self::WebDataset(paths.to_vec()),
            [path, ..] => {
                let what = "is no data set by its name; give one .jsonl or .json file, or .tar files";
                return Err(Error::input(path, what));
            }
            [] => return Err(Error::usage("no data set is given")),
        };
        match images.map(|_| "a folder of images").or(split.map(|_| "a split")) {
            None => Ok(source),
            Some(what) => Err(Error::usage(format!(
                "{what} goes with a .json data set; {} is another",
                paths[0].display()
            ))),
        }
    }
}

/// The `.tar` files in `folder`, by name.
fn tars_in(folder: &Path) -> Result<Vec<PathBuf>> {
    let cannot_list = |error| Error::io(folder, "list", error);
    let mut paths = Vec::new();
    for entry in folder.read_dir().map_err(cannot_list)? {
        paths.push(entry.map_err(cannot_list)?.path());
    }
    paths.retain(|path| path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("tar")));
    paths.sort();
    if paths.is_empty() {
        return Err(Error::input(folder, "holds no .tar file; give those, or a .jsonl or .json file"));
    }
    Ok(paths)
}
