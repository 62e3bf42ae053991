//! Training of stage 1: the Q-Former learns from images and captions, by three objectives in one step.
//!
//! - **ITC**, contrastive: which text belongs to which image of the batch;
//! - **ITM**, matching: whether a text belongs to an image, against hard negatives of the batch;
//! - **ITG**, captioning: the text after the image, word by word.
//!
//! A step has two forward phases, each one stream of tokens through the blocks without padding: first
//! the images' queries and the texts, each alone; then, when the contrastive similarities have told
//! the hard negatives, the pairs to be matched and the texts to be generated, which see the queries of
//! the first phase. The backward pass goes through the two phases in reverse.

mod acts;
mod batch;
mod captioning;
mod contrastive;
mod matching;
mod parameters;
mod plan;
mod step;
mod trunk;
mod weights;

pub use batch::Batch;
pub use parameters::{LanguageHead, Stage1Parameters};
pub use step::{Hardness, Losses, Stage1, Stage1Options, StepPart};
pub use weights::{Place, TrainedWeights, Training};
