//! One sequence, token by token: the likeliest each time, or one that is drawn.

use super::scores::{best, log_softmax, nucleus};
use super::{Decoding, Hypothesis, Search, Strategy};
use crate::error::Result;
use crate::random::philox;

/// A sequence that is made.
pub(super) struct SampledSequence {
    prompt: usize,
    /// Which of the prompt's sequences it is.
    draw: usize,
    /// With the start token.
    tokens: Vec<u32>,
    /// Sum of the tokens' log-probabilities.
    score: f64,
    /// Which sequence of the model's last call it continues; none when it has come to its end.
    parent: Option<usize>,
}

impl SampledSequence {
    pub(super) fn new(prompt: usize, draw: usize, start: u32) -> Self {
        Self { prompt, draw, tokens: vec![start], score: 0.0, parent: Some(prompt) }
    }

    /// Goes on by one token, by the logits [V] of the model's sequence `row`.
    pub(super) fn step(&mut self, decoding: &Decoding, end: u32, logits: &[f32], row: usize) -> Result<()> {
        let log_probabilities = log_softmax(logits)?;
        let mut scores: Vec<f64> = logits.iter().map(|&logit| logit.into()).collect();
        decoding.penalise(&self.tokens, end, &mut scores);
        let token = match decoding.search {
            // At the minimal length a vocabulary of the end token alone would have nothing left.
            Search::Beam { .. } => best(&scores, 1).first().map_or(end as usize, |&(token, _)| token),
            Search::Nucleus { top_p, temperature, seed, first } => {
                scores.iter_mut().for_each(|score| *score /= temperature);
                let prompt = first + self.prompt as u64;
                let place =
                    [prompt as u32, (prompt >> 32) as u32, self.tokens.len() as u32, self.draw as u32];
                draw(&nucleus(&scores, top_p), uniform(seed, place))
            }
        };
        self.score += log_probabilities[token];
        self.tokens.push(token as u32);
        let ended = token == end as usize || self.tokens.len() == decoding.max_length;
        self.parent = (!ended).then_some(row);
        Ok(())
    }

    pub(super) fn hypothesis(mut self, decoding: &Decoding) -> Hypothesis {
        let tokens = self.tokens.split_off(1);
        let penalty = match decoding.search {
            Search::Beam { length_penalty, .. } => length_penalty,
            Search::Nucleus { .. } => 1.0,
        };
        Hypothesis { score: self.score / (tokens.len() as f64).powf(penalty), tokens }
    }
}

impl Strategy for SampledSequence {
    fn heads(&self) -> impl Iterator<Item = (usize, u32)> {
        let last = *self.tokens.last().expect("the start token");
        self.parent.into_iter().map(move |parent| (parent, last))
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
    drawn.or(tokens.last()).expect("the nucleus has a token").0
}
