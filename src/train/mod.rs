//! Training.
//!
//! - [`run`](Trainer): a run's folder, checkpoints, metrics and curves;
//! - `optimizer`: parameters, gradients and moments as vectors, and AdamW's step;
//! - `stage1`: the three objectives of stage 1 and their gradients in one step ([`Stage1`]).

mod optimizer;
mod run;
mod stage1;

pub use optimizer::{Moment, ParamSlot, TrainedWeights, Training};
pub use run::{
    Companions, Ending, FileSum, LrScheduler, MAX_BAD_SAMPLES, Record, Report, Run, Saved, Schedule,
    Settings, State, Trainer, TrainingStart, curves,
};
pub use stage1::{
    Batch, Hardness, Losses, MemoryPlan, Recompute, SimilarityLogit, Stage1, Stage1Options, Stage1Parameters,
    StepPart, StepSize,
};
