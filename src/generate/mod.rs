//! Generation: whole sequences from a model that tells which token may follow, as transformers' `generate` makes them.
//!
//! The model is anything that implements [`NextToken`]. It has read prompts; what is generated after each ends with one
//! of the stop tokens or at the largest number of new tokens.

mod beam;
mod decoding;
mod generation;
mod sample;
mod scores;

pub use decoding::{Decoding, EarlyStopping, Search};
pub use generation::{Lengths, stop_tokens};
pub(crate) use scores::log_sum_exp;

use crate::error::Result;
use beam::BeamSearch;
use rayon::prelude::*;
use sample::SampledSequence;
use std::ops::{ControlFlow, Range};

/// A model that tells which token may follow the sequences it has read so far.
pub trait NextToken {
    /// Reads the prompts, in the first call, and gives the logits of the token that follows each: [prompts, V], row by row.
    ///
    /// # Errors
    /// Fails as the model does.
    fn begin(&mut self) -> Result<Vec<f32>>;

    /// Makes sequence i of this call from sequence `parents[i]` of the last one with `tokens[i]` behind it, and gives the
    /// logits of the token that follows each: [sequences, V], row by row. The sequences of the first call are the prompts.
    ///
    /// # Errors
    /// Fails as the model does.
    fn advance(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>>;
}

/// A sequence that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Hypothesis {
    /// The new tokens: a stop token is the last one unless the largest number was reached.
    pub tokens: Vec<u32>,
    /// The sum of the tokens' log-probabilities, divided by their number to the power of the length
    /// penalty (1 where there is none): in a search with several beams after the repetition penalty,
    /// otherwise as the model gave them.
    pub score: f64,
}

/// What is told of a generation while it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The token that was chosen for a sequence: which prompt it is of, and which of the prompt's sequences.
    Token {
        /// Counted from 0.
        prompt: usize,
        /// Counted from 0.
        sequence: usize,
        /// The new token.
        token: u32,
    },
    /// A search has followed all its beams by a token; which of them is kept is known at the end.
    Searched,
}

/// Called with every step; a break ends the generation with what there is.
pub type Watch<'a> = &'a mut dyn FnMut(Step) -> ControlFlow<()>;

impl Decoding {
    /// The sequences for each prompt, the best first (sampling: in the order in which they were drawn), that end with one
    /// of `stops`. Prompts are given by their tokens, as far as penalties count them as read before.
    ///
    /// # Errors
    /// Fails as [`Decoding::validate`] and the model do, and if logits are not finite.
    pub fn run<P: AsRef<[u32]>>(
        &self,
        model: &mut impl NextToken,
        prompts: &[P],
        stops: &[u32],
    ) -> Result<Vec<Vec<Hypothesis>>> {
        self.run_watched(model, prompts, stops, &mut |_| ControlFlow::Continue(()))
    }

    /// The same, watched.
    ///
    /// # Errors
    /// As [`Decoding::run`].
    pub fn run_watched<P: AsRef<[u32]>>(
        &self,
        model: &mut impl NextToken,
        prompts: &[P],
        stops: &[u32],
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        self.validate()?;
        if prompts.is_empty() {
            return Ok(Vec::new());
        }
        let task = Task { decoding: self, stops };
        let prompts = prompts.iter().map(|prompt| prompt.as_ref().to_vec()).enumerate();
        match self.search {
            Search::Beam { beams, .. } if beams > 1 => {
                let mut searches: Vec<_> =
                    prompts.map(|(index, read)| BeamSearch::new(index, read)).collect();
                follow(model, task, &mut searches, watch)?;
                Ok(searches.into_iter().map(|search| search.best(self)).collect())
            }
            _ => {
                let draws = |(index, read): (usize, Vec<u32>)| {
                    (0..self.sequences).map(move |draw| SampledSequence::new([index, draw], read.clone()))
                };
                let mut sampled: Vec<_> = prompts.flat_map(draws).collect();
                follow(model, task, &mut sampled, watch)?;
                let found: Vec<_> = sampled.into_iter().map(|sequence| sequence.hypothesis(self)).collect();
                Ok(found.chunks(self.sequences).map(<[_]>::to_vec).collect())
            }
        }
    }
}

/// What is to be generated, and how.
#[derive(Clone, Copy)]
struct Task<'a> {
    decoding: &'a Decoding,
    /// Tokens that end a sequence.
    stops: &'a [u32],
}

/// Something that follows a few sequences of a prompt until it has what it looks for.
trait Strategy: Send {
    /// Which prompt it is for.
    fn prompt(&self) -> usize;
    /// The parent and the last token of each sequence that it follows; none at the end.
    fn heads(&self) -> impl Iterator<Item = (usize, u32)>;
    /// Goes on by a token: of the logits of the sequences that it follows [sequences, V], the first are those of the model's
    /// sequence `first`.
    fn step(&mut self, task: Task<'_>, logits: &[f32], first: usize) -> Result<()>;
    /// What its last step did.
    fn told(&self) -> Step;
}

/// Advances the model until all of `strategies` have come to their end.
fn follow<S: Strategy>(
    model: &mut impl NextToken,
    task: Task<'_>,
    strategies: &mut [S],
    watch: Watch<'_>,
) -> Result<()> {
    let mut logits = model.begin()?;
    let prompts = strategies.last().map_or(0, Strategy::prompt) + 1;
    let mut vocabulary = logits.len() / prompts;
    // The rows of the logits that each strategy reads: at first its prompt's, then one for each of its sequences.
    let mut rows: Vec<Range<usize>> = strategies.iter().map(|s| s.prompt()..s.prompt() + 1).collect();
    loop {
        let open = || rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty());
        strategies.par_iter_mut().zip(&rows).filter(|(_, rows)| !rows.is_empty()).try_for_each(
            |(strategy, rows)| {
                let own = rows.start * vocabulary..rows.end * vocabulary;
                strategy.step(task, &logits[own], rows.start)
            },
        )?;
        for (index, _) in open() {
            if watch(strategies[index].told()).is_break() {
                return Ok(());
            }
        }
        let (parents, tokens): (Vec<usize>, Vec<u32>) = strategies.iter().flat_map(S::heads).unzip();
        if tokens.is_empty() {
            return Ok(());
        }
        let mut end = 0;
        rows.iter_mut().zip(&*strategies).for_each(|(rows, strategy)| {
            *rows = end..end + strategy.heads().count();
            end = rows.end;
        });
        logits = model.advance(&parents, &tokens)?;
        vocabulary = logits.len() / tokens.len();
    }
}
