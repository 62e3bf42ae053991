//! A batch, the operation on it, and the same by plain computation.

use crate::common::{Matrix, Random};
use crate::device::{Tensor, TestDevice, rounded};
use qformer::ops::contrastive::{
    ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, ContrastiveOp, Negatives,
    workspace_words,
};

/// How negatives are chosen; a key if they are drawn.
#[derive(Clone, Copy)]
pub(super) enum Choice {
    Sampled([u32; 2]),
    Hardest,
}

pub(super) const SITE: u32 = 5;

#[derive(Clone)]
pub(super) struct Case {
    /// [images·Q, E]
    pub queries: Matrix,
    /// [texts, E]
    pub texts: Matrix,
    pub temperature: f64,
    pub smoothing: f64,
    pub image_ids: Vec<u32>,
    pub text_ids: Vec<u32>,
}

/// What the forward pass gives.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Forward {
    pub loss: Matrix,
    pub image_statistics: Matrix,
    pub text_statistics: Matrix,
    pub winner: Vec<u8>,
    pub recalled: Vec<u32>,
    pub negative_texts: Vec<u32>,
    pub negative_images: Vec<u32>,
}

/// The loss by its definition.
pub(super) struct Plain {
    pub similarity: Matrix,
    pub winner: Vec<u8>,
    /// Log-sum-exps [1, images] and [1, texts].
    pub log_sum_exp: [Matrix; 2],
    /// Mean cross-entropies: image to text, text to image.
    pub directions: [f64; 2],
    /// Their gradients by the logits, [images, texts].
    pub dlogits: [Matrix; 2],
}

/// Rows of length 1.
fn unit(matrix: &Matrix) -> Matrix {
    let length = |r: usize| matrix.row(r).iter().map(|x| x * x).sum::<f64>().sqrt();
    Matrix::from_fn(matrix.rows, matrix.cols, |r, c| matrix.at(r, c) / length(r))
}

impl Case {
    /// Random features that `D` holds exactly; image i has captions i, i + images, ... A text of three
    /// is about another image of the batch instead, and the last image has no text if there are
    /// others: `[images, queries, texts, width]`.
    pub(super) fn random<D: TestDevice>([images, count, texts, width]: [usize; 4]) -> Self {
        let mut random = Random::new(1);
        let features = |matrix| rounded::<D>(&unit(&matrix));
        let queries = features(random.matrix(images * count, width));
        let texts_of = |t: usize| if t % 3 == 2 { t / 2 } else { t };
        let last = images as u32 - 1;
        let about = |t: usize| (texts_of(t) % images) as u32;
        let text_ids = (0..texts).map(|t| if about(t) == last { 0 } else { about(t) }).map(|id| 100 + id);
        Self {
            queries,
            texts: features(random.matrix(texts, width)),
            temperature: 0.5,
            smoothing: 0.1,
            image_ids: (0..images as u32).map(|i| 100 + i).collect(),
            text_ids: text_ids.collect(),
        }
    }

    pub(super) fn images(&self) -> usize {
        self.image_ids.len()
    }

    pub(super) fn count(&self) -> usize {
        self.queries.rows / self.images()
    }

    fn with_batch<D: TestDevice, R>(&self, run: impl FnOnce(ContrastiveBatch<'_, D>) -> R) -> R {
        let (mut queries, mut texts) = (Tensor::<D>::pitched(&self.queries), Tensor::pitched(&self.texts));
        let mut temperature = Tensor::<D, D::Stat>::rows(&Matrix::filled(1, 1, self.temperature));
        let mut image_ids = Tensor::<D, u32>::indices(1, self.image_ids.len(), &self.image_ids);
        let mut text_ids = Tensor::<D, u32>::indices(1, self.text_ids.len(), &self.text_ids);
        run(ContrastiveBatch {
            queries: queries.view(),
            texts: texts.view(),
            temperature: temperature.view(),
            image_ids: image_ids.view(),
            text_ids: text_ids.view(),
            smoothing: self.smoothing,
        })
    }

    /// Scratch that has something else in it.
    fn workspace<D: TestDevice>(&self) -> Tensor<D, u32> {
        let words = workspace_words(self.images(), self.texts.rows, [self.count(), self.queries.cols]);
        Tensor::indices(1, words, &vec![u32::MAX; words])
    }

    pub(super) fn forward<D: TestDevice + ContrastiveOp>(&self, choice: Choice) -> Forward {
        let (images, texts) = (self.images(), self.texts.rows);
        let mut loss = Tensor::<D, D::Stat>::output(1, 1);
        let mut image_statistics = Tensor::<D, D::Stat>::output(2, images);
        let mut text_statistics = Tensor::<D, D::Stat>::output(2, texts);
        let mut winner = Tensor::<D, u8>::bytes(images, texts);
        let unwritten = |n| Tensor::<D, u32>::indices(1, n, &vec![u32::MAX - 1; n]);
        let (mut recalled, mut negative_texts) = (unwritten(2), unwritten(images));
        let mut negative_images = unwritten(texts);
        let mut workspace = self.workspace::<D>();
        let mut key = match choice {
            Choice::Sampled(key) => Tensor::<D, u32>::indices(1, 2, &key),
            Choice::Hardest => unwritten(2),
        };
        let negatives = match choice {
            Choice::Sampled(_) => Negatives::Sampled { key: key.view(), site: SITE },
            Choice::Hardest => Negatives::Hardest,
        };
        self.with_batch::<D, _>(|batch| {
            D::get()
                .contrastive_forward(ContrastiveForward {
                    batch,
                    negatives,
                    image_statistics: image_statistics.view_mut(),
                    text_statistics: text_statistics.view_mut(),
                    winner: winner.view_mut(),
                    loss: loss.view_mut(),
                    recalled: recalled.view_mut(),
                    negative_texts: negative_texts.view_mut(),
                    negative_images: negative_images.view_mut(),
                    workspace: workspace.view_mut(),
                })
                .unwrap();
        });
        Forward {
            loss: loss.read(),
            image_statistics: image_statistics.read(),
            text_statistics: text_statistics.read(),
            winner: winner.read_bytes(),
            recalled: recalled.read_indices(),
            negative_texts: negative_texts.read_indices(),
            negative_images: negative_images.read_indices(),
        }
    }

    /// dqueries, dtexts and dtemperature, which is added to `added`.
    pub(super) fn backward<D: TestDevice + ContrastiveOp>(
        &self,
        gradient: ContrastiveGradient,
        weight: f64,
        added: f64,
    ) -> [Matrix; 3] {
        let (images, texts) = (self.images(), self.texts.rows);
        let mut image_statistics = Tensor::<D, D::Stat>::output(2, images);
        let mut text_statistics = Tensor::<D, D::Stat>::output(2, texts);
        let mut winner = Tensor::<D, u8>::bytes(images, texts);
        let mut loss = Tensor::<D, D::Stat>::output(1, 1);
        let indices = |n| Tensor::<D, u32>::indices(1, n, &vec![0; n]);
        let (mut recalled, mut negative_texts, mut negative_images) =
            (indices(2), indices(images), indices(texts));
        let mut workspace = self.workspace::<D>();
        let mut dqueries = Tensor::<D>::output(self.queries.rows, self.queries.cols);
        let mut dtexts = Tensor::<D>::output(self.texts.rows, self.texts.cols);
        let mut dtemperature = Tensor::<D, D::Stat>::rows(&Matrix::filled(1, 1, added));
        self.with_batch::<D, _>(|batch| {
            D::get()
                .contrastive_forward(ContrastiveForward {
                    batch,
                    negatives: Negatives::Hardest,
                    image_statistics: image_statistics.view_mut(),
                    text_statistics: text_statistics.view_mut(),
                    winner: winner.view_mut(),
                    loss: loss.view_mut(),
                    recalled: recalled.view_mut(),
                    negative_texts: negative_texts.view_mut(),
                    negative_images: negative_images.view_mut(),
                    workspace: workspace.view_mut(),
                })
                .unwrap();
            D::get()
                .contrastive_backward(ContrastiveBackward {
                    batch,
                    gradient,
                    weight,
                    image_statistics: image_statistics.view(),
                    text_statistics: text_statistics.view(),
                    winner: winner.view(),
                    dqueries: dqueries.view_mut(),
                    dtexts: dtexts.view_mut(),
                    dtemperature: dtemperature.view_mut(),
                    workspace: workspace.view_mut(),
                })
                .unwrap();
        });
        [dqueries.read(), dtexts.read(), dtemperature.read()]
    }

    /// The definition; `round` is applied to the similarities.
    pub(super) fn plain(&self, round: impl Fn(f64) -> f64) -> Plain {
        let (images, texts, count) = (self.images(), self.texts.rows, self.count());
        let mut winner = Vec::new();
        let similarity = Matrix::from_fn(images, texts, |i, t| {
            let score = |q: usize| -> f64 {
                self.queries.row(i * count + q).iter().zip(self.texts.row(t)).map(|(q, t)| q * t).sum()
            };
            let mut best = 0;
            for q in 1..count {
                if score(q) > score(best) {
                    best = q;
                }
            }
            winner.push(best as u8);
            round(score(best))
        });
        let logit = |i: usize, t: usize| similarity.at(i, t) / self.temperature;
        let positive = |i: usize, t: usize| f64::from(self.image_ids[i] == self.text_ids[t]);
        let log_sum_exp = |n: usize, logit: &dyn Fn(usize) -> f64| {
            let largest = (0..n).map(logit).fold(f64::NEG_INFINITY, f64::max);
            largest + (0..n).map(|j| (logit(j) - largest).exp()).sum::<f64>().ln()
        };
        let rows = Matrix::from_fn(1, images, |_, i| log_sum_exp(texts, &|t| logit(i, t)));
        let columns = Matrix::from_fn(1, texts, |_, t| log_sum_exp(images, &|i| logit(i, t)));
        let of_row = |i: usize| (0..texts).map(|t| positive(i, t)).sum::<f64>();
        let of_column = |t: usize| (0..images).map(|i| positive(i, t)).sum::<f64>();
        // A line's soft targets; none if nothing is positive.
        let target = |positive: f64, positives: f64, n: usize| {
            let smoothed = (1.0 - self.smoothing) * positive / positives + self.smoothing / n as f64;
            if positives == 0.0 { 0.0 } else { smoothed }
        };
        let mut directions = [0.0; 2];
        let mut dlogits = [Matrix::filled(images, texts, 0.0), Matrix::filled(images, texts, 0.0)];
        for i in 0..images {
            for t in 0..texts {
                let lines = [(rows.at(0, i), of_row(i), texts), (columns.at(0, t), of_column(t), images)];
                for (d, (log_sum_exp, positives, n)) in lines.into_iter().enumerate() {
                    let lines_of_direction = [images, texts][d] as f64;
                    let target = target(positive(i, t), positives, n);
                    let log_softmax = logit(i, t) - log_sum_exp;
                    directions[d] -= target * log_softmax / lines_of_direction;
                    let difference = if positives == 0.0 { 0.0 } else { log_softmax.exp() - target };
                    dlogits[d].set(i, t, difference / lines_of_direction);
                }
            }
        }
        Plain { similarity, winner, log_sum_exp: [rows, columns], directions, dlogits }
    }

    /// dqueries, dtexts and dtemperature by the chain rule; `round` is applied to what a plain
    /// implementation stores: similarities, their gradients, and results of the features' kind.
    pub(super) fn plain_gradient(
        &self,
        gradient: ContrastiveGradient,
        weight: f64,
        round: impl Fn(f64) -> f64 + Copy,
    ) -> [Matrix; 3] {
        let plain = self.plain(round);
        let (images, texts, count) = (self.images(), self.texts.rows, self.count());
        let mut dqueries = Matrix::filled(self.queries.rows, self.queries.cols, 0.0);
        let mut dtexts = Matrix::filled(texts, self.texts.cols, 0.0);
        let mut dtemperature = 0.0;
        for i in 0..images {
            for t in 0..texts {
                let [row, column] = [0, 1].map(|d| 0.5 * weight * plain.dlogits[d].at(i, t));
                dtemperature -= round(row + column) * plain.similarity.at(i, t) / self.temperature.powi(2);
                let [of_query, of_text] = match gradient {
                    ContrastiveGradient::OneSided => [row, column],
                    ContrastiveGradient::Full => [row + column; 2],
                }
                .map(|d| round(d / self.temperature));
                let q = i * count + usize::from(plain.winner[i * texts + t]);
                for e in 0..self.queries.cols {
                    dqueries.set(q, e, dqueries.at(q, e) + of_query * self.texts.at(t, e));
                    dtexts.set(t, e, dtexts.at(t, e) + of_text * self.queries.at(q, e));
                }
            }
        }
        let rounded = |m: Matrix| Matrix::from_fn(m.rows, m.cols, |r, c| round(m.at(r, c)));
        [rounded(dqueries), rounded(dtexts), Matrix::filled(1, 1, dtemperature)]
    }
}
