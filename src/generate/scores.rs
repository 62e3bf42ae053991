//! Scores of the tokens that may follow.

use super::Decoding;
use crate::error::{Error, Result};
use std::cmp::Ordering;

/// Log-probabilities [V] of logits [V].
pub(super) fn log_softmax(logits: &[f32]) -> Result<Vec<f64>> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let lse = largest + logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum::<f64>().ln();
    if !lse.is_finite() {
        return Err(Error::value(
            "the model's logits are infinite or not a number; its weights or the image's features are",
        ));
    }
    Ok(logits.iter().map(|&x| f64::from(x) - lse).collect())
}

impl Decoding {
    /// Applies the repetition penalty and the minimal length to `scores` [V] of what follows `tokens`.
    pub(super) fn penalise(&self, tokens: &[u32], end: u32, scores: &mut [f64]) {
        for (place, &token) in tokens.iter().enumerate() {
            if !tokens[..place].contains(&token) {
                let score = &mut scores[token as usize];
                *score = if *score < 0.0 {
                    *score * self.repetition_penalty
                } else {
                    *score / self.repetition_penalty
                };
            }
        }
        if tokens.len() < self.min_length {
            scores[end as usize] = f64::NEG_INFINITY;
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

/// The fewest tokens that have `top_p` of the probability of `scores` [V] together, the likeliest first,
/// with their probabilities among one another.
pub(super) fn nucleus(scores: &[f64], top_p: f64) -> Vec<(usize, f64)> {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut tokens: Vec<(usize, f64)> =
        scores.iter().map(|score| (score - largest).exp()).enumerate().filter(|&(_, p)| p > 0.0).collect();
    tokens.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(Ordering::Equal));
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
    use super::{log_softmax, nucleus};
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
                    nucleus(scores, top_p).into_iter().for_each(|(token, p)| found[token] = p);
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
