//! Text from language models: what is common to all models that tell which token may follow.

pub mod decoding;
