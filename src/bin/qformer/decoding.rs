//! How texts are generated, by the names that transformers' `generate` gives.

use clap::Args;
use qformer::Result;
use qformer::generate::{Decoding, EarlyStopping, Search};

/// How texts are generated; where nothing is given, as the checkpoint says.
#[derive(Args)]
pub(crate) struct DecodingArguments {
    /// Sequences followed at a time in a search; 1 is greedy search
    #[arg(long, value_name = "N")]
    num_beams: Option<usize>,
    /// Divide a sequence's log-probability by its length to this power
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    length_penalty: Option<f64>,
    /// End a search as soon as as many sequences have ended as there are beams
    #[arg(long)]
    early_stopping: bool,
    /// Draw tokens instead of searching
    #[arg(long, alias = "nucleus", conflicts_with_all = ["num_beams", "length_penalty", "early_stopping"])]
    do_sample: bool,
    /// Draw from so many of the likeliest tokens; 0: from all
    #[arg(long, value_name = "N", requires = "do_sample")]
    top_k: Option<usize>,
    /// Draw from the fewest tokens that have this much of the probability together
    #[arg(long, value_name = "P", requires = "do_sample")]
    top_p: Option<f64>,
    /// Divide the logits by this before drawing
    #[arg(long, value_name = "T", requires = "do_sample")]
    temperature: Option<f64>,
    /// Seed of the draws
    #[arg(long, value_name = "N", default_value_t = Search::SEED, requires = "do_sample")]
    seed: u64,
    /// Most new tokens, the one that ends a text included
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// New tokens before which no text ends
    #[arg(long, value_name = "N")]
    min_new_tokens: Option<usize>,
    /// Make tokens that came before less likely (above 1) or more likely (below 1)
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f64>,
    /// Let so many tokens in a row come once only; 0: as often as they like
    #[arg(long, value_name = "N")]
    no_repeat_ngram_size: Option<usize>,
}

impl DecodingArguments {
    /// What was asked for, and for the rest what suits the checkpoint; `sequences` of each prompt if that many are asked for.
    pub(crate) fn decoding(&self, checkpoint: Decoding, sequences: Option<usize>) -> Result<Decoding> {
        let max_new_tokens = self.max_new_tokens.unwrap_or(checkpoint.max_new_tokens);
        let decoding = Decoding {
            search: self.search(checkpoint.search),
            max_new_tokens,
            min_new_tokens: self.min_new_tokens.unwrap_or(checkpoint.min_new_tokens.min(max_new_tokens)),
            repetition_penalty: self.repetition_penalty.unwrap_or(checkpoint.repetition_penalty),
            no_repeat_ngram_size: self.no_repeat_ngram_size.unwrap_or(checkpoint.no_repeat_ngram_size),
            sequences: sequences.unwrap_or(checkpoint.sequences),
        };
        decoding.validate()?;
        Ok(decoding)
    }

    fn search(&self, checkpoint: Search) -> Search {
        let is_searched = self.num_beams.is_some() || self.length_penalty.is_some() || self.early_stopping;
        let drawn = |top_k, top_p, temperature| Search::Sample {
            top_k: self.top_k.unwrap_or(top_k),
            top_p: self.top_p.unwrap_or(top_p),
            temperature: self.temperature.unwrap_or(temperature),
            seed: self.seed,
            first: 0,
        };
        let searched = |beams, length_penalty, early_stopping| Search::Beam {
            beams: self.num_beams.unwrap_or(beams),
            length_penalty: self.length_penalty.unwrap_or(length_penalty),
            early_stopping: if self.early_stopping { EarlyStopping::AtOnce } else { early_stopping },
        };
        match checkpoint {
            Search::Sample { top_k, top_p, temperature, .. } if !is_searched => {
                drawn(top_k, top_p, temperature)
            }
            Search::Beam { beams, length_penalty, early_stopping } if !self.do_sample => {
                searched(beams, length_penalty, early_stopping)
            }
            // The checkpoint draws and a search is asked for, whose beams are then the task's.
            Search::Sample { .. } => searched(3, 1.0, EarlyStopping::Heuristic),
            Search::Beam { .. } => drawn(Search::TOP_K, Search::TOP_P, 1.0),
        }
    }
}
