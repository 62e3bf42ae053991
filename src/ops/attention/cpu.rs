//! Attention with one task for each head of a group of sequences that read the same keys. The
//! scores of a task fit in its core's cache, so the softmax needs no second pass over memory.

use super::key_rows::{KeyRows, Transposed, has_few_queries};
use super::{Attention, AttentionBackward, AttentionForward, AttentionOp, Mask, Sequence, Sequences, Span};
use crate::device::{Cpu, Factor, Real, Rows, Write, maximum, product, sum, vectorised};
use crate::error::Result;
use crate::ops::dropout::RUN;
use crate::tensor::View;
use rayon::prelude::*;

type Shared<'a, E> = View<'a, Cpu<E>, E>;

/// One head of one sequence: where its blocks lie in the streams and in the matrix of scores.
struct Head {
    sequence: Sequence,
    /// First column of the head.
    col: usize,
    width: usize,
}

/// One head of sequences that read the same keys.
struct Group<'a> {
    sequences: &'a [Sequence],
    /// First column of the head.
    col: usize,
    width: usize,
}

/// A span of queries against a span of keys.
struct Block {
    /// Rows and columns of the scores.
    shape: [usize; 2],
    /// Where the block starts in the scores [query count, key count].
    at: usize,
    query: usize,
    key: usize,
    /// 0 for the first span of keys, 1 for the second.
    span: usize,
}

impl Head {
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let (s, keys) = (&self.sequence, self.sequence.key_count());
        [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().filter_map(move |(i, j)| {
            let (q, k) = (s.queries[i], s.keys[j]);
            let at = [0, s.queries[0].len][i] * keys + [0, s.keys[0].len][j];
            let block = Block { shape: [q.len, k.len], at, query: q.start, key: k.start, span: j };
            (q.len > 0 && k.len > 0).then_some(block)
        })
    }

    /// Rows of the stream, in the order of the scores' rows.
    fn query_rows(&self) -> impl Iterator<Item = usize> {
        self.sequence.queries.into_iter().flat_map(|q| q.start..q.start + q.len)
    }

    /// out [query count, key count] = a·b for rows of `a` over queries.
    fn scores<E: Real>(&self, a: Shared<'_, E>, b: &Transposed<E>, out: &mut Vec<E>) {
        let keys = self.sequence.key_count();
        out.resize(self.sequence.query_count() * keys, E::ZERO);
        let mut rest = &mut out[..];
        for queries in self.sequence.queries.into_iter().filter(|queries| queries.len > 0) {
            let (scores, others) = rest.split_at_mut(queries.len * keys);
            let (a, b) = (Factor::of(a, queries.start, self.col), Factor::rows(&b.numbers, b.pitch));
            // SAFETY: the scores hold as many rows of as many columns.
            unsafe {
                product([queries.len, keys, self.width], a, b, Write::Replace, (scores.as_mut_ptr(), keys, 1))
            };
            rest = others;
        }
    }

    /// out (+)= p·b for p [query count, key count] and the rows of `b` over each span of keys.
    ///
    /// # Safety
    /// This head's columns of the sequence's query rows of `out` belong to the caller alone.
    unsafe fn gather<E: Real>(&self, p: &[E], b: impl Fn(&Block) -> Factor<E>, out: &Rows<'_, E>) {
        let keys = self.sequence.key_count();
        for block in self.blocks() {
            let [m, k] = block.shape;
            let b = b(&block);
            let write =
                if block.span == 1 && self.sequence.keys[0].len > 0 { Write::Add } else { Write::Replace };
            let to = (out.at(block.query, self.col), out.pitch(), 1);
            // SAFETY: as the caller promises; `p` holds the whole block.
            unsafe { product([m, self.width, k], Factor::rows(&p[block.at..], keys), b, write, to) };
        }
    }

    /// out += pᵀ·b for p [query count, key count] and rows of `b` over queries.
    ///
    /// # Safety
    /// This head's columns of the sequence's key rows of `out` belong to the caller alone.
    unsafe fn scatter<E: Real>(&self, p: &[E], b: Shared<'_, E>, out: [&Rows<'_, E>; 2]) {
        let keys = self.sequence.key_count();
        for block in self.blocks() {
            let [k, m] = block.shape;
            let p = Factor::rows(&p[block.at..], keys).transposed();
            let b = Factor::of(b, block.query, self.col);
            let out = out[block.span];
            // SAFETY: as the caller promises.
            unsafe {
                product([m, self.width, k], p, b, Write::Add, (out.at(block.key, self.col), out.pitch(), 1));
            }
        }
    }
}

impl Group<'_> {
    /// The rows of these matrices that are the group's keys; `listed` as `key_rows` in the operands.
    fn rows<'v, E: Real>(&self, matrices: [Shared<'v, E>; 2], listed: Option<&'v [u32]>) -> KeyRows<'v, E> {
        KeyRows { matrices, spans: self.sequences[0].keys, listed, col: self.col, width: self.width }
    }

    /// The head of each sequence.
    fn heads(&self) -> impl Iterator<Item = Head> {
        let &Self { sequences, col, width } = self;
        sequences.iter().map(move |&sequence| Head { sequence, col, width })
    }

    /// The same, where queries that follow one another and see the same keys are taken for one sequence's.
    /// Products of more rows need not be the same bits, which only gradients may be free in.
    fn joined_heads<E: Real>(&self, what: &Attention<'_, Cpu<E>>) -> impl Iterator<Item = Head> {
        let &Self { sequences, col, width } = self;
        // A bias goes by places in the sequence.
        let alike = what.mask == Mask::None && what.bias.is_none();
        let are_one = move |first: &Sequence, second: &Sequence| alike && first.is_before(second);
        sequences.chunk_by(are_one).map(move |run| {
            let mut sequence = run[0];
            sequence.queries[0].len = run.iter().map(|sequence| sequence.queries[0].len).sum();
            Head { sequence, col, width }
        })
    }
}

impl<E: Real> Attention<'_, Cpu<E>> {
    /// The sequences, whose rows are those of q, so many of keys, and those of the prefix.
    fn read_sequences(
        &self,
        q: Shared<'_, E>,
        key_rows: usize,
        prefix: Option<[Shared<'_, E>; 2]>,
    ) -> Sequences {
        let sequences = Sequences::of_table(self.sequences.table.row(0), self.sequences.sizes);
        sequences.check(q.rows(), key_rows, prefix.map(|[k, _]| k.rows()));
        sequences
    }

    /// x = scale·x + bias for the products of query `index` of a sequence with the keys that it sees, if there is a bias;
    /// returns the factor that makes them scores.
    #[inline(always)]
    fn add_bias(&self, x: &mut [E], sequence: &Sequence, index: usize, head: usize) -> E {
        let scale = E::of(self.scale);
        let Some(bias) = self.bias else { return scale };
        let row = bias.table.row(head);
        // The column of key j is that of its place − the query's, keys − queries + index, from −reach on.
        let (reach, place) = (row.len() / 2, sequence.key_count() + index);
        for (key, x) in x.iter_mut().enumerate() {
            let column = (key + reach + sequence.query_count()).saturating_sub(place).min(2 * reach);
            *x = *x * scale + row[column];
        }
        E::ONE
    }

    /// Runs `each(scratch, group, index of the head)` for every head of every group: on one thread, in order.
    fn for_each_group<T: Default>(
        &self,
        sequences: &Sequences,
        width: usize,
        each: impl Fn(&mut T, &Group<'_>, usize) + Sync,
    ) {
        let groups: Vec<_> = sequences.groups.windows(2).filter(|g| g[0] < g[1]).collect();
        (0..groups.len() * self.heads).into_par_iter().for_each_init(T::default, |scratch, task| {
            let (group, head) = (groups[task / self.heads], task % self.heads);
            let sequences = &sequences.sequences[group[0]..group[1]];
            each(scratch, &Group { sequences, col: head * width, width }, head);
        });
    }
}

impl Sequence {
    /// Whether the queries of `next` come right after those of this one.
    fn is_before(&self, next: &Self) -> bool {
        let one_span = |sequence: &Self| sequence.queries[1] == Span::EMPTY;
        one_span(self) && one_span(next) && self.queries[0].end() == next.queries[0].start
    }
}

impl<E: Real> AttentionOp for Cpu<E> {
    fn attention_forward(&self, what: Attention<'_, Self>, args: AttentionForward<'_, Self>) -> Result<()> {
        let AttentionForward { q, k, v, prefix, key_rows, out, lse } = args;
        let width = what.check(q, k, v, prefix);
        let sequences = what.read_sequences(q, key_rows.map_or(k.rows(), |rows| rows.cols()), prefix);
        let key_rows = key_rows.map(|rows| rows.row(0));
        assert_eq!(out.shape(), q.shape());
        let [first_k, first_v] = prefix.unwrap_or([k, v]);
        let (out, lse) = (out.into_rows(), lse.map(|l| l.into_rows()));
        what.for_each_group(&sequences, width, |scratch: &mut (Transposed<E>, [Vec<E>; 2]), group, index| {
            let (keys, [p, listed]) = scratch;
            let (key_rows, values) = (group.rows([first_k, k], key_rows), group.rows([first_v, v], key_rows));
            if group.sequences.iter().any(|sequence| !has_few_queries(sequence)) {
                keys.fill(self, &key_rows);
                values.lay_out(listed);
            }
            for head in group.heads() {
                let (few, count) = (has_few_queries(&head.sequence), head.sequence.key_count());
                if few {
                    p.resize(head.sequence.query_count() * count, E::ZERO);
                } else {
                    head.scores(q, keys, p);
                }
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, row) in head.query_rows().enumerate() {
                            let p = &mut p[i * count..(i + 1) * count];
                            let (seen, unseen) = p.split_at_mut(what.visible(&head.sequence, i));
                            if few {
                                key_rows.scores(&q.row(row)[head.col..head.col + width], seen);
                            }
                            let factor = what.add_bias(seen, &head.sequence, i, index);
                            let total = softmax(seen, factor);
                            unseen.fill(E::ZERO);
                            if let Some(dropout) = what.dropout {
                                dropout.apply(index as u32, row, seen);
                            }
                            if let Some(lse) = &lse {
                                // SAFETY: this element of the log-sum-exps belongs to this task alone.
                                unsafe { lse.at(index, row).write(total) };
                            }
                            if few {
                                // SAFETY: a query row belongs to one sequence, a head to one task of its group.
                                let out =
                                    unsafe { std::slice::from_raw_parts_mut(out.at(row, head.col), width) };
                                values.weighted_sum(seen, out);
                            }
                        }
                    },
                );
                if few {
                    continue;
                }
                let values = |block: &Block| match block.span {
                    1 if values.listed.is_some() => Factor::rows(listed, width),
                    span => Factor::of([first_v, v][span], block.key, head.col),
                };
                // SAFETY: a query row belongs to one sequence, a head to one task of its group.
                unsafe { head.gather(p, values, &out) };
            }
        });
        Ok(())
    }

    fn attention_backward(&self, what: Attention<'_, Self>, args: AttentionBackward<'_, Self>) -> Result<()> {
        let AttentionBackward { q, k, v, prefix, out, lse, dout, dq, write, dk, dv, dprefix } = args;
        let width = what.check(q, k, v, prefix);
        let sequences = what.read_sequences(q, k.rows(), prefix);
        sequences.check_gradients();
        assert!(out.shape() == q.shape() && dout.shape() == q.shape() && dq.shape() == q.shape());
        assert!(dk.shape() == k.shape() && dv.shape() == v.shape());
        assert_eq!(prefix.is_some(), dprefix.is_some(), "a prefix has gradients");
        let [first_k, first_v] = prefix.unwrap_or([k, v]);
        let (dq, dk, dv) = (dq.into_rows(), dk.into_rows(), dv.into_rows());
        let dprefix = dprefix.map(|d| d.map(|d| d.into_rows()));
        let [first_dk, first_dv] = dprefix.as_ref().map_or([&dk, &dv], |[dk, dv]| [dk, dv]);
        let scale = E::of(what.scale);
        if write == Write::Replace {
            let own_spans = if prefix.is_some() { 1..2 } else { 0..2 };
            sequences.groups.windows(2).filter(|g| g[0] < g[1]).for_each(|g| {
                for span in own_spans.clone() {
                    let span = sequences.sequences[g[0]].keys[span];
                    for row in span.start..span.end() {
                        // SAFETY: no task has started yet.
                        unsafe { (dk.row(row).fill(E::ZERO), dv.row(row).fill(E::ZERO)) };
                    }
                }
            });
        }
        what.for_each_group(
            &sequences,
            width,
            |scratch: &mut ([Transposed<E>; 2], [Vec<E>; 2]), group, index| {
                let ([keys, values], [p, dp]) = scratch;
                keys.fill(self, &group.rows([first_k, k], None));
                values.fill(self, &group.rows([first_v, v], None));
                for head in group.joined_heads(&what) {
                    head.scores(q, keys, p);
                    head.scores(dout, values, dp);
                    let (keys, columns) = (head.sequence.key_count(), head.col..head.col + width);
                    vectorised(
                        #[inline(always)]
                        || {
                            for (i, row) in head.query_rows().enumerate() {
                                let (p, dp) =
                                    (&mut p[i * keys..(i + 1) * keys], &mut dp[i * keys..(i + 1) * keys]);
                                let (out, dout) =
                                    (&out.row(row)[columns.clone()], &dout.row(row)[columns.clone()]);
                                // Σ_j p_j·m_j/(1 − p)·dp_j, without another pass over the keys.
                                let delta = sum([out, dout], |[out, dout]| out * dout);
                                let lse = lse.row(index)[row];
                                let seen = what.visible(&head.sequence, i);
                                let factor_of_scores =
                                    what.add_bias(&mut p[..seen], &head.sequence, i, index);
                                for run in 0..seen.div_ceil(RUN) {
                                    // Not `map_or`, which is a function of its own, compiled for any processor.
                                    let factors = match what.dropout {
                                        Some(dropout) => dropout.factors(index as u32, row, run),
                                        None => [E::ONE; RUN],
                                    };
                                    let keys = run * RUN..seen.min((run + 1) * RUN);
                                    let (p, dp) = (&mut p[keys.clone()], &mut dp[keys]);
                                    for ((p, dp), factor) in p.iter_mut().zip(dp).zip(factors) {
                                        let probability = (*p * factor_of_scores - lse).exp();
                                        *p = probability * factor;
                                        *dp = probability * (*dp * factor - delta) * scale;
                                    }
                                }
                                p[seen..].fill(E::ZERO);
                                dp[seen..].fill(E::ZERO);
                            }
                        },
                    );
                    let keys = |block: &Block| Factor::of([first_k, k][block.span], block.key, head.col);
                    // SAFETY: a query row belongs to one sequence; the keys of a group belong, head by
                    // head, to one task.
                    unsafe {
                        head.gather(dp, keys, &dq);
                        head.scatter(dp, q, [first_dk, &dk]);
                        head.scatter(p, dout, [first_dv, &dv]);
                    }
                }
            },
        );
        Ok(())
    }
}

/// x = softmax(scale·x); returns the log-sum-exp.
#[inline(always)]
fn softmax<E: Real>(x: &mut [E], scale: E) -> E {
    let largest = maximum(x) * scale;
    for x in x.iter_mut() {
        *x = (*x * scale - largest).exp();
    }
    let total = sum([x], |[x]| x);
    let inverse = E::ONE / total;
    for x in x.iter_mut() {
        *x = *x * inverse;
    }
    largest + total.ln()
}
