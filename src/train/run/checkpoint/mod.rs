//! Checkpoints of a run: whole or not there, whenever the machine stops.
//!
//! ```text
//! RUN/checkpoints/step-00000100/
//!   config.json, generation_config.json, processor and tokenizer files
//!   README.md                the model card
//!   model.safetensors        trained tensors that transformers knows; model-00001-of-00002.safetensors where
//!                            an image encoder belongs to the run, which then is the second shard
//!   a file of the objective  those that it has no place for, if there are any
//!   optimizer.safetensors    moments: exp_avg.NAME, exp_avg_sq.NAME
//!   trainer_state.json       step, place in the data, samples left out, seed; length and checksum of every
//!                            other file, and its own checksum
//! RUN/checkpoints/latest     the newest
//! RUN/checkpoints/torn-…     one that was found not to be whole
//! ```

mod folder;
mod frozen;
mod save;
mod state;

use super::settings::Settings;
use crate::data::{Dataset, Position};
use crate::error::{Error, Result};
use crate::params::safetensors::Checkpoint;
use crate::params::{Part, TensorSource};
pub(super) use folder::{newest, tidy};
pub(super) use frozen::{ENCODER_FILE_NAME, Frozen};
pub(super) use save::{Tensors, save};
pub use state::{FileSum, State};
use std::path::{Path, PathBuf};

/// Name of the folder of a run's checkpoints.
pub(super) const FOLDER_NAME: &str = "checkpoints";
/// Name of the file with the moments.
const OPTIMIZER_FILE_NAME: &str = "optimizer.safetensors";
/// Name of the file that says where the run stood.
const STATE_FILE_NAME: &str = "trainer_state.json";
/// The shards where there is an image encoder.
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A whole checkpoint of a run.
#[derive(Clone, Debug)]
pub struct Saved {
    /// Its folder.
    pub folder: PathBuf,
    /// Where the run stood.
    pub state: State,
}

impl Saved {
    /// Refuses to go on with other data, whose fingerprint is `fingerprint`, or with another seed, and from a place
    /// where the run cannot have been.
    pub(super) fn check_place<S>(
        &self,
        settings: &Settings<S>,
        dataset: &Dataset,
        fingerprint: u32,
    ) -> Result<()> {
        let State { global_step, position, seed, dataset: begun_with, .. } = self.state;
        if begun_with != fingerprint {
            return Err(Error::value(
                "the data set is not the one that the run was begun with: its names, captions or features differ; restore \
                 it, or begin another run",
            ));
        }
        let wrong = |what: String| Err(Error::input(&self.folder, what));
        if seed != settings.seed {
            return wrong(format!("is of a run with seed {seed}, but config.toml has {}", settings.seed));
        }
        if global_step > settings.steps {
            return wrong(format!("is after step {global_step} of a run that has {}", settings.steps));
        }
        // More may have been met than learnt from, if some cannot be read.
        let learnt = global_step as u128 * settings.batch_size as u128 * settings.accum_freq as u128;
        let met =
            u128::from(position.epoch) * dataset.captions().len() as u128 + u128::from(position.example);
        if met < learnt {
            let Position { epoch, example } = position;
            return wrong(format!(
                "{global_step} steps have {learnt} examples, more than there are until position {example} of epoch {epoch}"
            ));
        }
        Ok(())
    }
}

/// The moments in a checkpoint's folder.
pub(super) struct Moments(Checkpoint);

impl Moments {
    pub(super) fn open(folder: &Path) -> Result<Self> {
        Checkpoint::open(&folder.join(OPTIMIZER_FILE_NAME)).map(Self)
    }
}

impl TensorSource for Moments {
    fn check(&self, parts: &[&Part]) -> Result<()> {
        let fault = parts.iter().find_map(|part| match self.0.get(&part.name) {
            None => Some(format!("tensor \"{}\" {:?} is missing", part.name, part.shape)),
            Some(found) if found.shape != part.shape => {
                let (found, expected) = (&found.shape, &part.shape);
                Some(format!("tensor \"{}\" has shape {found:?}, expected {expected:?}", part.name))
            }
            Some(_) => None,
        });
        let remedy = "it has to be of the same model as the folder's weights";
        fault.map_or(Ok(()), |fault| Err(Error::input(self.0.path(), format_args!("{fault}; {remedy}"))))
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        self.0.read_f32(&part.name, sink)
    }
}
