//! Every operation at BLIP-2's own shapes, in single precision, on all cores: the cases that `qformer-bench kernels`
//! measures, by the same names.
//!
//! The throughput of a product counts its floating-point operations as elements, so `Gelem/s` reads as GFLOP/s.

#[path = "../src/bin/qformer-bench/cases/mod.rs"]
mod cases;
#[path = "../src/bin/qformer-bench/random.rs"]
mod random;

use cases::{Case, Cases, FrontEnd};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qformer::{Config, Cpu, Result};
use std::time::Duration;

/// Images, each with a caption.
const BATCH: usize = 8;

struct Measured<'a>(&'a mut Criterion);

impl FrontEnd for Measured<'_> {
    fn measure(
        &mut self,
        &Case { operation, shape, cost }: &Case<'_>,
        launch: &mut (dyn FnMut() -> Result<()> + Send),
    ) -> Result<()> {
        let mut group = self.0.benchmark_group(operation);
        group.throughput(match cost.flops as u64 {
            0 => Throughput::Bytes(cost.bytes as u64),
            flops => Throughput::Elements(flops),
        });
        group.bench_function(shape, |bencher| bencher.iter(|| launch().unwrap()));
        group.finish();
        Ok(())
    }
}

fn operations(criterion: &mut Criterion) {
    let cases = Cases {
        device: &Cpu::<f32>::new(),
        config: &Config::blip2_vit_g(),
        batch: BATCH,
        front_end: &mut Measured(criterion),
    };
    cases.run().unwrap();
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = ops; config = short(); targets = operations }
criterion_main!(ops);
