//! Attention with one task for each head of a group of sequences that read the same keys. The
//! scores of a task fit in its core's cache, so the softmax needs no second pass over memory.

use super::{Attention, AttentionBackward, AttentionForward, AttentionOp, Mask, Sequence, Span};
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

/// Whether sequences that follow one another, see the same keys and have no mask, are taken for one. Products of
/// more rows need not be the same bits, which only gradients may be free in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Neighbours {
    Apart,
    AsOne,
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

    /// out [query count, key count] = q·kᵀ for rows of `a` over queries and `b` over keys.
    fn scores<E: Real>(&self, a: Shared<'_, E>, b: [Shared<'_, E>; 2], out: &mut Vec<E>) {
        let keys = self.sequence.key_count();
        out.resize(self.sequence.query_count() * keys, E::ZERO);
        for block in self.blocks() {
            let [m, n] = block.shape;
            let a = Factor::of(a, block.query, self.col);
            let b = Factor::of(b[block.span], block.key, self.col).transposed();
            // SAFETY: the block lies within `out`, which this task owns.
            unsafe {
                product([m, n, self.width], a, b, Write::Replace, (out.as_mut_ptr().add(block.at), keys, 1));
            }
        }
    }

    /// out (+)= p·b for p [query count, key count] and rows of `b` over keys.
    ///
    /// # Safety
    /// This head's columns of the sequence's query rows of `out` belong to the caller alone.
    unsafe fn gather<E: Real>(&self, p: &[E], b: [Shared<'_, E>; 2], out: &Rows<'_, E>) {
        let keys = self.sequence.key_count();
        for block in self.blocks() {
            let [m, k] = block.shape;
            let b = Factor::of(b[block.span], block.key, self.col);
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

impl<E: Real> Attention<'_, Cpu<E>> {
    /// Runs `each(scratch, head, index of the head)` for every head of every sequence; heads of
    /// sequences that share keys run on one thread, in order.
    fn for_each_head<T: Default>(
        &self,
        width: usize,
        neighbours: Neighbours,
        each: impl Fn(&mut T, &Head, usize) + Sync,
    ) {
        let groups = self.sequences.groups.len() - 1;
        (0..groups * self.heads).into_par_iter().for_each_init(T::default, |scratch, task| {
            let (group, head) = (task / self.heads, task % self.heads);
            let members = self.sequences.groups[group]..self.sequences.groups[group + 1];
            let members = &self.sequences.sequences[members];
            let are_one = |first: &Sequence, second: &Sequence| {
                neighbours == Neighbours::AsOne && self.mask == Mask::None && first.is_before(second)
            };
            for run in members.chunk_by(are_one) {
                let (first, last) = (run[0], run[run.len() - 1]);
                let queries =
                    Span::new(first.queries[0].start, last.queries[0].end() - first.queries[0].start);
                let queries = if run.len() == 1 { first.queries } else { [queries, Span::EMPTY] };
                let sequence = Sequence { queries, ..first };
                each(scratch, &Head { sequence, col: head * width, width }, head);
            }
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
        let AttentionForward { q, k, v, prefix, out, lse } = args;
        let width = what.check(q, k, v, prefix);
        assert_eq!(out.shape(), q.shape());
        let [first_k, first_v] = prefix.unwrap_or([k, v]);
        let (out, lse) = (out.into_rows(), lse.map(|l| l.into_rows()));
        let scale = E::of(what.scale);
        what.for_each_head(width, Neighbours::Apart, |p: &mut Vec<E>, head, index| {
            head.scores(q, [first_k, k], p);
            let keys = head.sequence.key_count();
            vectorised(
                #[inline(always)]
                || {
                    for (i, row) in head.query_rows().enumerate() {
                        let p = &mut p[i * keys..(i + 1) * keys];
                        let (seen, unseen) = p.split_at_mut(what.visible(&head.sequence, i));
                        let total = softmax(seen, scale);
                        unseen.fill(E::ZERO);
                        if let Some(dropout) = what.dropout {
                            dropout.apply(index as u32, row, seen);
                        }
                        if let Some(lse) = &lse {
                            // SAFETY: this element of the log-sum-exps belongs to this task alone.
                            unsafe { lse.at(index, row).write(total) };
                        }
                    }
                },
            );
            // SAFETY: a query row belongs to one sequence, a head to one task of its group.
            unsafe { head.gather(p, [first_v, v], &out) };
        });
        Ok(())
    }

    fn attention_backward(&self, what: Attention<'_, Self>, args: AttentionBackward<'_, Self>) -> Result<()> {
        let AttentionBackward { q, k, v, prefix, out, lse, dout, dq, write, dk, dv, dprefix } = args;
        let width = what.check(q, k, v, prefix);
        what.sequences.check_gradients();
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
            what.sequences.groups.windows(2).filter(|g| g[0] < g[1]).for_each(|g| {
                for span in own_spans.clone() {
                    let span = what.sequences.sequences[g[0]].keys[span];
                    for row in span.start..span.end() {
                        // SAFETY: no task has started yet.
                        unsafe { (dk.row(row).fill(E::ZERO), dv.row(row).fill(E::ZERO)) };
                    }
                }
            });
        }
        what.for_each_head(width, Neighbours::AsOne, |(p, dp): &mut (Vec<E>, Vec<E>), head, index| {
            head.scores(q, [first_k, k], p);
            head.scores(dout, [first_v, v], dp);
            let (keys, columns) = (head.sequence.key_count(), head.col..head.col + width);
            vectorised(
                #[inline(always)]
                || {
                    for (i, row) in head.query_rows().enumerate() {
                        let (p, dp) = (&mut p[i * keys..(i + 1) * keys], &mut dp[i * keys..(i + 1) * keys]);
                        let (out, dout) = (&out.row(row)[columns.clone()], &dout.row(row)[columns.clone()]);
                        // Σ_j p_j·m_j/(1 − p)·dp_j, without another pass over the keys.
                        let delta = sum([out, dout], |[out, dout]| out * dout);
                        let lse = lse.row(index)[row];
                        let seen = what.visible(&head.sequence, i);
                        for run in 0..seen.div_ceil(RUN) {
                            // Not `map_or`, which is a function of its own, compiled for any processor.
                            let factors = match what.dropout {
                                Some(dropout) => dropout.factors(index as u32, row, run),
                                None => [E::ONE; RUN],
                            };
                            let keys = run * RUN..seen.min((run + 1) * RUN);
                            let (p, dp) = (&mut p[keys.clone()], &mut dp[keys]);
                            for ((p, dp), factor) in p.iter_mut().zip(dp).zip(factors) {
                                let probability = (*p * scale - lse).exp();
                                *p = probability * factor;
                                *dp = probability * (*dp * factor - delta) * scale;
                            }
                        }
                        p[seen..].fill(E::ZERO);
                        dp[seen..].fill(E::ZERO);
                    }
                },
            );
            // SAFETY: a query row belongs to one sequence; the keys of a group belong, head by
            // head, to one task.
            unsafe {
                head.gather(dp, [first_k, k], &dq);
                head.scatter(dp, q, [first_dk, &dk]);
                head.scatter(p, dout, [first_dv, &dv]);
            }
        });
        Ok(())
    }
}

/// x = softmax(scale·x); returns the log-sum-exp.
#[inline(always)]
pub(crate) fn softmax<E: Real>(x: &mut [E], scale: E) -> E {
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
