//! What only the GPU has to prove: that its gradients, masks and bits are right, and the shapes that its
//! kernels treat apart.

use super::case::{Case, Gradient, Output, with_others};
use super::{cached, cases, cross, large_cases, queries_then_text, text, text_over_prefix};
use crate::common::Matrix;
use crate::device::{TestDevice, rounded};
use qformer::device::{Cpu, Cuda, Write};
use qformer::ops::attention::{Mask, Sequence, Span};

/// Shapes that the kernels treat apart: more keys than shared memory holds, with more tiles of queries than
/// a block has warps; many keys that it holds; a group of many sequences; narrow heads; empty sequences.
fn gpu_cases() -> Vec<Case> {
    let spans = queries_then_text(3, &[5, 1]);
    let empty = Sequence { queries: [Span::EMPTY; 2], keys: [Span::EMPTY; 2] };
    let unasked = Sequence { queries: [Span::EMPTY; 2], keys: [Span::new(30, 4), Span::EMPTY] };
    let with_empty = vec![empty, spans[0], spans[1], unasked];
    vec![
        Case::random("streamed", Mask::None, [1, 88], false, cross([1, 2, 75, 700])),
        Case::random("streamed", Mask::Causal, [1, 96], false, queries_then_text(100, &[551]))
            .dropped("streamed, causal, dropped", 0.1),
        Case::random("80 wide", Mask::Causal, [2, 80], false, queries_then_text(32, &[12, 40])),
        Case::random("112 wide", Mask::None, [2, 112], false, cross([2, 2, 19, 257])),
        Case::random("128 wide", Mask::Causal, [2, 128], true, text_over_prefix(7, &[60, 1, 9]))
            .dropped("128 wide, dropped", 0.1),
        Case::random("128 wide", Mask::None, [1, 128], false, cross([1, 2, 20, 300]))
            .biased("128 wide, biased", 30),
        Case::random("biased", Mask::Causal, [2, 32], false, queries_then_text(3, &[40, 9]))
            .biased("32 wide, biased", 9),
        Case::random("biased", Mask::None, [1, 96], false, cross([1, 2, 20, 300]))
            .biased("96 wide, biased", 128),
        Case::random("few queries", Mask::Causal, [2, 24], false, queries_then_text(3, &[12, 400])),
        Case::random("split", Mask::Causal, [2, 80], false, cached(&[(5, 300), (1, 600), (16, 131)])),
        Case::random("split", Mask::Causal, [1, 7], false, cached(&[(2, 700)]))
            .biased("split, biased, dropped", 50)
            .dropped("split, biased, dropped", 0.1),
        Case::random("550 keys", Mask::None, [1, 64], false, cross([1, 1, 7, 550])),
        Case::random("many sets", Mask::None, [2, 16], false, cross([2, 11, 5, 19])),
        Case::random("heads of 8", Mask::Causal, [3, 8], false, queries_then_text(32, &[12, 9])),
        Case::random("heads of 1", Mask::None, [3, 1], false, text(&[17, 1])),
        Case::random("empty", Mask::None, [2, 8], false, with_empty),
    ]
}

#[test]
fn more_shapes_match_a_plain_computation() {
    for case in gpu_cases() {
        let case = case.rounded::<Cuda>();
        let reference = rounded::<Cuda>(&case.plain_storing(Cuda::round).out);
        Cuda::assert_near(case.name, &case.output::<Cuda>().out, &case.plain().out, &reference);
    }
}

#[test]
fn the_gpu_has_the_same_gradient() {
    for case in cases().into_iter().chain(large_cases()).chain(gpu_cases()) {
        let (case, dout) = (case.rounded::<Cuda>(), rounded::<Cuda>(&case.random_dout()));
        let (got, want) = (case.gradient::<Cuda>(&dout), case.gradient::<Cpu<f64>>(&dout));
        let reference = case.plain_gradient_storing(&dout, Cuda::round);
        for (i, (what, got)) in got.matrices().into_iter().enumerate() {
            let name = format!("{}, {what}", case.name);
            Cuda::assert_near(&name, got, want.matrices()[i].1, &rounded::<Cuda>(reference.matrices()[i].1));
        }
    }
}

/// As in a step of training: the pass over pairs writes what its queries give, that over images alone adds its own, and
/// the sums are stored as bf16 in between.
#[test]
fn gradients_of_two_passes_over_the_same_keys_are_as_exact_as_those_of_one() {
    const SETS: usize = 4;
    let case = Case::random("cross", Mask::None, [2, 64], false, cross([2, SETS, 32, 257])).rounded::<Cuda>();
    let dout = rounded::<Cuda>(&case.random_dout());
    let (images, pairs): (Vec<_>, Vec<_>) =
        case.sequences.iter().enumerate().partition(|(i, _)| i % SETS == 0);
    let pass = |sequences: Vec<(usize, &Sequence)>| Case {
        sequences: sequences.into_iter().map(|(_, &sequence)| sequence).collect(),
        ..case.clone()
    };
    let written = pass(pairs).backward::<Cuda>(&dout, Write::Replace, &case.gradient_of(|_| f64::NAN));
    let added = pass(images).backward::<Cuda>(&dout, Write::Add, &written);
    let want = case.gradient::<Cpu<f64>>(&dout);
    let reference = case.plain_gradient_storing(&dout, Cuda::round);
    let keys = case.key_rows();
    let named = |m: &Matrix| with_others(m, &keys, 0.0);
    Cuda::assert_near("dk", &named(&added.dk), &want.dk, &rounded::<Cuda>(&reference.dk));
    Cuda::assert_near("dv", &named(&added.dv), &want.dv, &rounded::<Cuda>(&reference.dv));
}

#[test]
fn two_runs_have_the_same_bits() {
    for case in large_cases() {
        let dout = case.random_dout();
        let run = || {
            let Output { out, log_sums } = case.output::<Cuda>();
            let Gradient { dq, dk, dv, dprefix } = case.gradient::<Cuda>(&dout);
            let all = [out, log_sums, dq, dk, dv].into_iter().chain(dprefix.into_iter().flatten());
            all.flat_map(|m| m.bits()).collect::<Vec<_>>()
        };
        assert!(run() == run(), "{}", case.name);
    }
}

#[test]
fn whole_numbers_are_averaged_exactly() {
    // Equal scores of 64 keys: the mean is a sum of whole numbers over a power of two.
    let mut case = Case::random("mean", Mask::None, [2, 64], false, cross([2, 1, 9, 64]));
    case.q = Matrix::filled(case.q.rows, case.q.cols, 0.0);
    let whole = Matrix::from_fn(case.v.rows, case.v.cols, |r, c| ((r * 7 + c * 5) % 17) as f64 - 8.0);
    case.v = with_others(&whole, &case.key_rows(), f64::NAN);
    assert_eq!(case.output::<Cuda>().out, rounded::<Cuda>(&case.plain().out));
}

#[test]
fn a_key_of_a_far_higher_score_is_chosen_exactly() {
    let mut case =
        Case::random("choice", Mask::None, [1, 64], false, cross([1, 1, 33, 64])).rounded::<Cuda>();
    let unit = |m: &Matrix, size: f64, column: fn(usize) -> usize| {
        Matrix::from_fn(m.rows, m.cols, |r, c| if column(r) == c { size } else { 0.0 })
    };
    case.q = unit(&case.q, 1024.0, |r| (r * 5 + 3) % 64);
    case.k = unit(&case.k, 16.0, |r| r);
    let out = case.output::<Cuda>().out;
    for row in case.query_rows() {
        assert_eq!(out.row(row), case.v.row((row * 5 + 3) % 64), "row {row}");
    }
}

#[test]
fn all_devices_drop_the_same() {
    // Equal probabilities and values that are one key's alone show a query's mask, 64 keys at a time; the
    // gradients of queries and values show it again.
    let case = Case::random("mask", Mask::None, [2, 64], false, cross([1, 2, 19, 257])).dropped("mask", 0.25);
    let q = Matrix::filled(case.q.rows, case.q.cols, 0.0);
    let ones = Matrix::filled(case.q.rows, case.q.cols, 1.0);
    for first in (0..257).step_by(64) {
        let chosen =
            Matrix::from_fn(case.k.rows, case.k.cols, |r, c| f64::from(u8::from(r == first + c % 64)));
        let case = Case { q: q.clone(), k: chosen.clone(), v: chosen, ..case.clone() };
        let dropped = |out: &Matrix| out.values.iter().map(|&x| x == 0.0).collect::<Vec<_>>();
        let (got, want) = (case.output::<Cuda>().out, case.output::<Cpu<f64>>().out);
        assert!(dropped(&got) == dropped(&want), "keys from {first}");
        let (got, want) = (case.gradient::<Cuda>(&ones), case.gradient::<Cpu<f64>>(&ones));
        let reference = case.plain_gradient_storing(&ones, Cuda::round);
        for (got, want, reference) in [(&got.dq, &want.dq, &reference.dq), (&got.dv, &want.dv, &reference.dv)]
        {
            Cuda::assert_near(case.name, got, want, &rounded::<Cuda>(reference));
        }
    }
}

#[test]
#[should_panic(expected = "heads of 129 columns")]
fn heads_too_wide_for_the_kernels_are_refused() {
    Case::random("wide", Mask::None, [1, 129], false, text(&[2])).output::<Cuda>();
}

#[test]
fn no_sequence_is_no_work() {
    let mut case = Case::random("nothing", Mask::None, [1, 8], false, text(&[2]));
    case.sequences.clear();
    assert!(case.forward::<Cuda>(7.0).out.values.iter().all(|&x| x == 7.0));
}
