//! Training.
//!
//! - [`run`](Trainer): a run's folder, checkpoints, metrics and curves, whatever its [`Objective`] is;
//! - `optimizer`: parameters, gradients and moments as vectors, and AdamW's step;
//! - `stage1`: the three losses of stage 1 and their gradients in one step ([`Stage1`], an objective).

mod optimizer;
mod run;
mod stage1;

pub use optimizer::{Moment, ParamSlot, TrainedWeights, Training};
pub use run::{
    CardFacts, Colour, Companions, Curve, Ending, FileSum, LrScheduler, MAX_BAD_SAMPLES, Measure, Measured,
    Objective, Panel, Record, Report, Run, Saved, Schedule, Settings, State, StepLoss, StepSize, Trainer,
    TrainingStart, curves,
};
pub use stage1::{
    Batch, Hardness, Losses, MemoryPlan, Recompute, SimilarityLogit, Stage1, Stage1Options, Stage1Parameters,
    Stage1Settings, StepPart,
};
