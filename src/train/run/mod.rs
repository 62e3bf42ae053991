//! A run of training: its folder, its data, its steps, its checkpoints and what it tells. What is trained, and by
//! which losses, is an [`Objective`].

mod checkpoint;
pub mod curves;
mod folder;
mod lock;
mod measures;
mod metrics;
mod model;
mod non_finite;
mod objective;
mod schedule;
mod settings;
mod trainer;

pub use checkpoint::{FileSum, Saved, State};
pub use folder::Run;
pub use measures::{Colour, Curve, Measure, Measured, Panel};
pub use metrics::Record;
pub use model::{Companions, TrainingStart};
pub use objective::{CardFacts, Objective, StepLoss, StepSize};
pub use schedule::{LrScheduler, Schedule};
pub use settings::{MAX_BAD_SAMPLES, Settings};
pub(in crate::train) use settings::{check_share, out_of_bounds};
pub use trainer::{Ending, Report, Trainer};
