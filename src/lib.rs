//! BLIP-2's Querying Transformer.

pub mod arena;
pub mod config;
pub mod device;
pub mod error;
mod input;
pub mod ops;
pub mod output;
pub mod params;
pub mod tensor;
pub mod tokenizer;
pub mod vision;

pub use config::Config;
pub use error::{Error, Result};
pub use tokenizer::Tokenizer;
