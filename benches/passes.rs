//! The Q-Former's passes, captions and a step of stage 1 at BLIP-2's real size, with random weights, in single
//! precision, on all cores: the passes that `qformer-bench` measures, in few samples.
//!
//! The throughput of a pass counts its floating-point operations as elements, so `Gelem/s` reads as GFLOP/s.

#[path = "../src/bin/qformer-bench/passes/mod.rs"]
mod passes;
#[path = "../src/bin/qformer-bench/random.rs"]
mod random;

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use passes::inputs::RandomWeights;
use passes::step::{Inputs, recipe, step};
use passes::{Pass, Passes};
use qformer::generate::{Decoding, Search};
use qformer::train::Stage1;
use qformer::{Captioner, Config, Cpu};
use std::time::Duration;

/// Images, texts and pairs in a batch.
const BATCH: usize = 8;
/// Tokens of a caption that are generated.
const GENERATED: usize = 8;
/// Images of a training step, each with a caption: as few as have negatives.
const STEP_BATCH: usize = 2;

fn inference(criterion: &mut Criterion) {
    let (device, config) = (Cpu::<f32>::new(), Config::blip2_vit_g());
    let passes = Passes::prepare(&device, &config, BATCH, &RandomWeights).unwrap();
    for pass in [Pass::Image, Pass::Text, Pass::Joint, Pass::Score] {
        let part = passes.part(pass);
        let mut group = criterion.benchmark_group(part.name);
        group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(part.flops as u64));
        group.bench_function(format!("{} {}", part.items, part.unit), |bencher| {
            bencher.iter(|| passes.run(pass).unwrap());
        });
        group.finish();
    }

    let Passes { model, vision_output, .. } = passes;
    // Of BERT's vocabulary with the start token [DEC].
    let ends = [config.qformer.vocab_size as u32 - 1, 102];
    let captioner = Captioner::new(model, &RandomWeights, ends).unwrap();
    let decoding = Decoding {
        search: Search::GREEDY,
        max_new_tokens: GENERATED,
        min_new_tokens: GENERATED,
        ..Decoding::default()
    };
    let mut group = criterion.benchmark_group("caption");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements((BATCH * GENERATED) as u64));
    group.bench_function(format!("{BATCH} images, {GENERATED} tokens"), |bencher| {
        bencher.iter(|| captioner.caption(&vision_output, &decoding).unwrap());
    });
    group.finish();
}

fn training(criterion: &mut Criterion) {
    let config = Config::blip2_vit_g();
    let inputs = Inputs::random(&config, STEP_BATCH, config.image_tokens());
    let batch = inputs.batch(&config).unwrap();
    let options = recipe(&config);
    let mut model = Stage1::new(Cpu::<f32>::new(), config, options, &RandomWeights).unwrap();
    model.reserve(inputs.size()).unwrap();
    let mut number = 0;
    let mut group = criterion.benchmark_group("train");
    group.sampling_mode(SamplingMode::Flat).throughput(Throughput::Elements(STEP_BATCH as u64));
    group.bench_function(format!("{STEP_BATCH} images"), |bencher| {
        bencher.iter(|| {
            number += 1;
            step(&mut model, &batch, number).unwrap()
        });
    });
    group.finish();
}

fn few() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
}

criterion_group! { name = all; config = few(); targets = inference, training }
criterion_main!(all);
