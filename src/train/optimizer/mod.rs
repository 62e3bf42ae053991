//! What is trained, as vectors: parameters, gradients and the optimiser's moments, and its step.

mod scalars;
mod update;
mod weights;

pub(in crate::train) use weights::VectorBytes;
pub use weights::{Moment, ParamSlot, TrainedWeights, Training};
