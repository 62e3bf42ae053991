//! The models: the image encoder, the Q-Former that reads its features, and the language model that it speaks to.

pub mod language;
pub mod qformer;
pub mod vision;
