mod case;
mod even;

use crate::common::{Matrix, assert_gradient, assert_independent_of_threads};
use crate::device::TestDevice;
use case::{Case, Choice, Forward};
use qformer::device::{Cpu, Cuda};
use qformer::ops::contrastive::{ContrastiveGradient, ContrastiveOp, NO_NEGATIVE};
use std::process::Command;

/// Images, queries of each, texts, width: the model's, ragged; more than one block of texts, several
/// captions of an image; more than one block of images; other numbers of queries and widths that a Hopper
/// GPU has kernels for, of which the ring of
/// stages comes round, and images of a block are put together twice; one of each;
/// primes; no negative for one image; features wider than a block has, in whole vectors and not; more queries
/// than are multiplied at a time.
const SHAPES: [[usize; 4]; 14] = [
    [37, 32, 53, 256],
    [33, 32, 130, 256],
    [260, 32, 2, 256],
    [13, 8, 21, 40],
    [9, 16, 131, 72],
    [257, 64, 2, 200],
    [2100, 8, 2, 8],
    [1, 1, 1, 1],
    [5, 7, 3, 13],
    [3, 2, 11, 8],
    [9, 255, 7, 19],
    [19, 7, 35, 520],
    [3, 17, 5, 301],
    [5, 48, 37, 96],
];

/// Shapes that finite differences have time for.
const SMALL: [[usize; 4]; 4] = [[5, 7, 3, 13], [3, 2, 11, 8], [1, 3, 1, 5], [4, 1, 4, 5]];

/// Index of the largest of those that are allowed, the first of equals.
fn largest(n: usize, value: impl Fn(usize) -> f64, allowed: impl Fn(usize) -> bool) -> u32 {
    let better = |best: usize, j: usize| if value(j) > value(best) { j } else { best };
    (0..n).filter(|&j| allowed(j)).reduce(better).map_or(NO_NEGATIVE, |j| j as u32)
}

/// The forward pass gives what the definition does.
fn is_plain<D: TestDevice + ContrastiveOp>(case: &Case) {
    let (images, texts) = (case.images(), case.texts.rows);
    let shape = [images, case.count(), texts, case.texts.cols];
    let got = case.forward::<D>(Choice::Hardest);
    let (want, reference) = (case.plain(|x| x), case.plain(D::round));
    assert_eq!(got.winner, want.winner, "{shape:?}");
    let loss = |directions: [f64; 2]| Matrix::filled(1, 1, directions.iter().sum::<f64>() / 2.0);
    // With one pair the loss is 0, of which nothing is a small part.
    if images * texts > 1 {
        D::assert_near("loss", &got.loss, &loss(want.directions), &loss(reference.directions));
    } else {
        assert!(got.loss.at(0, 0).abs() < 1e-6);
    }
    let positive = |i: usize, t: usize| case.image_ids[i] == case.text_ids[t];
    for (d, statistics) in [&got.image_statistics, &got.text_statistics].into_iter().enumerate() {
        let log_sum_exp = Matrix::from_fn(1, statistics.cols, |_, j| statistics.at(0, j));
        D::assert_near("log-sum-exp", &log_sum_exp, &want.log_sum_exp[d], &reference.log_sum_exp[d]);
        for j in 0..statistics.cols {
            let of_line = if d == 0 {
                (0..texts).filter(|&t| positive(j, t)).count()
            } else {
                (0..images).filter(|&i| positive(i, j)).count()
            };
            assert_eq!(statistics.at(1, j), of_line as f64, "positives");
        }
    }
    let similarity = |i: usize, t: usize| want.similarity.at(i, t);
    let text_of = |i, all| largest(texts, |t| similarity(i, t), |t| all || !positive(i, t));
    let image_of = |t, all| largest(images, |i| similarity(i, t), |i| all || !positive(i, t));
    let negative_texts: Vec<u32> = (0..images).map(|i| text_of(i, false)).collect();
    let negative_images: Vec<u32> = (0..texts).map(|t| image_of(t, false)).collect();
    assert_eq!(got.negative_texts, negative_texts, "{shape:?}");
    assert_eq!(got.negative_images, negative_images, "{shape:?}");
    let recalled = [
        (0..images).filter(|&i| positive(i, text_of(i, true) as usize)).count() as u32,
        (0..texts).filter(|&t| positive(image_of(t, true) as usize, t)).count() as u32,
    ];
    assert_eq!(got.recalled, recalled, "{shape:?}");
}

fn forward_matches<D: TestDevice + ContrastiveOp>() {
    SHAPES.into_iter().for_each(|shape| is_plain::<D>(&Case::random::<D>(shape)));
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

#[test]
fn equal_ids_share_the_target() {
    // Logits 0, of 4 texts two with image 0: every line's cross-entropy is that of an even softmax.
    let mut case = Case::random::<Cpu<f64>>([2, 3, 4, 5]);
    case.texts = Matrix::filled(4, 5, 0.0);
    (case.image_ids, case.text_ids) = (vec![8, 9], vec![8, 8, 9, 9]);
    let loss = case.forward::<Cpu<f64>>(Choice::Hardest).loss.at(0, 0);
    assert!((loss - (4f64.ln() + 2f64.ln()) / 2.0).abs() < 1e-12, "{loss}");
    // Similarity 1 for image 0 and text 0 alone: its row's targets are 0.45 + 0.025 twice and 0.025
    // twice, its column's 0.95 and 0.05; of the other lines only text 0's row in image 1 is not even.
    let feature = Matrix::from_fn(4, 5, |t, e| f64::from(t == 0 && e == 0));
    case.queries = Matrix::from_fn(6, 5, |q, e| f64::from(q == 2 && e == 0));
    (case.texts, case.temperature) = (feature, 1.0);
    let loss = case.forward::<Cpu<f64>>(Choice::Hardest).loss.at(0, 0);
    let e = 1f64.exp();
    let rows = ((e + 3.0).ln() - 0.475 + 4f64.ln()) / 2.0;
    let columns = ((e + 1.0).ln() - 0.95 + 3.0 * 2f64.ln()) / 4.0;
    assert!((loss - (rows + columns) / 2.0).abs() < 1e-12, "{loss}");
}

/// Orthogonal features of n images at the temperature where the softmax is the targets, with the loss
/// there, the least possible.
fn at_the_floor(n: usize) -> (Case, f64) {
    let identity = Matrix::from_fn(n, n, |r, c| f64::from(r == c));
    let target = 0.9 + 0.1 / n as f64;
    let case = Case {
        queries: identity.clone(),
        texts: identity,
        temperature: 1.0 / ((n as f64 - 1.0) * target / (1.0 - target)).ln(),
        smoothing: 0.1,
        image_ids: (0..n as u32).collect(),
        text_ids: (0..n as u32).collect(),
    };
    (case, -target * target.ln() - (1.0 - target) * (0.1 / n as f64).ln())
}

#[test]
fn smoothing_sets_a_floor() {
    for (n, known) in [(1024, 1.0172), (1680, 1.0671)] {
        let (case, floor) = at_the_floor(n);
        assert!((floor - known).abs() < 5e-5, "{floor}");
        let forward = case.forward::<Cpu<f32>>(Choice::Hardest);
        // Log-sum-exps of size 8 in single precision, as the mean of 1024 or more.
        assert!((forward.loss.at(0, 0) - floor).abs() < 1e-5);
        assert_eq!(forward.recalled, [n as u32; 2]);
    }
    let (case, _) = at_the_floor(1024);
    let [dqueries, _, _] = case.backward::<Cpu<f32>>(ContrastiveGradient::Full, 1.0, 0.0);
    // The gradient is 0 there; elsewhere it is of the order of 1/(N·temperature) = 0.01.
    assert!(dqueries.values.iter().all(|d| d.abs() < 1e-7));
}

#[test]
fn backward_matches_finite_differences() {
    const WEIGHT: f64 = 0.7;
    for shape in SMALL {
        let case = Case::random::<Cpu<f64>>(shape);
        let [dqueries, dtexts, dtemperature] =
            case.backward::<Cpu<f64>>(ContrastiveGradient::Full, WEIGHT, 0.0);
        let loss = |case: Case| WEIGHT * case.forward::<Cpu<f64>>(Choice::Hardest).loss.at(0, 0);
        if shape == [1, 3, 1, 5] {
            assert!(dqueries.values.iter().chain(&dtexts.values).all(|d| d.abs() < 1e-15));
            continue;
        }
        let moved = |queries: &Matrix| loss(Case { queries: queries.clone(), ..case.clone() });
        assert_gradient("dqueries", &case.queries, &dqueries, moved);
        let moved = |texts: &Matrix| loss(Case { texts: texts.clone(), ..case.clone() });
        assert_gradient("dtexts", &case.texts, &dtexts, moved);
        let moved = |point: &Matrix| loss(Case { temperature: point.at(0, 0), ..case.clone() });
        assert_gradient("dtemperature", &Matrix::filled(1, 1, case.temperature), &dtemperature, moved);
    }
}

#[test]
fn a_one_sided_gradient_is_that_of_half_the_loss() {
    for shape in [SMALL[0], SMALL[1], SMALL[3]] {
        let case = Case::random::<Cpu<f64>>(shape);
        let gradient = |kind| case.backward::<Cpu<f64>>(kind, 1.0, 0.0);
        let [dqueries, dtexts, dtemperature] = gradient(ContrastiveGradient::OneSided);
        let half = |case: Case, direction: usize| 0.5 * case.plain(|x| x).directions[direction];
        let moved = |queries: &Matrix| half(Case { queries: queries.clone(), ..case.clone() }, 0);
        assert_gradient("dqueries", &case.queries, &dqueries, moved);
        let moved = |texts: &Matrix| half(Case { texts: texts.clone(), ..case.clone() }, 1);
        assert_gradient("dtexts", &case.texts, &dtexts, moved);
        assert_eq!(dtemperature, gradient(ContrastiveGradient::Full)[2]);
    }
}

#[test]
fn the_gradient_of_the_temperature_is_added() {
    let case = Case::random::<Cpu<f64>>(SMALL[0]);
    let added_to = |x| case.backward::<Cpu<f64>>(ContrastiveGradient::Full, 1.0, x)[2].at(0, 0);
    let [zero, three] = [0.0, 3.0].map(added_to);
    assert!((three - zero - 3.0).abs() < 1e-15);
}

#[test]
fn of_equal_queries_the_first_gets_the_gradient() {
    let mut case = Case::random::<Cpu<f32>>([3, 4, 5, 6]);
    case.queries = Matrix::from_fn(12, 6, |_, e| if e == 0 { 1.0 } else { 0.0 });
    let [dqueries, ..] = case.backward::<Cpu<f32>>(ContrastiveGradient::Full, 1.0, 0.0);
    assert!((0..12).all(|q| (q % 4 == 0) == dqueries.row(q).iter().any(|&d| d != 0.0)));
}

fn the_first_of_equals_is_chosen_by<D: TestDevice + ContrastiveOp>() {
    // The model's sizes with texts of two blocks, each other kind of kernel, and images of more than one block.
    let shapes =
        [[7, 32, 131, 256], [13, 8, 21, 40], [9, 16, 19, 72], [5, 64, 7, 24], [6, 48, 7, 19], [9, 7, 8, 13]];
    for [images, count, texts, width] in shapes {
        let mut case = Case::random::<D>([images, count, texts, width]);
        // An image is one of three, a text one of five, a query one of its image's first five.
        let (queries, captions) = (case.queries.clone(), case.texts.clone());
        case.queries = Matrix::from_fn(images * count, width, |r, e| {
            queries.at(r / count % 3 * count + r % count % 5, e)
        });
        case.texts = Matrix::from_fn(texts, width, |t, e| captions.at(t % 5, e));
        is_plain::<D>(&case);
    }
}

#[test]
fn of_equals_the_first_is_chosen() {
    the_first_of_equals_is_chosen_by::<Cpu<f64>>();
    the_first_of_equals_is_chosen_by::<Cpu<f32>>();
    the_first_of_equals_is_chosen_by::<Cuda>();
}

/// χ² of counts against expected ones.
fn chi_squared(counts: &[f64], expected: &[f64]) -> f64 {
    counts.iter().zip(expected).map(|(n, e)| (n - e).powi(2) / e).sum()
}

#[test]
fn negatives_are_drawn_from_the_softmax_of_what_is_not_positive() {
    const DRAWS: u32 = 4000;
    let mut case = Case::random::<Cpu<f64>>([6, 2, 7, 5]);
    case.temperature = 0.3;
    let similarity = case.plain(|x| x).similarity;
    let logit = |i: usize, t: usize| similarity.at(i, t) / case.temperature;
    let positive = |i: usize, t: usize| case.image_ids[i] == case.text_ids[t];
    let drawn: Vec<Forward> =
        (0..DRAWS).map(|step| case.forward::<Cpu<f64>>(Choice::Sampled([1, step]))).collect();
    let check =
        |n: usize, positive: &dyn Fn(usize) -> bool, logit: &dyn Fn(usize) -> f64, draws: Vec<u32>| {
            let candidates: Vec<usize> = (0..n).filter(|&j| !positive(j)).collect();
            let total: f64 = candidates.iter().map(|&j| logit(j).exp()).sum();
            let count = |j: usize| draws.iter().filter(|&&d| d as usize == j).count() as f64;
            let counts: Vec<f64> = candidates.iter().map(|&j| count(j)).collect();
            assert_eq!(counts.iter().sum::<f64>(), f64::from(DRAWS), "a positive was drawn");
            let expected: Vec<f64> =
                candidates.iter().map(|&j| f64::from(DRAWS) * logit(j).exp() / total).collect();
            // 6 degrees of freedom at most: 22.5 is passed once in a thousand, 27.9 in ten thousand.
            let chi_squared = chi_squared(&counts, &expected);
            assert!(chi_squared < 27.9, "χ² = {chi_squared}: {counts:?} against {expected:?}");
        };
    for i in 0..6 {
        let draws = drawn.iter().map(|f| f.negative_texts[i]).collect();
        check(7, &|t| positive(i, t), &|t| logit(i, t), draws);
    }
    for t in 0..7 {
        let draws = drawn.iter().map(|f| f.negative_images[t]).collect();
        check(6, &|i| positive(i, t), &|i| logit(i, t), draws);
    }
}

fn there_is_no_negative_of<D: TestDevice + ContrastiveOp>() {
    let mut case = Case::random::<D>([3, 2, 2, 5]);
    (case.image_ids, case.text_ids) = (vec![4, 4, 5], vec![4, 4]);
    for choice in [Choice::Hardest, Choice::Sampled([1, 2])] {
        let forward = case.forward::<D>(choice);
        assert_eq!(forward.negative_images, [2, 2]);
        assert_eq!(forward.negative_texts[..2], [NO_NEGATIVE; 2]);
        assert!(forward.negative_texts[2] < 2, "image 2 has no text, so both are negatives");
        assert!(forward.loss.at(0, 0).is_finite());
    }
}

#[test]
fn lines_without_a_possible_negative_have_none() {
    there_is_no_negative_of::<Cpu<f32>>();
    there_is_no_negative_of::<Cuda>();
}

fn nan_reaches_the_loss_of<D: TestDevice + ContrastiveOp>() {
    for (shape, query) in [([5, 7, 3, 13], 9), ([5, 32, 3, 256], 47), ([5, 64, 3, 24], 101)] {
        let mut case = Case::random::<D>(shape);
        case.queries.set(query, 2, f64::NAN);
        let forward = case.forward::<D>(Choice::Hardest);
        assert!(forward.loss.at(0, 0).is_nan());
        let nan: Vec<usize> = (0..5).filter(|&i| forward.image_statistics.at(0, i).is_nan()).collect();
        assert_eq!(nan, [1]);
    }
}

#[test]
fn nan_reaches_the_loss() {
    nan_reaches_the_loss_of::<Cpu<f32>>();
    nan_reaches_the_loss_of::<Cuda>();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let case = Case::random::<Cpu<f32>>(SHAPES[0]);
    assert_independent_of_threads(|| {
        let forward = case.forward::<Cpu<f32>>(Choice::Sampled([1, 2]));
        let mut all = vec![forward.loss, forward.image_statistics, forward.text_statistics];
        all.extend(case.backward::<Cpu<f32>>(ContrastiveGradient::Full, 1.0, 0.0));
        all
    });
}

#[test]
fn the_gpu_has_the_same_gradients() {
    let full = SHAPES.map(|shape| (shape, ContrastiveGradient::Full));
    // The largest takes long, and goes the same way as the others.
    let smaller = SHAPES.into_iter().filter(|&[images, ..]| images < 100);
    let one_sided = smaller.map(|shape| (shape, ContrastiveGradient::OneSided));
    for (shape, gradient) in full.into_iter().chain(one_sided) {
        let case = Case::random::<Cuda>(shape);
        let got = case.backward::<Cuda>(gradient, 0.7, 0.0);
        if shape == [1; 4] {
            // The loss of one pair is 0 whatever the features are.
            got.iter().for_each(|d| assert!(d.values.iter().all(|d| d.abs() < 1e-6)));
            continue;
        }
        let want = case.backward::<Cpu<f64>>(gradient, 0.7, 0.0);
        let reference = case.plain_gradient(gradient, 0.7, Cuda::round);
        for (i, what) in ["dqueries", "dtexts", "dtemperature"].into_iter().enumerate() {
            Cuda::assert_near(&format!("{what} of {shape:?}"), &got[i], &want[i], &reference[i]);
        }
    }
}

#[test]
fn the_gpu_draws_the_same_negatives() {
    for shape in SHAPES {
        let case = Case::random::<Cuda>(shape);
        let choice = Choice::Sampled([7, shape[0] as u32]);
        let (got, want) = (case.forward::<Cuda>(choice), case.forward::<Cpu<f64>>(choice));
        assert_eq!(got.negative_texts, want.negative_texts, "{shape:?}");
        assert_eq!(got.negative_images, want.negative_images, "{shape:?}");
    }
}

#[test]
fn the_gpu_gives_the_same_bits_twice() {
    let case = Case::random::<Cuda>(SHAPES[0]);
    let both = || {
        let forward = case.forward::<Cuda>(Choice::Sampled([1, 2]));
        (forward, case.backward::<Cuda>(ContrastiveGradient::Full, 1.0, 0.0))
    };
    assert_eq!(both(), both());
}

/// Hopper has kernels of its own: where the GPU is simulated, those for every GPU need an older one.
#[test]
fn losses_and_gradients_are_right_before_hopper() {
    let tests =
        ["forward_matches", "of_equals", "the_gpu", "nan_reaches"].map(|name| format!("contrastive::{name}"));
    let output =
        Command::new(std::env::current_exe().unwrap()).args(tests).env("SIMGPU_CC", "80").output().unwrap();
    let [stdout, stderr] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && !stdout.contains(" 0 passed"), "{stdout}{stderr}");
}

#[test]
fn at_other_sizes_the_winners_are_the_same() {
    // An image of 33 queries is two times 32, the most of them zeros; the last is never the most similar.
    let case = Case::random::<Cuda>([6, 32, 5, 256]);
    let more = Matrix::from_fn(6 * 33, 256, |r, e| match r % 33 {
        32 => 0.0,
        q => case.queries.at(r / 33 * 32 + q, e),
    });
    let any = Case { queries: more, ..case.clone() }.forward::<Cuda>(Choice::Hardest);
    let tensor = case.forward::<Cuda>(Choice::Hardest);
    assert_eq!((any.winner, any.negative_texts), (tensor.winner, tensor.negative_texts));
}
