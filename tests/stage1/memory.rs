//! Memory as planned, the numbers that are trained, and options that cannot be.

use crate::common::{config, examples, golden, model, options};
use qformer::params::safetensors::Checkpoint;
use qformer::params::{NamedCheckpoint, Part, Tree};
use qformer::tensor::HostTensor;
use qformer::train::{
    Batch, Hardness, MemoryPlan, Recompute, Stage1, Stage1Options, Stage1Parameters, StepSize,
};
use qformer::{Config, Cpu, Matching};

const TEXT_TOKENS: usize = 16;

/// A batch of random images whose texts have so many tokens each.
fn batch(images: usize, text_tokens: usize) -> Batch {
    let config = config();
    let shape = [images, 17, config.vision.width()];
    let values = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.7).sin()).collect();
    let texts = (0..images).map(|i| (0..text_tokens).map(|t| (t * 7 + i * 3 + 5) as u32 % 138).collect());
    let ids = (0..images as u32).collect();
    Batch::new(&config, HostTensor::new(&shape, values).unwrap(), texts.collect(), ids).unwrap()
}

fn size(images: usize, batches: usize) -> StepSize {
    StepSize { images, batches, image_tokens: 17, text_tokens: TEXT_TOKENS }
}

#[test]
fn steps_within_the_plan_take_no_memory_beyond_it() {
    let device = Cpu::<f32>::new();
    for matching in [Matching::Classifier, Matching::MaxSimilarity] {
        for recompute in [Recompute::None, Recompute::Blocks] {
            let options = Stage1Options { matching, recompute, hardness: Hardness::Sampled, ..options() };
            let plan = MemoryPlan::of(&device, &config(), &options, size(4, 3)).unwrap();
            let mut model = model(device, options);
            assert_eq!(model.reserve(size(4, 3)).unwrap(), plan);
            assert_eq!(model.memory(), plan);
            for (step, tokens) in [TEXT_TOKENS, 2, 9].into_iter().enumerate() {
                model.differentiate(&[batch(4, tokens), batch(3, tokens), batch(4, 5)], step + 1).unwrap();
                assert_eq!(model.memory(), plan);
            }
        }
    }
}

#[test]
fn a_step_that_was_not_planned_takes_what_it_would_have_been() {
    let device = Cpu::<f64>::new();
    let plan = MemoryPlan::of(&device, &config(), &options(), size(5, 1)).unwrap();
    let mut model = model(device, options());
    model.differentiate(&[batch(5, TEXT_TOKENS)], 1).unwrap();
    // Every image has a negative text and every text a negative image, so no pair is missing.
    assert_eq!(model.memory(), plan);
    assert_eq!(plan.peak(), plan.purposes().iter().map(|(_, bytes)| bytes).sum::<usize>());
}

#[test]
fn computing_blocks_again_takes_less_memory_and_micro_batches_do_too() {
    let (device, config) = (Cpu::<f32>::new(), Config::blip2_vit_g());
    let plan = |recompute, images, batches| {
        let options = Stage1Options { recompute, start_token: 30_522, ..options() };
        let size = StepSize { images, batches, image_tokens: 257, text_tokens: 32 };
        MemoryPlan::of(&device, &config, &options, size).unwrap()
    };
    let [kept, again] = [Recompute::None, Recompute::Blocks].map(|recompute| plan(recompute, 64, 1));
    assert!(3 * again.second_phase < kept.second_phase, "{again:?} {kept:?}");
    assert!(again.first_phase < kept.first_phase && again.parameters == kept.parameters);
    let parts = plan(Recompute::None, 8, 8);
    assert!(7 * parts.first_phase < kept.first_phase && parts.second_phase < kept.second_phase);
    // A pass of 32 pairs and 64 captions against one of 24 and 8.
    assert!(kept.second_phase < 3 * parts.second_phase, "{parts:?} {kept:?}");
    // Numbers of four bytes, with less than 1 % of gaps between the tensors.
    let trained = 4 * 186_705_470;
    assert!((trained..trained + trained / 100).contains(&kept.parameters), "{kept:?}");
    assert!(kept.gradients == kept.parameters && kept.moments == 2 * kept.parameters && kept.weights == 0);
}

#[test]
fn as_many_numbers_are_trained_as_by_lavis() {
    let count = |matching| {
        let mut count = 0;
        Stage1Parameters::spec(&Config::blip2_vit_g(), matching)
            .map(&mut |spec| count += spec.parts.iter().map(Part::len).sum::<usize>());
        count
    };
    assert_eq!(count(Matching::Classifier), 186_705_470);
    assert_eq!(count(Matching::MaxSimilarity), 186_705_472);
}

#[test]
fn what_cannot_be_trained_is_refused() {
    let checkpoint = Checkpoint::open(&golden()).unwrap();
    let source = NamedCheckpoint::new(&checkpoint).unwrap();
    let refused = |config: Config, options: Stage1Options, what: &str| {
        let refused = Stage1::new(Cpu::<f32>::new(), config, options, &source);
        let message = refused.err().expect(what).to_string();
        assert!(message.contains(what), "{message}");
    };
    refused(config(), Stage1Options { weights: [1.0, -1.0, 1.0], ..options() }, "weight -1");
    refused(config(), Stage1Options { weights: [f64::NAN; 3], ..options() }, "weight NaN");
    refused(config(), Stage1Options { smoothing: 1.0, ..options() }, "label smoothing is 1");
    refused(config(), Stage1Options { dropout: -0.1, ..options() }, "dropout is -0.1");
    refused(config(), Stage1Options { start_token: 139, ..options() }, "(vocab_size is 139)");
    let mut silent = config();
    silent.qformer.use_qformer_text_input = false;
    refused(silent, options(), "reads no text");
    // A checkpoint without the scale and bias is named as such.
    let matching = Matching::MaxSimilarity;
    refused(config(), Stage1Options { matching, ..options() }, "itm_scale");
}

#[test]
fn steps_of_impossible_size_are_refused() {
    let mut model = model(Cpu::<f32>::new(), options());
    for (size, what) in [
        (size(0, 1), "0 images"),
        (size(1 << 20, 1), "images in a micro-batch"),
        (size(1, 0), "0 micro-batches"),
        (StepSize { text_tokens: 65, ..size(2, 1) }, "2 to 64"),
        (StepSize { image_tokens: 0, ..size(2, 1) }, "0 tokens of an image"),
    ] {
        let message = model.reserve(size).unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
    // Texts beyond the plan are learnt from nevertheless.
    model.reserve(size(1, 1)).unwrap();
    model.differentiate(&[examples(&[([0, 0], 0), ([1, 1], 1)])], 1).unwrap();
}
