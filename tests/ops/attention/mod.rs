pub(crate) mod case;
mod gpu;
mod listed;
mod plain;

use crate::common::{Matrix, assert_close, assert_gradient, assert_independent_of_threads};
use crate::device::{TestDevice, rounded, tolerance};
use case::{Case, Gradient, Output, with_others};
use qformer::device::Write;
use qformer::device::{Cpu, Cuda};
use qformer::ops::attention::{AttentionOp, Mask, Sequence, Sequences, Span};

/// A set of queries and a ragged text for each sequence: first all queries, then, after a gap, all
/// texts.
fn queries_then_text(queries: usize, lengths: &[usize]) -> Vec<Sequence> {
    let mut start = queries * lengths.len() + 2;
    let mut sequence = |(i, &len): (usize, &usize)| {
        let spans = [Span::new(i * queries, queries), Span::new(start, len)];
        start += len;
        Sequence { queries: spans, keys: spans }
    };
    lengths.iter().enumerate().map(&mut sequence).collect()
}

fn text(lengths: &[usize]) -> Vec<Sequence> {
    queries_then_text(0, lengths)
}

/// Text over the keys of queries that stand apart, a row between one set and the next.
fn text_over_prefix(prefix: usize, lengths: &[usize]) -> Vec<Sequence> {
    let texts = text(lengths).into_iter().enumerate();
    texts.map(|(i, s)| Sequence { keys: [Span::new(i * (prefix + 1), prefix), s.keys[1]], ..s }).collect()
}

/// Texts of so many keys whose last tokens alone are queries.
fn cached(texts: &[(usize, usize)]) -> Vec<Sequence> {
    let (mut query, mut key) = (0, 0);
    let mut sequence = |&(queries, keys): &(usize, usize)| {
        let spans = [Span::new(query, queries), Span::new(key, keys)];
        (query, key) = (query + queries, key + keys);
        Sequence { queries: [Span::EMPTY, spans[0]], keys: [Span::EMPTY, spans[1]] }
    };
    texts.iter().map(&mut sequence).collect()
}

/// `sets` sets of queries for each of `images` images of `tokens` tokens.
fn cross([images, sets, queries, tokens]: [usize; 4]) -> Vec<Sequence> {
    let sequence = |i| Sequence {
        queries: [Span::new(i * queries, queries), Span::EMPTY],
        keys: [Span::new(i / sets * tokens, tokens), Span::EMPTY],
    };
    (0..images * sets).map(sequence).collect()
}

/// Every form of attention that the model has, small.
fn cases() -> Vec<Case> {
    let one = |name, mask, sequences| Case::random(name, mask, [2, 3], false, sequences);
    let over_prefix = |name, sequences| Case::random(name, Mask::Causal, [2, 3], true, sequences);
    let apart = |span| Sequence { queries: span, keys: span };
    vec![
        one("queries alone", Mask::None, Sequences::uniform(2, 3).as_slice().to_vec()),
        one("text alone", Mask::None, text(&[4, 1, 3])),
        one("bi-directional", Mask::None, queries_then_text(2, &[3, 1, 4])),
        one("multi-modal causal", Mask::Causal, queries_then_text(2, &[3, 1, 4])),
        one("causal", Mask::Causal, text(&[4, 1, 3])),
        one("cross", Mask::None, cross([2, 3, 2, 5])),
        one("cross, one of each", Mask::None, cross([1, 1, 1, 2])),
        one(
            "queries and text in sequences of their own",
            Mask::Causal,
            vec![apart([Span::new(0, 2), Span::EMPTY]), apart([Span::EMPTY, Span::new(3, 3)])],
        ),
        over_prefix("causal over a prefix", text_over_prefix(2, &[3, 1, 4])),
        over_prefix("causal over a prefix", text_over_prefix(2, &[3, 1, 4])).dropped("dropped, prefix", 0.25),
        one("cross", Mask::None, cross([2, 3, 2, 5])).dropped("dropped", 0.25),
        one("cross", Mask::None, cross([2, 3, 2, 5])).biased("biased", 2),
        one("cross", Mask::None, cross([1, 2, 6, 3])).biased("biased, more queries than keys", 4),
        one("two spans", Mask::Causal, queries_then_text(2, &[3, 1, 6])).biased("biased, two spans", 3),
        over_prefix("prefix", text_over_prefix(2, &[3, 1, 7]))
            .biased("biased over a prefix", 4)
            .dropped("biased over a prefix, dropped", 0.25),
        over_prefix(
            "the end of a text whose keys are cached",
            vec![
                Sequence {
                    queries: [Span::EMPTY, Span::new(2, 1)],
                    keys: [Span::new(0, 2), Span::new(0, 4)],
                },
                Sequence {
                    queries: [Span::EMPTY, Span::new(0, 2)],
                    keys: [Span::new(2, 2), Span::new(4, 3)],
                },
            ],
        ),
    ]
}

/// The model's widths and lengths, with fewer heads and images; and primes.
fn large_cases() -> Vec<Case> {
    let texts = [9, 16, 13, 1];
    vec![
        Case::random("image encoder", Mask::None, [2, 88], false, cross([2, 1, 257, 257])),
        Case::random("cross", Mask::None, [3, 64], false, cross([2, 2, 32, 257])),
        Case::random("joint", Mask::None, [3, 64], false, queries_then_text(32, &texts)),
        Case::random("joint causal", Mask::Causal, [3, 64], false, queries_then_text(32, &texts)),
        Case::random("caption", Mask::Causal, [3, 64], true, text_over_prefix(32, &texts)),
        Case::random("joint causal", Mask::Causal, [3, 64], false, queries_then_text(32, &texts))
            .dropped("joint causal, dropped", 0.1),
        Case::random("cross", Mask::None, [3, 64], false, cross([1, 3, 32, 257]))
            .dropped("cross, dropped", 0.1),
        Case::random("biased", Mask::None, [2, 64], false, text(&[70, 33])).biased("encoder, biased", 16),
        Case::random("caption", Mask::Causal, [2, 64], true, text_over_prefix(32, &texts))
            .biased("caption, biased", 20),
        Case::random("primes", Mask::Causal, [5, 7], false, queries_then_text(11, &[13, 37, 31])),
    ]
}

fn forward_matches<D: TestDevice + AttentionOp>() {
    for case in cases().into_iter().chain(large_cases()) {
        let case = case.rounded::<D>();
        let (got, want) = (case.output::<D>(), case.plain());
        let reference = rounded::<D>(&case.plain_storing(D::round).out);
        D::assert_near(case.name, &got.out, &want.out, &reference);
        // Log-sum-exps are statistics: never stored in fewer bits than `f32`.
        let wide = size_of::<D::Stat>() == size_of::<f64>();
        let allowed = if wide { tolerance::<f64>() } else { tolerance::<f32>() };
        assert_close(case.name, &got.log_sums, &want.log_sums, allowed);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

#[test]
fn backward_matches_finite_differences() {
    type Field = fn(&mut Case) -> &mut Matrix;
    for case in cases() {
        let gradient = case.gradient::<Cpu<f64>>(&case.random_dout());
        let dout = with_others(&case.random_dout(), &case.query_rows(), 0.0);
        let check = |(what, gradient): (&str, &Matrix), rows: Vec<usize>, field: Field| {
            // Rows that no sequence names are moved too, and must have no effect.
            let point = with_others(field(&mut case.clone()), &rows, 0.0);
            assert_gradient(&format!("{}, {what}", case.name), &point, gradient, |moved| {
                let mut case = case.clone();
                *field(&mut case) = moved.clone();
                case.output::<Cpu<f64>>().out.dot(&dout)
            });
        };
        let fields: [(Vec<usize>, Field); 5] = [
            (case.query_rows(), |case| &mut case.q),
            (case.key_rows(), |case| &mut case.k),
            (case.key_rows(), |case| &mut case.v),
            (case.prefix_rows(), |case| &mut case.prefix.as_mut().unwrap()[0]),
            (case.prefix_rows(), |case| &mut case.prefix.as_mut().unwrap()[1]),
        ];
        for (matrix, (rows, field)) in gradient.matrices().into_iter().zip(fields) {
            check(matrix, rows, field);
        }
    }
}

#[test]
fn single_precision_gradients_are_those_of_double_precision() {
    for case in large_cases() {
        let dout = case.random_dout();
        let (got, want) = (case.gradient::<Cpu<f32>>(&dout), case.gradient::<Cpu<f64>>(&dout));
        for ((what, got), (_, want)) in got.matrices().into_iter().zip(want.matrices()) {
            assert_close(&format!("{}, {what}", case.name), got, want, tolerance::<f32>());
        }
    }
}

/// Scores are zero, so of eight keys each has probability 1/8; all else are whole numbers.
fn even_cases() -> Vec<Case> {
    let shapes = [
        ("cross", false, cross([2, 2, 3, 8])),
        ("bi-directional", false, queries_then_text(3, &[5, 5])),
        ("over a prefix", true, text_over_prefix(4, &[4, 4])),
    ];
    // Without queries that are not zero the keys have no gradient, and without keys the queries.
    let cases = shapes.into_iter().flat_map(|(name, has_prefix, sequences)| {
        [(1.0, 0.0), (0.0, 1.0)].map(|(q, k)| {
            let mut case = Case::random(name, Mask::None, [2, 4], has_prefix, sequences.clone());
            // NaN stays, in rows that no sequence names.
            let whole =
                |m: &mut Matrix, by: f64| m.values.iter_mut().for_each(|x| *x = (*x * 1.5).round() * by);
            whole(&mut case.q, q);
            whole(&mut case.k, k);
            whole(&mut case.v, 8.0);
            if let Some([prefix_k, prefix_v]) = &mut case.prefix {
                whole(prefix_k, k);
                whole(prefix_v, 8.0);
            }
            case
        })
    });
    cases.collect()
}

fn even_gradients_are_exact<D: TestDevice + AttentionOp>() {
    for case in even_cases() {
        let mut dout = case.random_dout();
        dout.values.iter_mut().for_each(|x| *x = x.round());
        let (got, want) = (case.gradient::<D>(&dout), case.plain_gradient_storing(&dout, |x| x));
        for ((what, got), (_, want)) in got.matrices().into_iter().zip(want.matrices()) {
            // Every number has eight bits, as bf16 has.
            assert_eq!(*want, rounded::<Cuda>(want), "{}, {what}", case.name);
            assert_eq!(got.settled(), *want, "{}, {what}", case.name);
        }
    }
}

#[test]
fn even_attention_over_whole_numbers_has_exact_gradients() {
    even_gradients_are_exact::<Cpu<f64>>();
    even_gradients_are_exact::<Cpu<f32>>();
    even_gradients_are_exact::<Cuda>();
}

fn gradients_are_added<D: TestDevice + AttentionOp>() {
    for case in cases() {
        let dout = rounded::<D>(&case.random_dout());
        let case = case.rounded::<D>();
        let fresh = case.gradient::<Cpu<f64>>(&dout);
        let reference = case.plain_gradient_storing(&dout, D::round);
        // Whole numbers, which every device holds.
        let before = case.gradient_of(|i| (i % 5) as f64 - 2.0);
        let after = case.backward::<D>(&dout, Write::Add, &before);
        let replaced = case.backward::<D>(&dout, Write::Replace, &before);
        let keys =
            [case.query_rows(), case.key_rows(), case.key_rows(), case.prefix_rows(), case.prefix_rows()];
        for (i, (what, fresh)) in fresh.matrices().into_iter().enumerate().skip(1) {
            let name = format!("{}, {what}", case.name);
            let before = with_others(before.matrices()[i].1, &keys[i], 0.0);
            let sum = |m: &Matrix| Matrix::from_fn(m.rows, m.cols, |r, c| m.at(r, c) + before.at(r, c));
            let (want, reference) = (sum(fresh), rounded::<D>(&sum(reference.matrices()[i].1)));
            let check = |after: &Gradient| {
                D::assert_near(&name, &with_others(after.matrices()[i].1, &keys[i], 0.0), &want, &reference);
            };
            check(&after);
            if i >= 3 {
                check(&replaced);
            }
        }
    }
}

#[test]
fn gradients_of_keys_are_added_where_asked_and_those_of_a_prefix_always() {
    gradients_are_added::<Cpu<f64>>();
    gradients_are_added::<Cuda>();
}

fn other_rows_are_left_alone<D: TestDevice + AttentionOp>() {
    for case in cases() {
        let (mark, is_mark) = (7.0, |x: &f64| *x == 7.0);
        let dout = case.random_dout();
        let Output { out, log_sums } = case.forward::<D>(mark);
        let after = case.backward::<D>(&dout, Write::Replace, &case.gradient_of(|_| mark));
        let mut written = vec![(out, case.query_rows()), (log_sums, case.query_rows())];
        written.extend([
            (after.dq, case.query_rows()),
            (after.dk, case.key_rows()),
            (after.dv, case.key_rows()),
        ]);
        written.extend(after.dprefix.into_iter().flatten().map(|d| (d, case.prefix_rows())));
        for (matrix, rows) in written {
            let others: Vec<usize> = (0..matrix.rows).filter(|r| !rows.contains(r)).collect();
            assert!(!others.is_empty(), "{}", case.name);
            assert!(others.iter().all(|&r| matrix.row(r).iter().all(is_mark)), "{}: written", case.name);
            assert!(rows.iter().all(|&r| matrix.row(r).iter().all(|x| x.is_finite())), "{}: read", case.name);
        }
    }
}

#[test]
fn rows_that_no_sequence_names_are_neither_read_nor_written() {
    other_rows_are_left_alone::<Cpu<f64>>();
    other_rows_are_left_alone::<Cuda>();
}

#[test]
fn ragged_sequences_together_are_what_each_is_alone() {
    for case in cases().into_iter().chain(large_cases()) {
        let together = case.output::<Cpu<f64>>().out;
        let mut apart = Matrix::filled(together.rows, together.cols, 0.0);
        for &sequence in &case.sequences {
            let alone = Case { sequences: vec![sequence], ..case.clone() };
            let out = alone.output::<Cpu<f64>>().out;
            apart.values.iter_mut().zip(&out.values).for_each(|(sum, x)| *sum += x);
        }
        assert_eq!(together, apart, "{}", case.name);
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let mut case = Case::random("large", Mask::None, [1, 4], false, cross([1, 1, 3, 9]));
    case.q.values.iter_mut().for_each(|q| *q *= 4096.0);
    // Scores near 2¹² are rounded by 2⁻¹³ and more, which is the relative error of their
    // exponentials.
    let [got, want] = [case.output::<Cpu<f32>>().out, case.output::<Cpu<f64>>().out];
    assert_close("large", &got, &want, 1e-3);
}

fn nan_reaches_the_rows_that_see_it<D: TestDevice + AttentionOp>() {
    let sequences = queries_then_text(2, &[40, 3]);
    let case = Case::random("NaN", Mask::Causal, [1, 4], false, sequences.clone());
    for key in [0, 1, 6, 7, 38, 45] {
        for poison in [f64::NAN, f64::from_bits(u64::MAX)] {
            let mut case = case.clone();
            case.k.set(key, 2, poison);
            let out = case.output::<D>().out;
            let Span { start, len } = sequences[0].queries[1];
            for row in case.query_rows() {
                let sees = if key < 2 {
                    row < 2 || (start..start + len).contains(&row)
                } else {
                    (key..start + len).contains(&row)
                };
                assert_eq!(out.row(row).iter().all(|x| x.is_nan()), sees, "key {key}, row {row}");
            }
        }
    }
}

#[test]
fn nan_in_any_key_reaches_the_rows_that_see_it() {
    nan_reaches_the_rows_that_see_it::<Cpu<f32>>();
    nan_reaches_the_rows_that_see_it::<Cuda>();
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for case in large_cases() {
        let dout = case.random_dout();
        assert_independent_of_threads(|| {
            let Output { out, log_sums } = case.output::<Cpu<f32>>();
            let Gradient { dq, dk, dv, dprefix } = case.gradient::<Cpu<f32>>(&dout);
            [out, log_sums, dq, dk, dv].into_iter().chain(dprefix.into_iter().flatten()).collect()
        });
    }
}

#[test]
#[should_panic(expected = "two sequences share a query row")]
fn a_row_that_two_sequences_would_write_is_refused() {
    let spans = |first, second| {
        let spans = [Span::new(first, 2), Span::new(second, 2)];
        Sequence { queries: spans, keys: spans }
    };
    Sequences::new(vec![spans(0, 4), spans(5, 8)]);
}
