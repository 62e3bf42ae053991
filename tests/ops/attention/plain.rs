//! The definition of attention and of its gradient, query by query and key by key.

use super::case::{Case, DROPOUT_KEY, DROPOUT_SITE, Gradient, Output};
use crate::common::Matrix;
use qformer::ops::attention::{Mask, Sequence, Span};
use qformer::random::philox;

/// A key of a sequence.
struct Key<'a> {
    span: usize,
    /// Place in its span.
    place: usize,
    /// Row of its matrix.
    row: usize,
    k: &'a [f64],
    v: &'a [f64],
}

/// One head of one query.
struct Query<'a> {
    row: usize,
    head: usize,
    /// Keys that it sees.
    seen: Vec<Key<'a>>,
    /// Their probabilities.
    p: Vec<f64>,
    /// What dropout multiplies those by.
    factors: Vec<f64>,
    log_sum: f64,
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

impl Case {
    fn keys(&self, sequence: &Sequence) -> Vec<Key<'_>> {
        let own = [&self.k, &self.v];
        let sources = [self.prefix.as_ref().map_or(own, |p| p.each_ref()), own];
        let place = |span: usize| (0..sequence.keys[span].len).map(move |place| (span, place));
        let places = place(0).chain(place(1));
        places
            .map(|(span, place)| {
                let row = sequence.keys[span].start + place;
                Key { span, place, row, k: sources[span][0].row(row), v: sources[span][1].row(row) }
            })
            .collect()
    }

    /// Whether the query at `place` of its span may see `key`.
    fn sees(&self, sequence: &Sequence, span: usize, place: usize, key: &Key<'_>) -> bool {
        // Text that is queried is the end of the text that has keys.
        let cached = sequence.keys[1].len - sequence.queries[1].len;
        match (self.mask, span, key.span) {
            (Mask::None, _, _) | (Mask::Causal, _, 0) => true,
            (Mask::Causal, 0, _) => false,
            (Mask::Causal, _, _) => key.place <= cached + place,
        }
    }

    /// What is added to the score of key `index` of its sequence for the query at `place` of its span.
    fn bias(&self, sequence: &Sequence, span: usize, place: usize, head: usize, index: usize) -> f64 {
        let Some(bias) = &self.bias else { return 0.0 };
        let total = |spans: &[Span; 2]| (spans[0].len + spans[1].len) as isize;
        let query = (place + if span == 1 { sequence.queries[0].len } else { 0 }) as isize;
        let position = total(&sequence.keys) - total(&sequence.queries) + query;
        let reach = (bias.cols / 2) as isize;
        let distance = (index as isize - position).clamp(-reach, reach);
        bias.at(head, (distance + reach) as usize)
    }

    /// What dropout multiplies the probability of key `index` of its sequence by.
    fn factor(&self, row: usize, head: usize, index: usize) -> f64 {
        let Some(probability) = self.dropout else { return 1.0 };
        let counter = [index / 4, row, DROPOUT_SITE as usize, head].map(|n| n as u32);
        let word = f64::from(philox(counter, DROPOUT_KEY)[index % 4]);
        if word < (probability * f64::from(u32::MAX)).floor() { 0.0 } else { 1.0 / (1.0 - probability) }
    }

    fn width(&self) -> usize {
        self.q.cols / self.heads
    }

    fn for_each_query(&self, mut each: impl FnMut(Query<'_>)) {
        for sequence in &self.sequences {
            for (span, queries) in sequence.queries.iter().enumerate() {
                for place in 0..queries.len {
                    let row = queries.start + place;
                    for head in 0..self.heads {
                        let mut seen = self.keys(sequence);
                        seen.retain(|key| self.sees(sequence, span, place, key));
                        let columns = head * self.width()..(head + 1) * self.width();
                        let q = &self.q.row(row)[columns.clone()];
                        let score = |(index, key): (usize, &Key<'_>)| {
                            let bias = self.bias(sequence, span, place, head, index);
                            dot(q, &key.k[columns.clone()]) * self.scale() + bias
                        };
                        // What is seen is what comes first.
                        let weights: Vec<f64> =
                            seen.iter().enumerate().map(|each| score(each).exp()).collect();
                        let total: f64 = weights.iter().sum();
                        let p = weights.iter().map(|w| w / total).collect();
                        let factors = (0..seen.len()).map(|index| self.factor(row, head, index)).collect();
                        each(Query { row, head, seen, p, factors, log_sum: total.ln() });
                    }
                }
            }
        }
    }

    /// With zeros in rows that no sequence names.
    pub(crate) fn plain(&self) -> Output {
        self.plain_storing(|p| p)
    }

    /// What an implementation gives that is not fused and stores probabilities by `store`.
    pub(crate) fn plain_storing(&self, store: fn(f64) -> f64) -> Output {
        let mut out = Matrix::filled(self.q.rows, self.q.cols, 0.0);
        let mut log_sums = Matrix::filled(self.q.rows, self.heads, 0.0);
        self.for_each_query(|query| {
            let Query { row, head, seen, p, factors, log_sum } = query;
            log_sums.set(row, head, log_sum);
            for c in head * self.width()..(head + 1) * self.width() {
                let terms = seen.iter().zip(&p).zip(&factors).map(|((key, p), f)| store(p * f) * key.v[c]);
                out.set(row, c, terms.sum());
            }
        });
        Output { out, log_sums }
    }

    /// What such an implementation gives for the gradient, which stores those of probabilities and of
    /// scores too.
    pub(crate) fn plain_gradient_storing(&self, dout: &Matrix, store: fn(f64) -> f64) -> Gradient {
        let out = self.plain_storing(store).out;
        let mut gradient = self.gradient_of(|_| 0.0);
        let (width, scale) = (self.width(), self.scale());
        self.for_each_query(|query| {
            let Query { row, head, seen, p, factors, .. } = query;
            let columns = head * width..(head + 1) * width;
            let dout = &dout.row(row)[columns.clone()];
            let stored: Vec<f64> = out.row(row)[columns.clone()].iter().map(|&x| store(x)).collect();
            let delta = dot(&stored, dout);
            for ((key, p), factor) in seen.iter().zip(&p).zip(&factors) {
                let dropped = store(p * factor);
                let dp = store(dot(dout, &key.v[columns.clone()]));
                let ds = store(p * (dp * factor - delta) * scale);
                let [dk, dv] = match &mut gradient.dprefix {
                    Some(dprefix) if key.span == 0 => dprefix.each_mut(),
                    _ => [&mut gradient.dk, &mut gradient.dv],
                };
                for c in columns.clone() {
                    let add = |to: &mut Matrix, row, x| to.set(row, c, to.at(row, c) + x);
                    add(&mut gradient.dq, row, ds * key.k[c]);
                    add(dk, key.row, ds * self.q.at(row, c));
                    add(dv, key.row, dropped * dout[c - columns.start]);
                }
            }
        });
        gradient
    }
}
