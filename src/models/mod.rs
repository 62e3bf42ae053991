//! The models: the image encoder, and the Q-Former that reads its features.

pub mod qformer;
pub mod vision;
