//! The operations: each a folder with its contract (`mod.rs`: what it computes, shapes, forward and
//! backward in one trait) and one file per device that has it.
//!
//! A contract says which outputs are written and which are added to: gradients of activations are
//! written unless the caller asks otherwise, gradients of parameters are always added to.

pub mod absorbed_attention;
pub mod activation;
pub mod adamw;
pub mod attention;
pub mod contrastive;
pub mod cross_entropy;
pub mod dropout;
pub mod embedding;
pub mod fold;
pub mod gate;
pub mod layer_norm;
pub mod linear;
pub mod matching;
pub mod norm;
pub mod normalize;
pub mod pairs;
pub mod pool;
pub mod rms_norm;
pub mod scatter;
pub mod similarity;
pub mod top_k;

use absorbed_attention::AbsorbedAttention;
use activation::ActivationOp;
use adamw::AdamWOp;
use attention::AttentionOp;
use contrastive::ContrastiveOp;
use cross_entropy::CrossEntropyOp;
use dropout::DropoutOp;
use embedding::EmbeddingOp;
use fold::FoldOp;
use gate::GateOp;
use layer_norm::LayerNormOp;
use linear::LinearOp;
use matching::MatchingOp;
use norm::NormOp;
use normalize::NormalizeOp;
use pairs::PairsOp;
use pool::PoolOp;
use rms_norm::RmsNormOp;
use scatter::ScatterOp;
use similarity::SimilarityOp;
use top_k::TopKOp;

/// A device that has every operation, in both directions: the table of contents of the numerics.
pub trait Backend:
    LinearOp
    + ActivationOp
    + GateOp
    + AttentionOp
    + AbsorbedAttention
    + LayerNormOp
    + RmsNormOp
    + EmbeddingOp
    + NormalizeOp
    + PoolOp
    + ScatterOp
    + DropoutOp
    + FoldOp
    + SimilarityOp
    + ContrastiveOp
    + PairsOp
    + MatchingOp
    + CrossEntropyOp
    + TopKOp
    + NormOp
    + AdamWOp
{
}

impl<B> Backend for B where
    B: LinearOp
        + ActivationOp
        + GateOp
        + AttentionOp
        + AbsorbedAttention
        + LayerNormOp
        + RmsNormOp
        + EmbeddingOp
        + NormalizeOp
        + PoolOp
        + ScatterOp
        + DropoutOp
        + FoldOp
        + SimilarityOp
        + ContrastiveOp
        + PairsOp
        + MatchingOp
        + CrossEntropyOp
        + TopKOp
        + NormOp
        + AdamWOp
{
}
