//! Beam search for one prompt.

use super::scores::{best, log_softmax};
use super::{Decoding, EarlyStopping, Hypothesis, Search, Step, Strategy, Task};
use crate::error::Result;

/// A sequence that is followed.
#[derive(Clone, Debug)]
struct Beam {
    /// The prompt's tokens, then the new ones.
    tokens: Vec<u32>,
    /// Sum of the new tokens' log-probabilities.
    score: f64,
    /// Which sequence of the model's last call it continues.
    parent: usize,
}

/// A search that goes on.
pub(super) struct BeamSearch {
    prompt: usize,
    /// Tokens of the prompt.
    read: usize,
    /// The best first.
    running: Vec<Beam>,
    /// The best of those that have ended, the best first; at most as many as beams.
    finished: Vec<Hypothesis>,
}

impl BeamSearch {
    pub(super) fn new(prompt: usize, tokens: Vec<u32>) -> Self {
        let read = tokens.len();
        let running = vec![Beam { tokens, score: 0.0, parent: prompt }];
        Self { prompt, read, running, finished: Vec::new() }
    }

    /// Whether a running sequence could still come to be among those that have ended, `generated` tokens having been
    /// generated.
    fn goes_on(&self, decoding: &Decoding, generated: usize) -> bool {
        let (beams, length_penalty, early_stopping) = settings(decoding);
        let Some(best) = self.running.first() else { return false };
        let Some(worst) = self.finished.get(beams - 1) else { return true };
        let length = match early_stopping {
            EarlyStopping::AtOnce => return false,
            // The longest divides a sum below 0 by most.
            EarlyStopping::Never if length_penalty > 0.0 => decoding.max_new_tokens,
            EarlyStopping::Heuristic | EarlyStopping::Never => generated,
        };
        best.score / (length as f64).powf(length_penalty) > worst.score
    }

    /// The best of what has ended, or, where the search was broken off before anything had, of what goes on.
    pub(super) fn best(mut self, decoding: &Decoding) -> Vec<Hypothesis> {
        if self.finished.is_empty() {
            let (_, length_penalty, _) = settings(decoding);
            let open = self.running.into_iter().map(|mut beam| {
                let tokens = beam.tokens.split_off(self.read);
                Hypothesis { score: beam.score / (tokens.len() as f64).powf(length_penalty), tokens }
            });
            self.finished = open.collect();
        }
        self.finished.truncate(decoding.sequences);
        self.finished
    }
}

fn settings(decoding: &Decoding) -> (usize, f64, EarlyStopping) {
    match decoding.search {
        Search::Beam { beams, length_penalty, early_stopping } => (beams, length_penalty, early_stopping),
        Search::Sample { .. } => unreachable!("a beam search is asked for"),
    }
}

impl Strategy for BeamSearch {
    fn prompt(&self) -> usize {
        self.prompt
    }

    fn heads(&self) -> impl Iterator<Item = (usize, u32)> {
        self.running.iter().map(|beam| (beam.parent, *beam.tokens.last().expect("a new token")))
    }

    fn step(&mut self, task: Task<'_>, logits: &[f32], first: usize) -> Result<()> {
        let Task { decoding, stops } = task;
        let (beams, length_penalty, _) = settings(decoding);
        // So many that enough run on if every beam could end in every way.
        let keep = (stops.len() + 1).max(2) * beams;
        let vocabulary = logits.len() / self.running.len();
        let mut candidates = Vec::new();
        for (place, (beam, logits)) in self.running.iter().zip(logits.chunks(vocabulary)).enumerate() {
            let mut scores = log_softmax(logits)?;
            task.process(&beam.tokens, self.read, &mut scores);
            let of_beam = best(&scores, keep).into_iter();
            candidates.extend(of_beam.map(|(token, score)| (beam.score + score, place, token as u32)));
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        candidates.truncate(keep);

        let generated = self.running[0].tokens.len() + 1 - self.read;
        let mut running = Vec::with_capacity(beams);
        for (rank, (score, place, token)) in candidates.into_iter().enumerate() {
            let continued = || [&self.running[place].tokens[..], &[token]].concat();
            if !stops.contains(&token) && generated < decoding.max_new_tokens {
                if running.len() < beams {
                    running.push(Beam { tokens: continued(), score, parent: first + place });
                }
            } else if rank < beams {
                // What ended but is not among the best is only a place that another could not take.
                let score = score / (generated as f64).powf(length_penalty);
                let at = self.finished.partition_point(|other| other.score >= score);
                self.finished.insert(at, Hypothesis { tokens: continued().split_off(self.read), score });
                self.finished.truncate(beams);
            }
        }
        self.running = running;
        if !self.goes_on(decoding, generated) {
            self.running.clear();
        }
        Ok(())
    }

    fn told(&self) -> Step {
        Step::Searched
    }
}
