//! Gradients against finite differences, and what ITM is made of.

use crate::common::{batch, direction, examples, losses, moved_model, options, step, step_of};
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::train::{Batch, Hardness, Recompute, Stage1Options};
use qformer::{Cpu, Matching};

/// Along one direction of all parameters.
fn assert_differences(options: &Stage1Options, batches: &[Batch]) {
    let device = Cpu::<f64>::new();
    let at = |step: f32| step_of(&mut moved_model(device, options.clone(), step), batches);
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
