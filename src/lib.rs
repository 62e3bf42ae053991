//! BLIP-2's Querying Transformer.

pub mod error;

pub use error::{Error, Result};
