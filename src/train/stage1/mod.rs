//! Stage 1: the Q-Former learns from images and captions, by three objectives in one step.
//!
//! - **ITC**, contrastive: which text belongs to which image of the batch;
//! - **ITM**, matching: whether a text belongs to an image, against hard negatives of the batch;
//! - **ITG**, captioning: the text after the image, word by word.
//!
//! A step has two forward phases, each one stream of tokens through the blocks without padding: first
//! the images' queries and the texts, each alone; then, when the contrastive similarities have told
//! the hard negatives, the pairs to be matched and the texts to be generated, which see the queries of
//! the first phase. The backward pass goes through the two phases in reverse.
//!
//! A batch may come in micro-batches (GradCache: Gao et al., 2021, arXiv 2101.06983). Then
//! 1. the first phase of each runs, of which the contrastive features alone are kept;
//! 2. ITC is computed over the features of all, forward and backward: its loss, the hard negatives, and
//!    the gradients of all features;
//! 3. of each micro-batch the first phase runs again, then the second over the pairs of its images, with
//!    texts of any micro-batch, then the way back through both, which begins with the features' gradients
//!    of (2).
//!
//! The second phase takes as many pairs at a time as keep the device busy
//! ([`Device::PAIRS_PER_PASS`](crate::device::Device::PAIRS_PER_PASS)), forward and back, so that its memory does not
//! grow with the batch beyond that.
//!
//! Losses are means over the whole batch, so gradients are those of one big batch, up to rounding and
//! dropout's masks. Of (3) the last micro-batch comes first, whose first phase is still at hand: a batch
//! in one piece computes nothing twice.
//!
//! What the blocks work out can be kept for the way back or computed again there ([`Recompute`]). All
//! memory is known beforehand ([`MemoryPlan`]) and taken once ([`Stage1::reserve`]).

mod batch;
mod card;
mod memory;
mod objective;
mod objectives;
mod options;
mod parameters;
mod settings;
mod step;

pub use batch::Batch;
pub use memory::MemoryPlan;
pub use options::{Hardness, Losses, Recompute, Stage1Options, StepPart};
pub use parameters::{SimilarityLogit, Stage1Parameters};
pub use settings::Stage1Settings;
pub use step::Stage1;
