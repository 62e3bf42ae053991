//! Every operation at BLIP-2's own shapes, in single precision, on all cores.
//!
//! The throughput of a product counts its floating-point operations as elements, so `Gelem/s`
//! reads as GFLOP/s.

mod absorbed_attention;
mod adamw;
mod attention;
mod common;
mod contrastive;
mod cross_entropy;
mod embedding;
mod gemm;
mod layer_norm;
mod matching;
mod norm;
mod normalize;
mod similarity;

use criterion::{Criterion, criterion_group, criterion_main};
use std::time::Duration;

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! {
    name = operations;
    config = short();
    targets =
        gemm::benchmark,
        attention::benchmark,
        absorbed_attention::benchmark,
        layer_norm::benchmark,
        embedding::benchmark,
        normalize::benchmark,
        similarity::benchmark,
        adamw::benchmark,
        contrastive::benchmark,
        cross_entropy::benchmark,
        matching::benchmark,
        norm::benchmark,
}
criterion_main!(operations);
