//! BLIP-2's Querying Transformer.

pub mod arena;
pub mod config;
pub mod device;
pub mod error;
mod input;
pub mod layers;
pub mod ops;
pub mod output;
pub mod params;
pub mod qformer;
pub mod tensor;
pub mod tokenizer;
pub mod vision;
mod workspace;

pub use config::Config;
pub use device::Cpu;
pub use error::{Error, Result};
pub use qformer::QFormer;
pub use tokenizer::Tokenizer;
