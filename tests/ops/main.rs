//! Every operation against an independent plain computation, its gradient against finite
//! differences, and the properties that the model relies on.

mod absorbed_attention;
mod activation;
mod attention;
mod common;
mod contrastive;
#[path = "../support/cuda.rs"]
mod cuda;
mod device;
mod dropout;
mod embedding;
mod gemm;
mod layer_norm;
mod matching;
mod normalize;
mod pool;
mod similarity;
