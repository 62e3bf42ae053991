//! BLIP-2's Querying Transformer.

pub mod config;
pub mod error;
mod input;
pub mod output;
pub mod params;
pub mod tokenizer;

pub use config::Config;
pub use error::{Error, Result};
pub use tokenizer::Tokenizer;
