//! Ten steps against what LAVIS computes.

use crate::common::{batch, distances, losses, model, options, step, tensors};
use crate::cuda::cuda;
use qformer::Cpu;
use qformer::ops::adamw::AdamW;
use qformer::params::names::canonical;
use qformer::train::Stage1Options;
use std::collections::BTreeMap;

/// The recipe of training.json.
const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.05, max_norm: None };
const LEARNING_RATE: f64 = 3e-4;

#[test]
fn gradients_are_those_of_lavis() {
    let found = step(Cpu::<f32>::new(), options(), &[batch()]).gradients;
    let expected = tensors("expected.safetensors");
    let of_lavis: BTreeMap<String, Vec<f64>> = expected
        .iter()
        .filter_map(|(name, (values, _))| Some((canonical(name.strip_prefix("grad.")?)?, values.clone())))
        .collect();
    assert!(of_lavis.iter().all(|(name, values)| values.len() == found[name].len()));
    assert!(of_lavis.keys().eq(found.keys()));
    let mut compared = 0;
    for (name, relative) in distances(&found, &of_lavis) {
        assert!(relative < 1e-4, "{name} is off by {relative:e}");
        compared += 1;
    }
    assert_eq!(compared, of_lavis.len());
}

#[test]
fn ten_steps_have_the_losses_of_lavis() {
    let (mut model, batch) = (model(Cpu::<f32>::new(), options()), batch());
    let expected = tensors("expected.safetensors");
    for (step, expected) in expected["losses"].0.chunks(4).enumerate() {
        let found = losses(&model.differentiate(std::slice::from_ref(&batch), step + 1).unwrap());
        // Rounding grows from step to step.
        let tolerance = if step == 0 { 1e-5 } else { 1e-3 };
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() < tolerance * e, "step {step}: {found:?}, of LAVIS {expected:?}");
        }
        model.update(ADAMW, LEARNING_RATE, step + 1).unwrap();
    }
}

/// The worst tensor of a plain PyTorch step in bf16 is off by so much.
const BF16: f64 = 0.032;

/// Of matching and captioning. The contrastive loss goes by the query that wins, and in bf16 another one
/// wins where two are nearly equal, as five pairs of this batch are: its gradient is tested by itself
/// (tests/ops/contrastive) on numbers without such ties.
fn without_contrast() -> Stage1Options {
    Stage1Options { weights: [0.0, 1.0, 1.0], ..options() }
}

#[test]
fn the_gpu_has_the_gradients_that_bf16_allows() {
    let [wanted, found] = [
        step(Cpu::<f32>::new(), without_contrast(), &[batch()]),
        step(cuda().clone(), without_contrast(), &[batch()]),
    ]
    .map(|step| step.gradients);
    let mut compared = 0;
    for (name, relative) in distances(&found, &wanted) {
        assert!(relative < 2.0 * BF16, "{name} is off by {relative:e}");
        compared += 1;
    }
    // The contrastive head and its temperature get none.
    assert_eq!(compared, wanted.len() - 5);
}

#[test]
fn the_gpu_learns_from_micro_batches_as_from_one_batch() {
    let whole = step(cuda().clone(), without_contrast(), &[batch()]);
    let examples = [0, 1, 2, 3, 4].map(|i| ([i, i], i as u32));
    let parts = [&examples[..2], &examples[2..]].map(crate::common::examples);
    let parted = step(cuda().clone(), without_contrast(), &parts);
    for (name, relative) in distances(&parted.gradients, &whole.gradients) {
        assert!(relative < 2.0 * BF16, "{name} is off by {relative:e}");
    }
    for (parted, whole) in losses(&parted.losses).into_iter().zip(losses(&whole.losses)) {
        assert!((parted - whole).abs() < 5e-3 * whole, "{parted} {whole}");
    }
}

#[test]
fn the_gpu_learns_as_the_cpu_does() {
    let (mut model, batch) = (model(cuda().clone(), options()), batch());
    let expected = tensors("expected.safetensors");
    for (step, expected) in expected["losses"].0.chunks(4).take(3).enumerate() {
        let found = losses(&model.differentiate(std::slice::from_ref(&batch), step + 1).unwrap());
        // Each step differentiates with other winners of the contrastive loss, so the losses part slowly.
        let off = |i: usize| (found[i] - expected[i]).abs() / expected[i];
        let near = off(0) < 5e-3 && (1..4).all(|i| off(i) < 5e-2);
        assert!(near, "step {step}: {found:?}, of LAVIS {expected:?}");
        model.update(ADAMW, LEARNING_RATE, step + 1).unwrap();
    }
}

#[test]
fn the_gpu_matches_by_the_largest_similarity() {
    let options = Stage1Options { matching: qformer::Matching::MaxSimilarity, ..without_contrast() };
    let [wanted, found] =
        [step(Cpu::<f32>::new(), options.clone(), &[batch()]), step(cuda().clone(), options, &[batch()])];
    for (found, wanted) in losses(&found.losses).into_iter().zip(losses(&wanted.losses)) {
        assert!((found - wanted).abs() < 1e-2 * wanted, "{found} {wanted}");
    }
    // What goes through the maximum may go through another query in bf16; the scale and bias do not.
    for (name, relative) in distances(&found.gradients, &wanted.gradients) {
        if ["itm_scale", "itm_bias"].contains(&name) {
            assert!(relative < 2.0 * BF16, "{name} is off by {relative:e}");
        }
    }
}
