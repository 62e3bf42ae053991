//! The frozen image encoder's file.

use super::{FileSum, SHARDS, Saved};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::models::vision::encoder;
use crate::output::write_atomically;
use crate::params::safetensors::{Dtype, NewTensor, write};
use crate::params::{TensorSource, Tree};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Name of the file with a run's image encoder, in the run's folder.
pub(in crate::train) const ENCODER_FILE_NAME: &str = "image-encoder.safetensors";

/// The frozen image encoder's file, written once a run. All checkpoints have it by a name of their own, without
/// taking its room again.
pub(in crate::train) struct Frozen {
    path: PathBuf,
    pub(super) sum: FileSum,
}

impl Frozen {
    /// The image encoder's file of the run in the folder `run`, from `source` unless it is there as the checkpoint that
    /// was `saved` has it.
    pub(in crate::train) fn of(
        run: &Path,
        saved: Option<&Saved>,
        config: &Config,
        source: &dyn TensorSource,
    ) -> Result<Self> {
        let path = run.join(ENCODER_FILE_NAME);
        let known = saved.and_then(|saved| saved.state.files.get(SHARDS[1]));
        if let Some(known) = known
            && FileSum::of(&path).is_ok_and(|found| found == *known)
        {
            return Ok(Self { path, sum: known.clone() });
        }
        let mut parts = Vec::new();
        encoder::Parameters::spec(config.vision.encoder()?).map(&mut |spec| parts.extend(spec.parts.clone()));
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
        let sum = FileSum::of(&path)?;
        Ok(Self { path, sum })
    }

    /// Gives the file the name `to` too; copies it where a file has one name only.
    pub(super) fn link(&self, to: &Path) -> Result<()> {
        if fs::hard_link(&self.path, to).is_ok() {
            return Ok(());
        }
        let mut source = File::open(&self.path).map_err(|error| Error::io(&self.path, "open", error))?;
        write_atomically(to, |file| {
            std::io::copy(&mut source, file).map(drop).map_err(|error| Error::io(to, "write", error))
        })
    }
}
