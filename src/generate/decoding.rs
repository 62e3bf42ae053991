//! What generated sequences are to be like, and how they are found: the settings of transformers' `generate`.

use crate::error::{Error, Result};

/// How sequences are found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Search {
    /// Beam search: the sequences of the largest log-probability, divided by the number of generated
    /// tokens to the power of `length_penalty`, among those that start as one of the `beams` best do. One
    /// beam is greedy search.
    Beam {
        /// Sequences followed at a time.
        beams: usize,
        /// 0: long sequences are not favoured; above 0: they are, the more the larger it is.
        length_penalty: f64,
        /// When it ends, as many sequences as there are beams having ended.
        early_stopping: EarlyStopping,
    },
    /// Sampling: every token is drawn from the likeliest.
    Sample {
        /// From so many; 0: from all.
        top_k: usize,
        /// From the fewest that have this much of the probability together, in (0, 1]; 1: from all.
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
    /// Share of the probability that LAVIS draws from.
    pub const TOP_P: f64 = 0.9;
    /// Likeliest tokens that transformers draws from.
    pub const TOP_K: usize = 50;
    /// Of random numbers, where none is given.
    pub const SEED: u64 = 42;

    /// The likeliest token each time.
    pub const GREEDY: Self = Self::beams(1, 1.0);

    /// Beam search that ends as transformers' does where nothing is said.
    pub const fn beams(beams: usize, length_penalty: f64) -> Self {
        Self::Beam { beams, length_penalty, early_stopping: EarlyStopping::Heuristic }
    }
}

/// When a beam search ends, of which as many sequences have ended as there are beams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EarlyStopping {
    /// `early_stopping` false: when the best sequence that goes on would not be among them if it ended now.
    #[default]
    Heuristic,
    /// `early_stopping` true: at once.
    AtOnce,
    /// `early_stopping` "never": when none that goes on could come to be among them.
    Never,
}

/// What sequences are to be like.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoding {
    /// How they are found.
    pub search: Search,
    /// Most new tokens, the stop token included.
    pub max_new_tokens: usize,
    /// New tokens that no stop token is among.
    pub min_new_tokens: usize,
    /// Divides the scores of tokens that are in the sequence or its prompt already, or multiplies them if negative; 1
    /// for none. As in transformers, the scores are log-probabilities in a search with several beams, and
    /// logits otherwise.
    pub repetition_penalty: f64,
    /// So many tokens in a row come once in the sequence and its prompt together; 0: any come as often as they like.
    pub no_repeat_ngram_size: usize,
    /// Sequences for each prompt.
    pub sequences: usize,
}

impl Default for Decoding {
    /// As LAVIS captions with a Q-Former: 3 beams, 9 to 29 tokens.
    fn default() -> Self {
        Self {
            search: Search::beams(3, 1.0),
            max_new_tokens: 29,
            min_new_tokens: 9,
            repetition_penalty: 1.0,
            no_repeat_ngram_size: 0,
            sequences: 1,
        }
    }
}

impl Decoding {
    /// # Errors
    /// Fails if a value is out of its range, naming its field.
    pub fn validate(&self) -> Result<()> {
        let refuse = |settings: &[&'static str], what: String| Err(Error::usage(what).naming(settings));
        if self.max_new_tokens == 0 {
            let what = "`max_new_tokens` 0 leaves no room for a token; give 1 or more";
            return refuse(&["max_new_tokens"], what.into());
        }
        if self.min_new_tokens > self.max_new_tokens {
            return refuse(
                &["min_new_tokens", "max_new_tokens"],
                format!(
                    "`min_new_tokens` {} is more than `max_new_tokens` {}; give one that is not",
                    self.min_new_tokens, self.max_new_tokens
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
            Search::Beam { beams, length_penalty, .. } => {
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
            Search::Sample { top_p, temperature, .. } => {
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

    /// The same with at most so many new tokens.
    pub fn within(self, most: usize) -> Self {
        let max_new_tokens = self.max_new_tokens.min(most);
        Self { max_new_tokens, min_new_tokens: self.min_new_tokens.min(max_new_tokens), ..self }
    }

    /// Sequences that a model has to follow at a time for each prompt.
    pub fn sequences_at_a_time(&self) -> usize {
        match self.search {
            Search::Beam { beams, .. } => beams,
            Search::Sample { .. } => self.sequences,
        }
    }

    /// The same for prompts of which `prompts` others come first.
    pub fn starting_at(mut self, prompts: u64) -> Self {
        if let Search::Sample { first, .. } = &mut self.search {
            *first += prompts;
        }
        self
    }
}
