//! Scores of the tokens that may follow.

use super::Task;
use crate::error::{Error, Result};
use std::cmp::Ordering;
use std::collections::HashSet;

/// ln Σ exp of logits [V].
///
/// # Errors
/// Fails if it is not finite.
pub(crate) fn log_sum_exp(logits: &[f32]) -> Result<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let lse = largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln();
    if !lse.is_finite() {
        return Err(Error::value(
            "the model's logits are infinite or not a number; its weights or the image's features are",
        ));
    }
    Ok(lse)
}

/// Log-probabilities [V] of logits [V].
pub(super) fn log_softmax(logits: &[f32]) -> Result<Vec<f64>> {
    let lse = log_sum_exp(logits)?;
    Ok(logits.iter().map(|&x| f64::from(x) - lse).collect())
}

impl Task<'_> {
    /// Changes `scores` [V] of what follows `tokens`, the first `read` of which are the prompt's: the repetition penalty,
    /// then what may not come again, then stop tokens that would come too early.
    pub(super) fn process(self, tokens: &[u32], read: usize, scores: &mut [f64]) {
        let decoding = self.decoding;
        if decoding.repetition_penalty != 1.0 {
            for token in tokens.iter().collect::<HashSet<_>>() {
                let score = &mut scores[*token as usize];
                *score = if *score < 0.0 {
                    *score * decoding.repetition_penalty
                } else {
                    *score / decoding.repetition_penalty
                };
            }
        }
        let size = decoding.no_repeat_ngram_size;
        if size > 0 && tokens.len() + 1 >= size {
            let last = &tokens[tokens.len() + 1 - size..];
            for ngram in tokens.windows(size).filter(|ngram| &ngram[..size - 1] == last) {
                scores[ngram[size - 1] as usize] = f64::NEG_INFINITY;
            }
        }
        if tokens.len() - read < decoding.min_new_tokens {
            self.stops.iter().for_each(|&stop| scores[stop as usize] = f64::NEG_INFINITY);
        }
    }
}

/// The `count` tokens of the largest scores, the largest first, the first of equals first; none whose
/// score is infinite.
pub(super) fn best(scores: &[f64], count: usize) -> Vec<(usize, f64)> {
    let mut best: Vec<(usize, f64)> = Vec::with_capacity(count + 1);
    for (token, &score) in scores.iter().enumerate().filter(|(_, score)| score.is_finite()) {
        if best.len() < count || best[count - 1].1 < score {
            let place = best.partition_point(|&(_, other)| other >= score);
            best.insert(place, (token, score));
            best.truncate(count);
        }
    }
    best
}

/// The likeliest tokens by `scores` [V], the likeliest first, with their probabilities among one another: at most `top_k`
/// unless that is 0, and of those the fewest that have `top_p` of their probability together.
pub(super) fn likeliest(scores: &[f64], top_k: usize, top_p: f64) -> Vec<(usize, f64)> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut tokens: Vec<(usize, f64)> =
        scores.iter().map(|score| (score - largest).exp()).enumerate().filter(|&(_, p)| p > 0.0).collect();
    tokens.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
    if top_k > 0 {
        // As in transformers, those that are as likely as the last one stay.
        let last = tokens[top_k.min(tokens.len()) - 1].1;
        tokens.retain(|&(_, p)| p >= last);
    }
    let total: f64 = tokens.iter().map(|(_, p)| p).sum();
    let (mut kept, mut before) = (0, 0.0);
    // A token stays as long as those before it have less than top_p.
    while kept < tokens.len() && (kept == 0 || before < top_p * total) {
        before += tokens[kept].1;
        kept += 1;
    }
    tokens.truncate(kept);
    tokens.iter_mut().for_each(|(_, p)| *p /= before);
    tokens
}

#[cfg(test)]
mod tests {
    use super::{likeliest, log_softmax};
    use serde_json::Value;

    fn numbers(row: &Value) -> Vec<f64> {
        row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    #[test]
    fn a_nucleus_is_what_transformers_keeps() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/decoding/expected.json");
        let expected: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let mut compared = 0;
        for model in expected["models"].as_array().unwrap() {
            let rows: Vec<Vec<f64>> = model["last"].as_array().unwrap().iter().map(numbers).collect();
            for case in model["nuclei"].as_array().unwrap() {
                let top_p = case["top_p"].as_f64().unwrap();
                for (scores, expected) in rows.iter().zip(case["probabilities"].as_array().unwrap()) {
                    let mut found = vec![0.0; scores.len()];
                    likeliest(scores, 0, top_p).into_iter().for_each(|(token, p)| found[token] = p);
                    for (found, expected) in found.iter().zip(numbers(expected)) {
                        // transformers computes in single precision.
                        assert!((found - expected).abs() < 1e-6, "top-p {top_p}: {found} {expected}");
                        assert_eq!(*found == 0.0, expected == 0.0);
                        compared += 1;
                    }
                }
            }
        }
        assert_eq!(compared, 3 * 4 * 12 * 12);
    }

    #[test]
    fn probabilities_add_up_to_one_and_are_refused_where_logits_are_not_finite() {
        let found = log_softmax(&[1000.0, 0.5, 1001.0]).unwrap();
        assert!((found.iter().map(|x| x.exp()).sum::<f64>() - 1.0).abs() < 1e-12, "{found:?}");
        for bad in [f32::NAN, f32::INFINITY] {
            assert!(log_softmax(&[0.0, bad]).unwrap_err().to_string().contains("not a number"));
        }
    }
}
