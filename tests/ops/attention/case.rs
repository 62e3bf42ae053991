//! A batch of sequences, and what attention makes of it.

use crate::common::{Matrix, Random};
use crate::device::{Tensor, TestDevice, rounded};
use qformer::device::{Cuda, Write};
use qformer::ops::attention::{
    Attention, AttentionBackward, AttentionForward, AttentionOp, DistanceBias, Mask, PlacedSequences,
    Sequence, Sequences, Span,
};
use qformer::ops::dropout::Dropout;

/// Seed and step of all masks of dropout.
pub(crate) const DROPOUT_KEY: [u32; 2] = [11, 12];
/// Place of the graph that they are drawn for.
pub(crate) const DROPOUT_SITE: u32 = 3;

/// Sequences and the numbers they attend over.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) sequences: Vec<Sequence>,
    pub(crate) mask: Mask,
    pub(crate) heads: usize,
    pub(crate) q: Matrix,
    pub(crate) k: Matrix,
    pub(crate) v: Matrix,
    pub(crate) prefix: Option<[Matrix; 2]>,
    /// Probability of dropout.
    pub(crate) dropout: Option<f64>,
    /// [heads, 2·reach + 1]
    pub(crate) bias: Option<Matrix>,
}

pub(crate) struct Output {
    pub(crate) out: Matrix,
    /// Log-sum-exps [query rows, heads], as rows of queries like `out`.
    pub(crate) log_sums: Matrix,
}

pub(crate) struct Gradient {
    pub(crate) dq: Matrix,
    pub(crate) dk: Matrix,
    pub(crate) dv: Matrix,
    pub(crate) dprefix: Option<[Matrix; 2]>,
}

/// The rows that `spans` name.
fn named(spans: impl Iterator<Item = Span>) -> Vec<usize> {
    spans.flat_map(|s| s.start..s.start + s.len).collect()
}

fn query_rows(sequences: &[Sequence]) -> Vec<usize> {
    named(sequences.iter().flat_map(|s| s.queries))
}

fn key_rows(sequences: &[Sequence], has_prefix: bool) -> Vec<usize> {
    named(sequences.iter().flat_map(|s| s.keys.into_iter().skip(usize::from(has_prefix))))
}

fn prefix_rows(sequences: &[Sequence]) -> Vec<usize> {
    named(sequences.iter().map(|s| s.keys[0]))
}

/// `matrix` with `value` in every row that is not among `rows`.
pub(crate) fn with_others(matrix: &Matrix, rows: &[usize], value: f64) -> Matrix {
    Matrix::from_fn(matrix.rows, matrix.cols, |r, c| if rows.contains(&r) { matrix.at(r, c) } else { value })
}

fn transposed(matrix: &Matrix) -> Matrix {
    Matrix::from_fn(matrix.cols, matrix.rows, |r, c| matrix.at(c, r))
}

impl Case {
    /// Random numbers for `sequences`, and NaN in rows that none of them names; every stream ends
    /// in such a row. With a prefix the first spans of keys are rows of the prefix.
    pub(crate) fn random(
        name: &'static str,
        mask: Mask,
        [heads, width]: [usize; 2],
        has_prefix: bool,
        sequences: Vec<Sequence>,
    ) -> Self {
        let mut random = Random::new(1);
        let mut stream = |rows: &[usize]| {
            let count = rows.iter().max().map_or(1, |last| last + 2);
            with_others(&random.matrix(count, heads * width), rows, f64::NAN)
        };
        let (queries, keys) = (query_rows(&sequences), key_rows(&sequences, has_prefix));
        let (q, k, v) = (stream(&queries), stream(&keys), stream(&keys));
        let prefix = has_prefix.then(|| [(); 2].map(|()| stream(&prefix_rows(&sequences))));
        Self { name, sequences, mask, heads, q, k, v, prefix, dropout: None, bias: None }
    }

    /// The same case with dropout.
    pub(crate) fn dropped(self, name: &'static str, probability: f64) -> Self {
        Self { name, dropout: Some(probability), ..self }
    }

    /// The same case with a bias of random numbers that every device holds exactly.
    pub(crate) fn biased(self, name: &'static str, reach: usize) -> Self {
        let bias = rounded::<Cuda>(&Random::new(3).matrix(self.heads, 2 * reach + 1));
        Self { name, bias: Some(bias), ..self }
    }

    /// The same case with numbers that `D` holds exactly.
    pub(crate) fn rounded<D: TestDevice>(&self) -> Self {
        let prefix = self.prefix.as_ref().map(|p| p.each_ref().map(rounded::<D>));
        let [q, k, v] = [&self.q, &self.k, &self.v].map(rounded::<D>);
        Self { q, k, v, prefix, ..self.clone() }
    }

    pub(crate) fn query_rows(&self) -> Vec<usize> {
        query_rows(&self.sequences)
    }

    pub(crate) fn key_rows(&self) -> Vec<usize> {
        key_rows(&self.sequences, self.prefix.is_some())
    }

    pub(crate) fn prefix_rows(&self) -> Vec<usize> {
        prefix_rows(&self.sequences)
    }

    pub(crate) fn scale(&self) -> f64 {
        (self.heads as f64 / self.q.cols as f64).sqrt()
    }

    fn attention<'a, D: TestDevice>(
        &self,
        sequences: PlacedSequences<'a, D>,
        key: &'a mut Tensor<D, u32>,
        bias: &'a mut Option<Tensor<D, D::Stat>>,
    ) -> Attention<'a, D> {
        let key = key.view();
        let dropout = self.dropout.map(|probability| Dropout { probability, site: DROPOUT_SITE, key });
        let bias = bias.as_mut().map(|table| DistanceBias { table: table.view() });
        Attention { sequences, heads: self.heads, mask: self.mask, scale: self.scale(), bias, dropout }
    }

    fn placed_bias<D: TestDevice>(&self) -> Option<Tensor<D, D::Stat>> {
        self.bias.as_ref().map(Tensor::pitched)
    }

    /// What the operation writes over matrices filled with `before`.
    pub(crate) fn forward<D: TestDevice + AttentionOp>(&self, before: f64) -> Output {
        self.forward_over::<D>(before, None)
    }

    /// The same where second spans of keys are spans of the list `key_rows`.
    pub(crate) fn forward_over<D: TestDevice + AttentionOp>(
        &self,
        before: f64,
        key_rows: Option<&[u32]>,
    ) -> Output {
        let mut key_rows = key_rows.map(|rows| Tensor::<D, u32>::indices(1, rows.len(), rows));
        let sequences = Sequences::new(self.sequences.clone());
        let mut table = Tensor::<D, u32>::indices(1, sequences.words(), &vec![0; sequences.words()]);
        let sequences = sequences.place(D::get(), table.view_mut()).unwrap();
        let mut key = Tensor::<D, u32>::indices(1, 2, &DROPOUT_KEY);
        let mut bias = self.placed_bias::<D>();
        let mut out = Tensor::<D>::pitched(&Matrix::filled(self.q.rows, self.q.cols, before));
        let mut lse = Tensor::<D, D::Stat>::pitched(&Matrix::filled(self.heads, self.q.rows, before));
        let mut prefix = self.prefix.as_ref().map(|p| p.each_ref().map(Tensor::<D>::pitched));
        D::get()
            .attention_forward(
                self.attention(sequences, &mut key, &mut bias),
                AttentionForward {
                    q: Tensor::pitched(&self.q).view(),
                    k: Tensor::pitched(&self.k).view(),
                    v: Tensor::pitched(&self.v).view(),
                    prefix: prefix.as_mut().map(|p| p.each_mut().map(Tensor::view)),
                    key_rows: key_rows.as_mut().map(Tensor::view),
                    out: out.view_mut(),
                    lse: Some(lse.view_mut()),
                },
            )
            .unwrap();
        Output { out: out.read(), log_sums: transposed(&lse.read()) }
    }

    /// The operation's output, with zeros in rows that no sequence names.
    pub(crate) fn output<D: TestDevice + AttentionOp>(&self) -> Output {
        let Output { out, log_sums } = self.forward::<D>(f64::NAN);
        let rows = self.query_rows();
        Output { out: with_others(&out, &rows, 0.0), log_sums: with_others(&log_sums, &rows, 0.0) }
    }

    /// What the operation makes of the gradients in `before`.
    pub(crate) fn backward<D: TestDevice + AttentionOp>(
        &self,
        dout: &Matrix,
        write: Write,
        before: &Gradient,
    ) -> Gradient {
        let sequences = Sequences::new(self.sequences.clone());
        let mut table = Tensor::<D, u32>::indices(1, sequences.words(), &vec![0; sequences.words()]);
        let sequences = sequences.place(D::get(), table.view_mut()).unwrap();
        let mut key = Tensor::<D, u32>::indices(1, 2, &DROPOUT_KEY);
        let mut bias = self.placed_bias::<D>();
        let Output { out, log_sums } = self.forward::<D>(f64::NAN);
        let mut dq = Tensor::<D>::pitched(&before.dq);
        let mut dk = Tensor::<D>::pitched(&before.dk);
        let mut dv = Tensor::<D>::pitched(&before.dv);
        let mut prefix = self.prefix.as_ref().map(|p| p.each_ref().map(Tensor::<D>::pitched));
        let mut dprefix = before.dprefix.as_ref().map(|p| p.each_ref().map(Tensor::<D>::pitched));
        D::get()
            .attention_backward(
                self.attention(sequences, &mut key, &mut bias),
                AttentionBackward {
                    q: Tensor::pitched(&self.q).view(),
                    k: Tensor::pitched(&self.k).view(),
                    v: Tensor::pitched(&self.v).view(),
                    prefix: prefix.as_mut().map(|p| p.each_mut().map(Tensor::view)),
                    out: Tensor::pitched(&out).view(),
                    lse: Tensor::<D, D::Stat>::pitched(&transposed(&log_sums)).view(),
                    dout: Tensor::pitched(dout).view(),
                    dq: dq.view_mut(),
                    write,
                    dk: dk.view_mut(),
                    dv: dv.view_mut(),
                    dprefix: dprefix.as_mut().map(|p| p.each_mut().map(Tensor::view_mut)),
                },
            )
            .unwrap();
        let dprefix = dprefix.as_mut().map(|p| p.each_mut().map(Tensor::read));
        Gradient { dq: dq.read(), dk: dk.read(), dv: dv.read(), dprefix }
    }

    /// The operation's gradient, with zeros in rows that no sequence names.
    pub(crate) fn gradient<D: TestDevice + AttentionOp>(&self, dout: &Matrix) -> Gradient {
        let mut before = self.gradient_of(|_| f64::NAN);
        before.dprefix = self.gradient_of(|_| 0.0).dprefix;
        let Gradient { dq, dk, dv, dprefix } = self.backward::<D>(dout, Write::Replace, &before);
        let keys = self.key_rows();
        Gradient {
            dq: with_others(&dq, &self.query_rows(), 0.0),
            dk: with_others(&dk, &keys, 0.0),
            dv: with_others(&dv, &keys, 0.0),
            dprefix,
        }
    }

    /// A gradient of the output, NaN in rows that no sequence names.
    pub(crate) fn random_dout(&self) -> Matrix {
        with_others(&Random::new(2).matrix(self.q.rows, self.q.cols), &self.query_rows(), f64::NAN)
    }

    /// Matrices of the gradients' shapes, with `value(i)` as their element i.
    pub(crate) fn gradient_of(&self, value: impl Fn(usize) -> f64) -> Gradient {
        let like = |m: &Matrix| Matrix::from_fn(m.rows, m.cols, |r, c| value(r * m.cols + c));
        let dprefix = self.prefix.as_ref().map(|p| p.each_ref().map(like));
        Gradient { dq: like(&self.q), dk: like(&self.k), dv: like(&self.v), dprefix }
    }
}

impl Gradient {
    /// Its matrices with their names.
    pub(crate) fn matrices(&self) -> Vec<(&'static str, &Matrix)> {
        let own = [("dq", &self.dq), ("dk", &self.dk), ("dv", &self.dv)];
        let prefix = self.dprefix.iter().flat_map(|[k, v]| [("dprefix k", k), ("dprefix v", v)]);
        own.into_iter().chain(prefix).collect()
    }
}
