//! Parameters: their names and the files they are kept in.

pub mod names;
pub mod safetensors;
