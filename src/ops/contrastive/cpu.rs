//! An image a task, then a text a task. Similarities are computed again from their winners wherever
//! they are needed: that is one of Q products of the first time.

use super::{ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, ContrastiveOp};
use super::{NO_NEGATIVE, Negatives, Sizes, noise};
use crate::device::{Cpu, Factor, Real, Write, maximum, product, sum};
use crate::error::Result;
use crate::tensor::{View, ViewMut};
use rayon::prelude::*;

/// The pairs of a batch whose winners are known.
struct Pairs<'a, E: Real> {
    batch: ContrastiveBatch<'a, Cpu<E>>,
    sizes: Sizes,
    winner: View<'a, Cpu<E>, u8>,
}

/// What is known of the logits of an image, or of a text.
struct Line<E> {
    log_sum_exp: E,
    positives: usize,
    cross_entropy: E,
    recalled: bool,
    negative: u32,
}

impl<'a, E: Real> Pairs<'a, E> {
    /// The winning query.
    fn query(&self, image: usize, text: usize) -> &'a [E] {
        let winner = usize::from(self.winner.row(image)[text]);
        assert!(winner < self.sizes.queries, "winner {winner} of {} queries", self.sizes.queries);
        self.batch.queries.row(image * self.sizes.queries + winner)
    }

    fn logit(&self, image: usize, text: usize) -> E {
        let (query, feature) = (self.query(image, text), self.batch.texts.row(text));
        sum([query, feature], |[q, f]| q * f) / self.temperature()
    }

    fn temperature(&self) -> E {
        self.batch.temperature.row(0)[0]
    }

    fn is_positive(&self, image: usize, text: usize) -> bool {
        self.batch.image_ids.row(0)[image] == self.batch.text_ids.row(0)[text]
    }

    /// What a positive's target is above the others', and the target of all, in a line of `n` logits.
    fn targets(&self, n: usize, positives: usize) -> [E; 2] {
        let smoothing = self.batch.smoothing;
        [E::of((1.0 - smoothing) / positives as f64), E::of(smoothing / n as f64)]
    }

    /// A line of `n` logits, of pairs `pair(0)`, `pair(1)`, ...
    fn line(
        &self,
        n: usize,
        pair: impl Fn(usize) -> (usize, usize),
        noise: impl Fn((usize, usize)) -> f64,
    ) -> Line<E> {
        let logits: Vec<E> = (0..n).map(pair_of(&pair, |i, t| self.logit(i, t))).collect();
        let positive: Vec<bool> = (0..n).map(pair_of(&pair, |i, t| self.is_positive(i, t))).collect();
        let positives = positive.iter().filter(|&&p| p).count();
        let largest = maximum(&logits);
        let log_sum_exp = largest + sum([&logits], |[x]| (x - largest).exp()).ln();
        let [of_positive, of_all] = self.targets(n, positives);
        let target = |&positive: &bool| if positive { of_positive + of_all } else { of_all };
        let targets: Vec<E> = positive.iter().map(target).collect();
        let expected = sum([&logits, &targets], |[x, target]| x * target);
        let cross_entropy = if positives > 0 { log_sum_exp - expected } else { E::ZERO };
        let first = logits.iter().position(|&x| x == largest);
        let mut negative = NO_NEGATIVE;
        let mut best = 0.0;
        for j in (0..n).filter(|&j| !positive[j]) {
            let score = logits[j].to_f64() + noise(pair(j));
            if negative == NO_NEGATIVE || score > best {
                (negative, best) = (j as u32, score);
            }
        }
        let recalled = first.is_some_and(|j| positive[j]);
        Line { log_sum_exp, positives, cross_entropy, recalled, negative }
    }

    /// Gradients of the sum of an image's and of a text's cross-entropy by a logit.
    fn dlogit(&self, image: usize, text: usize, logit: E, statistics: [View<'_, Cpu<E>, E>; 2]) -> [E; 2] {
        let Sizes { images, texts, .. } = self.sizes;
        let is_positive = self.is_positive(image, text);
        let of_line = |n, statistics: View<'_, Cpu<E>, E>, line: usize| {
            let (log_sum_exp, positives) = (statistics.row(0)[line], statistics.row(1)[line].to_f64());
            if positives == 0.0 {
                return E::ZERO;
            }
            let [of_positive, of_all] = self.targets(n, positives as usize);
            let target = if is_positive { of_positive + of_all } else { of_all };
            (logit - log_sum_exp).exp() - target
        };
        [of_line(texts, statistics[0], image), of_line(images, statistics[1], text)]
    }
}

/// `value` of the pair of an index.
fn pair_of<R>(
    pair: impl Fn(usize) -> (usize, usize),
    value: impl Fn(usize, usize) -> R,
) -> impl Fn(usize) -> R {
    move |j| {
        let (image, text) = pair(j);
        value(image, text)
    }
}

/// Finds the winners.
fn match_queries<E: Real>(
    batch: ContrastiveBatch<'_, Cpu<E>>,
    sizes: Sizes,
    winner: ViewMut<'_, Cpu<E>, u8>,
) {
    let Sizes { images, texts, queries } = sizes;
    let winner = winner.into_rows();
    (0..images).into_par_iter().for_each_init(Vec::new, |scores: &mut Vec<E>, image| {
        scores.resize(queries * texts, E::ZERO);
        let a = Factor::of(batch.queries, image * queries, 0);
        let b = Factor::of(batch.texts, 0, 0).transposed();
        let shape = [queries, texts, batch.texts.cols()];
        // SAFETY: `scores` is this task's own and holds the whole product.
        unsafe { product(shape, a, b, Write::Replace, (scores.as_mut_ptr(), texts, 1)) };
        // SAFETY: one task a row.
        let winner = unsafe { winner.row(image) };
        winner.fill(0);
        for q in 1..queries {
            for t in 0..texts {
                let (score, best) = (scores[q * texts + t], scores[usize::from(winner[t]) * texts + t]);
                // A NaN must not be passed over, and none is larger than one.
                if score > best || score.is_nan() {
                    winner[t] = q as u8;
                }
            }
        }
    });
}

/// Writes what is known of the lines; the mean cross-entropy, and how many were recalled.
fn write_lines<E: Real>(
    lines: &[Line<E>],
    mut statistics: ViewMut<'_, Cpu<E>, E>,
    mut negatives: ViewMut<'_, Cpu<E>, u32>,
) -> (E, u32) {
    for (i, line) in lines.iter().enumerate() {
        statistics.row_mut(0)[i] = line.log_sum_exp;
        statistics.row_mut(1)[i] = E::of(line.positives as f64);
        negatives.row_mut(0)[i] = line.negative;
    }
    let losses: Vec<E> = lines.iter().map(|line| line.cross_entropy).collect();
    let mean = sum([&losses], |[loss]| loss) / E::of(lines.len() as f64);
    (mean, lines.iter().filter(|line| line.recalled).count() as u32)
}

impl<E: Real> ContrastiveOp for Cpu<E> {
    fn contrastive_forward(&self, args: ContrastiveForward<'_, Self>) -> Result<()> {
        let sizes = args.check();
        let Sizes { images, texts, .. } = sizes;
        let ContrastiveForward { batch, negatives, image_statistics, text_statistics, mut winner, .. } = args;
        let (mut loss, mut recalled) = (args.loss, args.recalled);
        match_queries(batch, sizes, winner.reborrow());
        let pairs = Pairs { batch, sizes, winner: winner.view() };
        let noise = |direction: usize| {
            let negatives = &negatives;
            move |(image, text)| match negatives {
                Negatives::Sampled { key, site } => {
                    noise(image, text, *site, [key.row(0)[0], key.row(0)[1]])[direction]
                }
                Negatives::Hardest => 0.0,
            }
        };
        let rows: Vec<Line<E>> =
            (0..images).into_par_iter().map(|i| pairs.line(texts, |t| (i, t), noise(0))).collect();
        let columns: Vec<Line<E>> =
            (0..texts).into_par_iter().map(|t| pairs.line(images, |i| (i, t), noise(1))).collect();
        let (of_images, images_recalled) = write_lines(&rows, image_statistics, args.negative_texts);
        let (of_texts, texts_recalled) = write_lines(&columns, text_statistics, args.negative_images);
        loss.row_mut(0)[0] = (of_images + of_texts) * E::of(0.5);
        recalled.row_mut(0).copy_from_slice(&[images_recalled, texts_recalled]);
        Ok(())
    }

    fn contrastive_backward(&self, args: ContrastiveBackward<'_, Self>) -> Result<()> {
        let sizes = args.check();
        let Sizes { images, texts, queries } = sizes;
        let ContrastiveBackward { batch, gradient, weight, winner, dqueries, dtexts, .. } = args;
        let mut dtemperature = args.dtemperature;
        let statistics = [args.image_statistics, args.text_statistics];
        let pairs = Pairs { batch, sizes, winner };
        let temperature = pairs.temperature();
        // Of a line's cross-entropy in the whole.
        let weights = [images, texts].map(|n| E::of(0.5 * weight / n as f64));
        // A logit, and the gradients of the two directions by it.
        let dlogit = |image, text| {
            let logit = pairs.logit(image, text);
            let [row, column] = pairs.dlogit(image, text, logit, statistics);
            (logit, row * weights[0], column * weights[1])
        };
        let (dqueries, dtexts) = (dqueries.into_rows(), dtexts.into_rows());
        (0..images).into_par_iter().for_each(|image| {
            for q in 0..queries {
                // SAFETY: an image's query rows belong to its task alone.
                unsafe { dqueries.row(image * queries + q) }.fill(E::ZERO);
            }
            for text in 0..texts {
                let (_, row, column) = dlogit(image, text);
                let dlogit = if gradient == ContrastiveGradient::Full { row + column } else { row };
                let d = dlogit / temperature;
                let q = usize::from(winner.row(image)[text]);
                // SAFETY: as above.
                let dquery = unsafe { dqueries.row(image * queries + q) };
                dquery.iter_mut().zip(batch.texts.row(text)).for_each(|(dq, &x)| *dq += d * x);
            }
        });
        // Σ gradient·logit of each text's pairs.
        let products: Vec<E> = (0..texts)
            .into_par_iter()
            .map(|text| {
                // SAFETY: one task a row.
                let dtext = unsafe { dtexts.row(text) };
                dtext.fill(E::ZERO);
                let mut total = E::ZERO;
                for image in 0..images {
                    let (logit, row, column) = dlogit(image, text);
                    total += (row + column) * logit;
                    let dlogit = if gradient == ContrastiveGradient::Full { row + column } else { column };
                    let d = dlogit / temperature;
                    let query = pairs.query(image, text);
                    dtext.iter_mut().zip(query).for_each(|(dt, &x)| *dt += d * x);
                }
                total
            })
            .collect();
        // A logit is s/temperature, whose derivative is −logit/temperature.
        dtemperature.row_mut(0)[0] += -sum([&products], |[product]| product) / temperature;
        Ok(())
    }
}
