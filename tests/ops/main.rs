//! Every operation against an independent plain computation, its gradient against finite
//! differences, and the properties that the model relies on.

mod absorbed_attention;
mod activation;
mod adamw;
mod attention;
mod common;
mod contrastive;
mod cross_entropy;
#[path = "../support/cuda.rs"]
mod cuda;
mod device;
mod dropout;
mod embedding;
mod fold;
mod gate;
mod layer_norm;
mod linear;
mod matching;
mod norm;
mod normalize;
mod pairs;
mod pool;
mod rms_norm;
mod scatter;
mod similarity;
mod top_k;
