//! Layers: each a file with its parameters, what it works in, and its passes.

pub mod block;
pub mod cross_attention;
pub mod feed_forward;
pub mod layer_norm;
pub mod linear;
pub mod self_attention;

pub use block::Block;
pub use cross_attention::CrossAttention;
pub use feed_forward::FeedForward;
pub use layer_norm::LayerNorm;
pub use linear::Linear;
pub use self_attention::SelfAttention;
