//! Keys that are rows of a cache, by lists.

use super::case::Case;
use crate::common::{Matrix, Random};
use crate::device::{TestDevice, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::attention::{AttentionOp, Mask, Sequence, Span};

/// Sequences of a cache that share their beginning, or nothing; their rows are in no order.
const LISTS: [&[u32]; 4] = [&[7, 2, 4], &[7, 2, 5, 0], &[8], &[7]];
const CACHE: usize = 10;

/// A query for each list, over a prefix of its own or none: where the keys stand in a row, and where `k` and `v` are a
/// cache, with its list.
fn cases(heads: [usize; 2], prefix: usize, lists: &[&[u32]], cache: usize) -> (Case, Case, Vec<u32>) {
    let longest = lists.iter().map(|list| list.len()).max().unwrap() + 1;
    let sequences: Vec<Sequence> = lists
        .iter()
        .enumerate()
        .map(|(i, list)| Sequence {
            queries: [Span::EMPTY, Span::new(i, 1)],
            keys: [Span::new(i * prefix, prefix), Span::new(i * longest, list.len())],
        })
        .collect();
    let mut apart = Case::random("in a row", Mask::None, heads, prefix > 0, sequences);
    let mut cached = Case { name: "listed", ..apart.clone() };
    let mut random = Random::new(8);
    let width = heads[0] * heads[1];
    for (apart, cached) in [(&mut apart.k, &mut cached.k), (&mut apart.v, &mut cached.v)] {
        *cached = random.matrix(cache, width);
        *apart =
            Matrix::from_fn(lists.len() * longest, width, |r, c| match lists[r / longest].get(r % longest) {
                Some(&row) => cached.at(row as usize, c),
                None => f64::NAN,
            });
    }
    let mut rows = vec![0; lists.len() * longest];
    for (i, list) in lists.iter().enumerate() {
        rows[i * longest..i * longest + list.len()].copy_from_slice(list);
    }
    (apart, cached, rows)
}

fn lists_are_followed<D: TestDevice + AttentionOp>() {
    // More keys than a GPU's shared memory holds.
    let long: Vec<u32> = (0..700).map(|i| i * 577 % 701).collect();
    // As a language model's cache.
    let longer: Vec<u32> = (0..2048).map(|i| i * 577 % 2100).collect();
    let cases = [
        cases([2, 3], 2, &LISTS, CACHE),
        cases([2, 64], 32, &LISTS, CACHE),
        cases([3, 88], 0, &LISTS, CACHE),
        cases([1, 96], 3, &[&long, &long[..5]], 701),
        cases([2, 80], 2, &[&longer, &longer[..300]], 2100),
    ];
    for (apart, cached, rows) in cases {
        let (apart, cached) = (apart.rounded::<D>(), cached.rounded::<D>());
        let (want, got) = (apart.forward::<D>(0.0), cached.forward_over::<D>(0.0, Some(&rows)));
        // The same sums in the same order.
        assert_eq!(got.out, want.out);
        assert_eq!(got.log_sums, want.log_sums);
        let reference = rounded::<D>(&apart.plain_storing(D::round).out);
        D::assert_near("listed", &got.out, &apart.plain().out, &reference);
    }
}

#[test]
fn sequences_that_share_rows_of_a_cache_attend_as_over_keys_of_their_own() {
    lists_are_followed::<Cpu<f64>>();
    lists_are_followed::<Cpu<f32>>();
    lists_are_followed::<Cuda>();
}

#[test]
#[should_panic(expected = "key rows")]
fn a_span_beyond_the_list_is_refused() {
    let (_, cached, rows) = cases([2, 3], 2, &LISTS, CACHE);
    cached.forward_over::<Cpu<f32>>(0.0, Some(&rows[..rows.len() - 5]));
}

#[test]
#[should_panic]
fn a_row_beyond_the_cache_is_refused() {
    let (_, cached, mut rows) = cases([2, 3], 2, &LISTS, CACHE);
    rows[1] = CACHE as u32;
    cached.forward_over::<Cpu<f32>>(0.0, Some(&rows));
}
