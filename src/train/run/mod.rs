//! A run of training: its folder, its data, its steps, its checkpoints and what it tells.

mod card;
mod checkpoint;
pub mod curves;
mod folder;
mod lock;
mod metrics;
mod model;
mod non_finite;
mod schedule;
mod settings;
mod trainer;

pub use checkpoint::{FileSum, Saved, State};
pub use folder::Run;
pub use metrics::Record;
pub use model::{Companions, TrainingStart};
pub use schedule::{LrScheduler, Schedule};
pub use settings::{MAX_BAD_SAMPLES, Settings};
pub use trainer::{Ending, Report, Trainer};
