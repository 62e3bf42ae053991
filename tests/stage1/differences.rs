//! Gradients against finite differences, and what ITM is made of.

use crate::common::{
    batch, clear_examples, direction, examples, kind, losses, moved_model, options, step, step_of,
};
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::train::{Batch, Hardness, Recompute, Stage1Options};
use qformer::{Cpu, Matching};
use std::collections::BTreeSet;

/// Along one direction of all parameters.
fn assert_differences(options: &Stage1Options, batches: &[Batch]) {
    let device = Cpu::<f64>::new();
    let at = |step: f32| {
        let by = |name: &str, index| step * direction(name, index);
        step_of(&mut moved_model(device, options.clone(), &by), batches)
    };
    let here = at(0.0);
    let terms = here.gradients.iter().flat_map(|(name, gradient)| {
        gradient.iter().enumerate().map(move |(i, g)| f64::from(g * direction(name, i)))
    });
    let slope: f64 = terms.sum();
    let h = 1.0 / 16384.0;
    let difference = (at(h).losses.total - at(-h).losses.total) / f64::from(2.0 * h);
    // Losses are told in single precision.
    let rounding = here.losses.total * f64::from(f32::EPSILON / (2.0 * h));
    assert!(slope.abs() > 20.0 * rounding, "a slope of {slope} proves nothing");
    assert!((difference - slope).abs() < 1e-3 * slope.abs() + rounding, "{difference} {slope}");
}

/// With dropout everywhere and negatives drawn.
fn everything(matching: Matching) -> Stage1Options {
    Stage1Options {
        weights: [0.7, 1.3, 0.9],
        dropout: 0.1,
        hardness: Hardness::Sampled,
        contrastive_gradient: ContrastiveGradient::Full,
        matching,
        seed: 5,
        ..options()
    }
}

#[test]
fn the_whole_step_matches_finite_differences() {
    assert_differences(&everything(Matching::Classifier), &[batch()]);
}

#[test]
fn the_whole_step_with_the_largest_similarity_matches_finite_differences() {
    assert_differences(&everything(Matching::MaxSimilarity), &[batch()]);
    // Alone, so that nothing hides it.
    let alone = Stage1Options { weights: [0.0, 1.0, 0.0], ..everything(Matching::MaxSimilarity) };
    assert_differences(&alone, &[batch()]);
}

/// The tensors of one kind after the other, so that none hides another: every element is moved the way that its
/// gradient says, by one of two amounts.
#[test]
fn every_kind_of_tensor_matches_finite_differences() {
    for matching in [Matching::Classifier, Matching::MaxSimilarity] {
        // Of a batch where no winner and no negative becomes another on the way.
        let options = Stage1Options { dropout: 0.0, hardness: Hardness::Hardest, ..everything(matching) };
        let batches = [clear_examples(0..3)];
        let here = step(Cpu::<f64>::new(), options.clone(), &batches);
        let kinds: BTreeSet<String> = here.gradients.keys().map(|name| kind(name)).collect();
        for of_kind in &kinds {
            let amount = |name: &str, i| if direction(name, i) > 0.0 { 1.0 } else { 0.5 };
            let towards = |name: &str, i| amount(name, i) * here.gradients[name][i].signum();
            let gradients = here.gradients.iter().filter(|(name, _)| kind(name) == *of_kind);
            let terms = gradients.flat_map(|(name, gradient)| {
                gradient.iter().enumerate().map(move |(i, g)| f64::from(g * towards(name, i)))
            });
            let slope: f64 = terms.sum();
            // The loss changes by 1/256 or less: enough to be told in single precision, and little enough to
            // be straight. A power of two, so that it is added exactly.
            let h = (-8.0 - slope.max(1.0).log2().ceil()).exp2() as f32;
            let loss = |h: f32| {
                let by = |name: &str, i| if kind(name) == *of_kind { h * towards(name, i) } else { 0.0 };
                step_of(&mut moved_model(Cpu::<f64>::new(), options.clone(), &by), &batches).losses.total
            };
            let difference = (loss(h) - loss(-h)) / f64::from(2.0 * h);
            let rounding = here.losses.total * f64::from(f32::EPSILON / (2.0 * h));
            // The temperature is moved by 1/100 of itself, so the square of that is left of the curvature.
            assert!((difference - slope).abs() < 2e-4 * slope + rounding, "{of_kind}: {difference} {slope}");
            // A key's bias has no gradient, and of the largest similarity the head of the classifier has none.
            let none = of_kind.ends_with("key.bias") || of_kind.starts_with("itm_head");
            assert!(none || slope > 20.0 * rounding, "{of_kind}: a slope of {slope} proves nothing");
        }
    }
}

/// Which they would not if a first phase dropped out other things when it runs again.
#[test]
fn micro_batches_with_dropout_match_finite_differences() {
    let parts = [examples(&[([0, 0], 0), ([1, 1], 1)]), examples(&[2, 3, 4].map(|i| ([i, i], i as u32)))];
    assert_differences(&everything(Matching::Classifier), &parts);
    let again = Stage1Options { recompute: Recompute::Blocks, ..everything(Matching::MaxSimilarity) };
    assert_differences(&again, &parts);
}

#[test]
fn an_image_without_a_possible_negative_gives_its_own_pair_alone() {
    for matching in [Matching::Classifier, Matching::MaxSimilarity] {
        for hardness in [Hardness::Hardest, Hardness::Sampled] {
            let options = Stage1Options { matching, hardness, ..options() };
            let of = |batch| losses(&step(Cpu::<f64>::new(), options.clone(), &[batch]).losses)[2];
            let alone = [0, 1, 2].map(|i| of(examples(&[([i, i], 0)])));
            let of_one_image = of(examples(&[0, 1, 2].map(|i| ([i, i], 7))));
            let mean = alone.iter().sum::<f64>() / 3.0;
            // Losses are told in single precision.
            assert!((of_one_image - mean).abs() < 1e-6 * mean, "{of_one_image} {mean}");
            // With a negative each it is another.
            let of_three = of(examples(&[0, 1, 2].map(|i| ([i, i], i as u32))));
            assert!((of_three - mean).abs() > 1e-3 * mean, "{of_three} {mean}");
        }
    }
}

#[test]
fn two_captions_of_an_image_are_no_negatives_of_one_another() {
    // Images 0 and 1 are one, so image 2 is the only negative of both, and theirs are its.
    let options = Stage1Options { hardness: Hardness::Sampled, ..options() };
    let ids = |ids: [u32; 3]| [0, 1, 2].map(|i| ([i, i], ids[i]));
    let matching_loss = |seed| {
        let options = Stage1Options { seed, ..options.clone() };
        losses(&step(Cpu::<f64>::new(), options, &[examples(&ids([4, 4, 9]))]).losses)[2]
    };
    // Only the draws of image 2 and of its text have a choice, of two each.
    let told: Vec<f64> = (0..8).map(matching_loss).collect();
    let distinct = |mut told: Vec<f64>| {
        told.sort_by(f64::total_cmp);
        told.dedup();
        told.len()
    };
    assert!((2..=4).contains(&distinct(told.clone())), "{told:?}");
}
