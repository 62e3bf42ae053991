//! Every operation against an independent plain computation, its gradient against finite
//! differences, and the properties that the model relies on.

mod absorbed_attention;
mod activation;
mod adamw;
mod attention;
mod common;
mod cross_entropy;
mod contrastive;
#[path = "../support/cuda.rs"]
mod cuda;
mod device;
mod dropout;
mod embedding;
mod fold;
mod gemm;
mod layer_norm;
mod norm;
mod matching;
mod normalize;
mod pool;
mod similarity;
