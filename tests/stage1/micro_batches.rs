//! A batch in micro-batches against the same in one piece.

use crate::common::{Step, distances, examples, losses, model, options, step};
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::params::Part;
use qformer::train::{Batch, Hardness, Recompute, Stage1Options};
use qformer::{Cpu, HostTensor, Matching};

/// Examples of which two are of one image.
const EXAMPLES: [([usize; 2], u32); 7] =
    [([0, 0], 0), ([1, 1], 1), ([1, 2], 1), ([2, 3], 2), ([3, 4], 3), ([4, 0], 4), ([0, 3], 5)];

/// The examples cut into micro-batches of these sizes.
fn cut(sizes: &[usize]) -> Vec<Batch> {
    cut_of(&EXAMPLES, sizes)
}

fn cut_of(mut rest: &[([usize; 2], u32)], sizes: &[usize]) -> Vec<Batch> {
    let batches = sizes.iter().map(|&size| {
        let (part, after) = rest.split_at(size);
        rest = after;
        examples(part)
    });
    batches.collect()
}

fn assert_equal(parted: &Step, whole: &Step) {
    // Losses and gradients are told in single precision.
    for (parted, whole) in losses(&parted.losses).into_iter().zip(losses(&whole.losses)) {
        assert!((parted - whole).abs() < 1e-6 * whole, "{parted} {whole}");
    }
    assert_eq!(parted.losses.matching_accuracy, whole.losses.matching_accuracy);
    assert_eq!(parted.losses.recall, whole.losses.recall);
    let mut compared = 0;
    for (name, relative) in distances(&parted.gradients, &whole.gradients) {
        assert!(relative < 1e-6, "{name} is off by {relative:e}");
        compared += 1;
    }
    assert!(compared > 100, "{compared} tensors");
}

#[test]
fn gradients_and_losses_are_those_of_one_big_batch() {
    let device = Cpu::<f64>::new();
    for (matching, hardness, contrastive_gradient) in [
        (Matching::Classifier, Hardness::Hardest, ContrastiveGradient::OneSided),
        (Matching::MaxSimilarity, Hardness::Sampled, ContrastiveGradient::Full),
    ] {
        let options = Stage1Options { matching, hardness, contrastive_gradient, ..options() };
        let whole = step(device, options.clone(), &cut(&[7]));
        for sizes in [&[4, 3][..], &[2, 2, 3], &[1; 7]] {
            assert_equal(&step(device, options.clone(), &cut(sizes)), &whole);
        }
    }
}

#[test]
fn the_pairs_of_a_large_batch_take_several_passes() {
    // 42 pairs, of which the CPU takes 32 at a time; those of a micro-batch it takes at once.
    let examples: Vec<_> = (0..14).map(|i| (EXAMPLES[i % 7].0, i as u32)).collect();
    for matching in [Matching::Classifier, Matching::MaxSimilarity] {
        let options = Stage1Options { matching, ..options() };
        let of = |sizes| step(Cpu::<f64>::new(), options.clone(), &cut_of(&examples, sizes));
        assert_equal(&of(&[5, 5, 4]), &of(&[14]));
    }
}

#[test]
fn an_image_that_is_the_negative_of_many_texts_takes_several_passes() {
    // All images but one are the same one, whose texts have no other negative: in a micro-batch of its
    // own, three pairs to a pass, its eight pairs take three.
    let examples = [0, 1, 2, 3, 4, 5, 6].map(|i| (EXAMPLES[i].0, if i == 4 { 9 } else { 7 }));
    for matching in [Matching::Classifier, Matching::MaxSimilarity] {
        let options = Stage1Options { matching, ..options() };
        let of = |sizes| step(Cpu::<f64>::new(), options.clone(), &cut_of(&examples, sizes));
        let whole = of(&[7]);
        for sizes in [&[1; 7][..], &[4, 1, 2]] {
            assert_equal(&of(sizes), &whole);
        }
    }
}

#[test]
fn single_precision_adds_up_as_well() {
    let device = Cpu::<f32>::new();
    let whole = step(device, options(), &cut(&[7]));
    let parted = step(device, options(), &cut(&[2, 2, 3]));
    for (name, relative) in distances(&parted.gradients, &whole.gradients) {
        // Sums of other orders, through six layers, from 2e-7 on.
        assert!(relative < 3e-5, "{name} is off by {relative:e}");
    }
}

#[test]
fn blocks_computed_again_give_the_same_bits() {
    for (matching, sizes) in [(Matching::Classifier, &[7][..]), (Matching::MaxSimilarity, &[3, 4])] {
        for dropout in [0.0, 0.1] {
            let options =
                Stage1Options { matching, dropout, hardness: Hardness::Sampled, seed: 3, ..options() };
            let of = |recompute| {
                let options = Stage1Options { recompute, ..options.clone() };
                let step = step(Cpu::<f32>::new(), options, &cut(sizes));
                (step.gradients, losses(&step.losses))
            };
            let (kept, again) = (of(Recompute::None), of(Recompute::Blocks));
            assert!(kept.0.values().flatten().any(|&g| g != 0.0));
            assert!(kept == again, "{matching:?} {sizes:?} {dropout}");
        }
    }
}

#[test]
fn a_batch_without_parts_or_with_too_many_is_refused() {
    let mut model = model(Cpu::<f32>::new(), options());
    for batches in [vec![], vec![examples(&EXAMPLES[..1]); 2049]] {
        let message = model.differentiate(&batches, 1).unwrap_err().to_string();
        assert!(message.contains(&format!("{} micro-batches; 1 to 2048", batches.len())), "{message}");
    }
}

#[test]
fn what_several_passes_worked_out_before_does_not_show() {
    let examples: Vec<_> = (0..14).map(|i| (EXAMPLES[i % 7].0, i as u32)).collect();
    let batches = cut_of(&examples, &[14]);
    let mut model = model(Cpu::<f32>::new(), options());
    let found = [(); 2].map(|()| {
        model.differentiate(&batches, 1).unwrap();
        let mut gradients = Vec::new();
        let each = |_: &Part, gradient: HostTensor| {
            gradients.extend(gradient.into_values());
            Ok(())
        };
        model.weights().for_each_gradient(model.device(), each).unwrap();
        gradients
    });
    assert!(found[0] == found[1]);
}
