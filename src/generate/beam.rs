//! Beam search for one prompt.

use super::scores::{best, log_softmax};
use super::{Decoding, Hypothesis, Strategy};
use crate::error::Result;

/// A sequence that is followed.
#[derive(Clone, Debug)]
struct Beam {
    /// With the start token.
    tokens: Vec<u32>,
    /// Sum of log-probabilities.
    score: f64,
    /// Which sequence of the model's last call it continues.
    parent: usize,
}

/// A search that goes on.
pub(super) struct BeamSearch {
    beams: usize,
    length_penalty: f64,
    /// The best first.
    running: Vec<Beam>,
    /// The best of those that have ended, the best first; at most as many as beams.
    finished: Vec<Hypothesis>,
}

impl BeamSearch {
    pub(super) fn new(prompt: usize, start: u32, beams: usize, length_penalty: f64) -> Self {
        let running = vec![Beam { tokens: vec![start], score: 0.0, parent: prompt }];
        Self { beams, length_penalty, running, finished: Vec::new() }
    }

    /// Goes on by one token, by the logits [running, V]; the first of the running sequences is the model's
    /// sequence `first`.
    pub(super) fn step(&mut self, decoding: &Decoding, end: u32, logits: &[f32], first: usize) -> Result<()> {
        // Twice as many as beams, so that enough run on if every beam could end.
        let keep = 2 * self.beams;
        let vocabulary = logits.len() / self.running.len();
        let mut candidates = Vec::new();
        for (place, (beam, logits)) in self.running.iter().zip(logits.chunks(vocabulary)).enumerate() {
            let mut scores = log_softmax(logits)?;
            decoding.penalise(&beam.tokens, end, &mut scores);
            let of_beam = best(&scores, keep).into_iter();
            candidates.extend(of_beam.map(|(token, score)| (beam.score + score, place, token as u32)));
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(keep);

        let length = self.running[0].tokens.len() + 1;
        let generated = length - 1;
        let mut running = Vec::with_capacity(self.beams);
        for (rank, (score, place, token)) in candidates.into_iter().enumerate() {
            let continued = || {
                let mut tokens = self.running[place].tokens.clone();
                tokens.push(token);
                tokens
            };
            if token != end && length < decoding.max_length {
                if running.len() < self.beams {
                    running.push(Beam { tokens: continued(), score, parent: first + place });
                }
            } else if rank < self.beams {
                // What ended but is not among the best is only a place that another could not take.
                let score = score / (generated as f64).powf(self.length_penalty);
                let at = self.finished.partition_point(|other| other.score >= score);
                self.finished.insert(at, Hypothesis { tokens: continued().split_off(1), score });
                self.finished.truncate(self.beams);
            }
        }
        self.running = running;
        if !self.can_improve(generated) {
            self.running.clear();
        }
        Ok(())
    }

    /// Whether a running sequence could end better than the worst that has ended, if it ended after
    /// `generated` tokens.
    fn can_improve(&self, generated: usize) -> bool {
        let Some(best) = self.running.first() else { return false };
        let Some(worst) = self.finished.get(self.beams - 1) else { return true };
        best.score / (generated as f64).powf(self.length_penalty) > worst.score
    }

    pub(super) fn best(mut self, count: usize) -> Vec<Hypothesis> {
        self.finished.truncate(count);
        self.finished
    }
}

impl Strategy for BeamSearch {
    fn heads(&self) -> impl Iterator<Item = (usize, u32)> {
        self.running.iter().map(|beam| (beam.parent, *beam.tokens.last().expect("the start token")))
    }
}
