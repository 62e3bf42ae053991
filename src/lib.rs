//! BLIP-2's Querying Transformer.

pub mod arena;
pub mod config;
pub mod device;
pub mod error;
pub mod ops;
pub mod tensor;
pub mod vision;

pub use error::{Error, Result};
