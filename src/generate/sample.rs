//! One sequence, token by token: the likeliest each time, or one that is drawn.

use super::scores::{best, likeliest, log_softmax};
use super::{Decoding, Hypothesis, Search, Step, Strategy, Task};
use crate::error::Result;
use crate::random::philox;

/// A sequence that is made.
pub(super) struct SampledSequence {
    /// The prompt, and which of its sequences it is.
    place: [usize; 2],
    /// Tokens of the prompt.
    read: usize,
    /// The prompt's tokens, then the new ones.
    tokens: Vec<u32>,
    /// Sum of the new tokens' log-probabilities.
    score: f64,
    /// Which sequence of the model's last call it continues; none when it has come to its end.
    parent: Option<usize>,
}

impl SampledSequence {
    pub(super) fn new(place: [usize; 2], tokens: Vec<u32>) -> Self {
        Self { place, read: tokens.len(), tokens, score: 0.0, parent: Some(place[0]) }
    }

    pub(super) fn hypothesis(mut self, decoding: &Decoding) -> Hypothesis {
        let tokens = self.tokens.split_off(self.read);
        let penalty = match decoding.search {
            Search::Beam { length_penalty, .. } => length_penalty,
            Search::Sample { .. } => 1.0,
        };
        Hypothesis { score: self.score / (tokens.len() as f64).powf(penalty), tokens }
    }
}

impl Strategy for SampledSequence {
    fn prompt(&self) -> usize {
        self.place[0]
    }

    fn heads(&self) -> impl Iterator<Item = (usize, u32)> {
        self.parent.into_iter().map(|parent| (parent, *self.tokens.last().expect("a new token")))
    }

    fn step(&mut self, task: Task<'_>, logits: &[f32], first: usize) -> Result<()> {
        let Task { decoding, stops } = task;
        let log_probabilities = log_softmax(logits)?;
        let mut scores: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
        task.process(&self.tokens, self.read, &mut scores);
        let generated = self.tokens.len() - self.read;
        let token = match decoding.search {
            // Where nothing is allowed, as in a vocabulary of stop tokens alone, the first stop token is.
            Search::Beam { .. } => best(&scores, 1).first().map_or(stops[0] as usize, |&(token, _)| token),
            Search::Sample { top_k, top_p, temperature, seed, first } => {
                scores.iter_mut().for_each(|score| *score /= temperature);
                let prompt = first + self.place[0] as u64;
                let place =
                    [prompt as u32, (prompt >> 32) as u32, generated as u32 + 1, self.place[1] as u32];
                draw(&likeliest(&scores, top_k, top_p), uniform(seed, place))
            }
        };
        self.score += log_probabilities[token];
        self.tokens.push(token as u32);
        let ended = stops.contains(&(token as u32)) || generated + 1 == decoding.max_new_tokens;
        self.parent = (!ended).then_some(first);
        Ok(())
    }

    fn told(&self) -> Step {
        let [prompt, sequence] = self.place;
        Step::Token { prompt, sequence, token: *self.tokens.last().expect("a new token") }
    }
}

/// A number in [0, 1) of its own for each place.
fn uniform(seed: u64, place: [u32; 4]) -> f64 {
    let [low, high, ..] = philox(place, [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The token in whose share of [0, 1) `at` lies.
fn draw(tokens: &[(usize, f64)], at: f64) -> usize {
    let mut behind = 0.0;
    let drawn = tokens.iter().find(|(_, probability)| {
        behind += probability;
        at < behind
    });
    // The shares may add up to a little less than 1.
    drawn.or(tokens.last()).expect("a token may follow").0
}
