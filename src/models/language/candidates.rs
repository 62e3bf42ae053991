//! How likely a language model finds each of several continuations of its prompts.

use super::{LanguageModel, Prompt};
use crate::error::{Error, Result};
use crate::generate::{NextToken, log_sum_exp};
use crate::memory::TensorInput;
use crate::ops::Backend;

/// Rows of continuations that a pass reads at a time.
const ROWS_PER_PASS: usize = 512;

impl<B: Backend> LanguageModel<B> {
    /// −ln p of every token of each candidate behind each prompt, about images whose query outputs [I, Q, Dq] are given:
    /// prompt by prompt, candidate by candidate. A prompt is read once, and all its candidates continue it.
    ///
    /// # Errors
    /// As [`LanguageModel::generate`], and if a candidate has no token or one that the model does not know.
    pub fn candidate_losses<'a>(
        &self,
        queries: impl Into<TensorInput<'a, B>>,
        prompts: &[Prompt],
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let queries = queries.into();
        for (index, candidate) in candidates.iter().enumerate() {
            if candidate.is_empty() {
                return Err(Error::value(format!("candidate {index} has no token")));
            }
            if let Some(id) = candidate.iter().find(|&&id| id as usize >= self.vocabulary()) {
                return Err(Error::value(format!(
                    "candidate {index} has token {id}, but the language model knows {}; the tokenizer is of another model",
                    self.vocabulary()
                )));
            }
        }
        let longest = candidates.iter().map(Vec::len).max().unwrap_or(0);
        // Those of one token are told by the prompt's logits alone.
        let longer: Vec<usize> = (0..candidates.len()).filter(|&index| candidates[index].len() > 1).collect();
        let passes = passes(&longer, candidates);
        let most = passes.iter().map(Vec::len).max().unwrap_or(0).max(1);
        let mut all = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            let prompt = std::slice::from_ref(prompt);
            all.push(self.with_decoder(queries, prompt, [most, longest], |decoder| {
                let logits = decoder.begin()?;
                let mut losses: Vec<Vec<f64>> = Vec::with_capacity(candidates.len());
                let lse = log_sum_exp(&logits)?;
                losses.extend(candidates.iter().map(|c| vec![lse - f64::from(logits[c[0] as usize])]));
                for pass in &passes {
                    let texts: Vec<&[u32]> = pass.iter().map(|&index| &candidates[index][..]).collect();
                    let mut found = decoder.losses_after_first(&vec![0; texts.len()], &texts)?.into_iter();
                    for &index in pass {
                        let count = candidates[index].len() - 1;
                        losses[index].extend(found.by_ref().take(count).map(f64::from));
                    }
                }
                Ok(losses)
            })?);
        }
        Ok(all)
    }
}

/// The candidates `of`, as many at a time as a pass reads.
fn passes(of: &[usize], candidates: &[Vec<u32>]) -> Vec<Vec<usize>> {
    let mut passes: Vec<Vec<usize>> = Vec::new();
    let mut rows = 0;
    for &index in of {
        let own = candidates[index].len() - 1;
        match passes.last_mut() {
            Some(pass) if rows + own <= ROWS_PER_PASS => pass.push(index),
            _ => {
                passes.push(vec![index]);
                rows = 0;
            }
        }
        rows += own;
    }
    passes
}
