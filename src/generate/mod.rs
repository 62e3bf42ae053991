//! Decoding: whole sequences from a model that tells which token may follow, as transformers'
//! `generate` makes them.
//!
//! The model is anything that implements [`NextToken`]. Sequences begin with a start token, which counts
//! in all lengths, and end with an end token or at the maximal length.

mod beam;
mod generation;
mod sample;
mod scores;

use crate::error::{Error, Result};
use beam::BeamSearch;
use rayon::prelude::*;
use sample::SampledSequence;

/// A model that tells which token may follow the sequences it has read so far.
pub trait NextToken {
    /// Makes sequence i of this call from sequence `parents[i]` of the last one with `tokens[i]` behind
    /// it, and gives the logits of the token that follows each: [sequences, V], row by row. In the first
    /// call the parents are the prompts.
    ///
    /// # Errors
    /// Fails as the model does.
    fn advance(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>>;
}

/// How sequences are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Search {
    /// Beam search: the sequences of the largest log-probability, divided by the number of generated
    /// tokens to the power of `length_penalty`, among those that start as one of the `beams` best do. One
    /// beam is greedy search. A search ends as with transformers' `early_stopping=False`.
    Beam {
        /// Sequences followed at a time.
        beams: usize,
        /// 0: long sequences are not favoured; above 0: they are, the more the larger it is.
        length_penalty: f64,
    },
    /// Nucleus sampling: every token is drawn from the fewest that have `top_p` of the probability together.
    /// (transformers cuts after the 50 likeliest tokens as well, unless its `top_k` is 0; this does not.)
    Nucleus {
        /// In (0, 1]; 1: from all tokens.
        top_p: f64,
        /// Divides the logits; above 0.
        temperature: f64,
        /// Of the random numbers.
        seed: u64,
        /// Number of the first prompt, by which its random numbers are drawn: so a prompt has the same
        /// sequences in whichever batch it comes.
        first: u64,
    },
}

impl Search {
    /// Sequences that LAVIS follows at a time.
    pub const BEAMS: usize = 3;
    /// Share of the probability that LAVIS draws from.
    pub const TOP_P: f64 = 0.9;
    /// Of random numbers, where none is given.
    pub const SEED: u64 = 42;
}

/// What sequences are to be like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoding {
    /// How they are found.
    pub search: Search,
    /// Most tokens, the start token and the end token included.
    pub max_length: usize,
    /// Tokens, the start token included, before which none ends.
    pub min_length: usize,
    /// Divides the scores of tokens that are in the sequence already, or multiplies them if negative; 1
    /// for none. As in transformers, the scores are log-probabilities in a search with several beams, and
    /// logits otherwise.
    pub repetition_penalty: f64,
    /// Sequences for each prompt.
    pub sequences: usize,
}

impl Default for Decoding {
    /// As LAVIS captions with a Q-Former: 3 beams, 10 to 30 tokens.
    fn default() -> Self {
        Self {
            search: Search::Beam { beams: Search::BEAMS, length_penalty: 1.0 },
            max_length: 30,
            min_length: 10,
            repetition_penalty: 1.0,
            sequences: 1,
        }
    }
}

/// A sequence that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// Without the start token; the end token is the last one unless the maximal length was reached.
    pub tokens: Vec<u32>,
    /// The sum of the tokens' log-probabilities, divided by their number to the power of the length
    /// penalty (1 where there is none): in a search with several beams after the repetition penalty,
    /// otherwise as the model gave them.
    pub score: f64,
}

impl Decoding {
    /// # Errors
    /// Fails if a value is out of its range, naming its field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |settings: &[&'static str], what: String| Err(Error::usage(what).naming(settings));
        if self.max_length < 2 {
            return refuse(
                &["max_length"],
                format!("`max_length` {} leaves no room for a token; give 2 or more", self.max_length),
            );
        }
        if self.min_length > self.max_length {
            return refuse(
                &["min_length", "max_length"],
                format!(
                    "`min_length` {} is more than `max_length` {}; give one that is not",
                    self.min_length, self.max_length
                ),
            );
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let what = format!("`repetition_penalty` {} is not above 0", self.repetition_penalty);
            return refuse(&["repetition_penalty"], what);
        }
        if self.sequences == 0 {
            return refuse(&["sequences"], "`sequences` 0 asks for nothing; give 1 or more".into());
        }
        match self.search {
            Search::Beam { beams, length_penalty } => {
                if beams < self.sequences {
                    return refuse(
                        &["sequences", "beams"],
                        format!(
                            "`sequences` {} is more than `beams` {beams} can find; give as many beams",
                            self.sequences
                        ),
                    );
                }
                if !length_penalty.is_finite() {
                    let what = format!("`length_penalty` {length_penalty} is not a finite number");
                    return refuse(&["length_penalty"], what);
                }
            }
            Search::Nucleus { top_p, temperature, .. } => {
                if !(top_p > 0.0 && top_p <= 1.0) {
                    return refuse(&["top_p"], format!("`top_p` {top_p} is not above 0 and at most 1"));
                }
                if !(temperature.is_finite() && temperature > 0.0) {
                    return refuse(&["temperature"], format!("`temperature` {temperature} is not above 0"));
                }
            }
        }
        Ok(())
    }

    /// Sequences that a model has to follow at a time for each prompt.
    pub fn sequences_at_a_time(&self) -> usize {
        match self.search {
            Search::Beam { beams, .. } => beams,
            Search::Nucleus { .. } => self.sequences,
        }
    }

    /// The same for prompts of which `prompts` others come first.
    pub fn starting_at(mut self, prompts: u64) -> Self {
        if let Search::Nucleus { first, .. } = &mut self.search {
            *first += prompts;
        }
        self
    }

    /// The sequences for each of `prompts` prompts, the best first (nucleus sampling: in the order in which
    /// they were drawn), that begin with the token `start` and end with `end`.
    ///
    /// # Errors
    /// Fails as [`Decoding::validate`] and the model do, and if logits are not finite.
    pub fn run(
        &self,
        model: &mut impl NextToken,
        prompts: usize,
        [start, end]: [u32; 2],
    ) -> Result<Vec<Vec<Hypothesis>>> {
        self.validate()?;
        match self.search {
            Search::Beam { beams, length_penalty } if beams > 1 => {
                let search = |prompt| BeamSearch::new(prompt, start, beams, length_penalty);
                let mut searches: Vec<_> = (0..prompts).map(search).collect();
                follow(model, &mut searches, |search, logits, row| search.step(self, end, logits, row))?;
                Ok(searches.into_iter().map(|search| search.best(self.sequences)).collect())
            }
            _ => {
                let each =
                    |prompt| (0..self.sequences).map(move |draw| SampledSequence::new(prompt, draw, start));
                let mut chosen: Vec<_> = (0..prompts).flat_map(each).collect();
                follow(model, &mut chosen, |chosen, logits, row| chosen.step(self, end, logits, row))?;
                let mut found = chosen.into_iter().map(|chosen| chosen.hypothesis(self));
                Ok((0..prompts).map(|_| found.by_ref().take(self.sequences).collect()).collect())
            }
        }
    }
}

/// Something that follows a few sequences until it has what it looks for.
trait Strategy: Send {
    /// The parent and the last token of each sequence that it follows; none at the end.
    fn heads(&self) -> impl Iterator<Item = (usize, u32)>;
}

/// Advances the model until all of `strategies` have come to their end. `step` takes the logits of the
/// sequences followed [sequences, V] and the place of the first of them among all.
fn follow<S: Strategy>(
    model: &mut impl NextToken,
    strategies: &mut [S],
    step: impl Fn(&mut S, &[f32], usize) -> Result<()> + Sync,
) -> Result<()> {
    loop {
        let counts: Vec<usize> = strategies.iter().map(|f| f.heads().count()).collect();
        let (parents, tokens): (Vec<usize>, Vec<u32>) = strategies.iter().flat_map(S::heads).unzip();
        if tokens.is_empty() {
            return Ok(());
        }
        let logits = model.advance(&parents, &tokens)?;
        let vocabulary = logits.len() / tokens.len();
        let mut end = 0;
        let first = |count: &usize| {
            end += count;
            end - count
        };
        let firsts: Vec<usize> = counts.iter().map(first).collect();
        let open = strategies.par_iter_mut().zip(counts).zip(firsts).filter(|((_, count), _)| *count > 0);
        open.try_for_each(|((followed, count), first)| {
            step(followed, &logits[first * vocabulary..(first + count) * vocabulary], first)
        })?;
    }
}
