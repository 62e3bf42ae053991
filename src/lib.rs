//! BLIP-2's Querying Transformer.

pub mod error;
pub mod vision;

pub use error::{Error, Result};
