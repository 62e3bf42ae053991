//! How fast language models of real sizes speak, with random weights of 16 bits: the prompt, and tokens of one and of
//! several sequences, beside the time in which the same memory is read.

use crate::measured::Measured;
use crate::passes::inputs::{RandomWeights, random_tensor};
use crate::peak;
use crate::times::{Times, repeat};
use qformer::generate::NextToken;
use qformer::models::language::{Head, LanguageModel, Prompt};
use qformer::tensor::NumberType;
use qformer::{Config, Error, HostTensor, Result};
use serde_json::{Value, json};

/// Tokens of the prompt behind the image's 32.
const WORDS: usize = 8;
/// Most new tokens of a sequence.
const LONGEST: usize = 512;
/// Sequences that are followed at a time: one, beams, and a batch of two with beams.
const SEQUENCES: [usize; 3] = [1, 5, 10];

/// What is measured, and how long.
pub(crate) struct Generate<'a, B> {
    pub(crate) device: B,
    pub(crate) seconds: f64,
    pub(crate) tell: &'a dyn Fn(&str) -> Result<()>,
}

impl<B: Measured> Generate<'_, B> {
    /// A report for each model.
    pub(crate) fn run(&self) -> Result<Vec<Value>> {
        let models = [
            ("OPT-2.7B", Config::blip2_opt_2_7b(), NumberType::F16, Head::Tied),
            ("Flan-T5-XL", Config::blip2_flan_t5_xl(), NumberType::Bf16, Head::Apart),
        ];
        models
            .into_iter()
            .map(|(name, config, dtype, head)| self.measure(name, &config, dtype, head))
            .collect()
    }

    fn measure(&self, name: &str, config: &Config, dtype: NumberType, head: Head) -> Result<Value> {
        let sources = [&RandomWeights as _; 2];
        let device = self.device.clone();
        let model = LanguageModel::from_source(device, config, head, sources, dtype, &mut |_, _| ())?;
        let queries =
            random_tensor("query_output", &[1, config.num_query_tokens, config.qformer.hidden_size]);
        let prompt = [Prompt { image: 0, tokens: (0..WORDS as u32).map(|word| 100 + 31 * word).collect() }];
        let error = self.check(&model, &queries, &prompt)?;
        (self.tell)(&format!(
            "\n{name}, {dtype:?}, {:.2} GB, of which a token reads {:.2} GB; two ways of reading a \
             text differ by {error:.1e}",
            model.weight_bytes() as f64 / 1e9,
            model.token_bytes() as f64 / 1e9
        ))?;
        let prefill = repeat(self.seconds, || {
            model.with_decoder(&queries, &prompt, [1, 1], |decoder| decoder.begin()).map(drop)
        })?;
        let rows = config.num_query_tokens + WORDS;
        (self.tell)(&format!("prompt of {rows} tokens: {:.1} ms", prefill.minimum() * 1e3))?;
        let mut results = Vec::new();
        let mut one = None;
        for sequences in SEQUENCES {
            // Read between the tokens' times, so that both have the machine as it is.
            let sweep = peak::read_bytes_per_second(self.seconds);
            let token = self.token(&model, (&queries, &prompt), sequences)?;
            let least = model.token_bytes() as f64 / sweep;
            let single = *one.get_or_insert(token.minimum());
            (self.tell)(&format!(
                "{sequences:>2} sequences: {:.1} ms a token (median {:.1}), {:.2} of the time in which its weights are read \
                 ({:.1} GB/s), {:.2} of one sequence's",
                token.minimum() * 1e3,
                token.median() * 1e3,
                token.minimum() / least,
                sweep / 1e9,
                token.minimum() / single
            ))?;
            results.push(json!({
                "sequences": sequences, "min_s": token.minimum(), "median_s": token.median(),
                "of_reading_the_weights": token.minimum() / least, "of_one_sequence": token.minimum() / single,
                "read_gbyte_per_second": sweep / 1e9,
            }));
        }
        Ok(json!({
            "model": name, "weight_bytes": model.weight_bytes(), "token_bytes": model.token_bytes(),
            "prompt_tokens": rows, "prompt_min_s": prefill.minimum(), "relative_error": error, "tokens": results,
        }))
    }

    /// Seconds a token, in the middle of texts that grow.
    fn token(
        &self,
        model: &LanguageModel<B>,
        (queries, prompt): (&HostTensor, &[Prompt]),
        sequences: usize,
    ) -> Result<Times> {
        model.with_decoder(queries, prompt, [sequences, LONGEST], |decoder| {
            decoder.begin()?;
            decoder.advance(&vec![0; sequences], &vec![100; sequences])?;
            let parents: Vec<usize> = (0..sequences).collect();
            let mut told = 1;
            let times = repeat(self.seconds, || {
                // Texts that are full stay as they are: what is timed is the same for all places.
                told += 1;
                if told == LONGEST {
                    return Err(Error::usage("texts are full; measure for fewer seconds"));
                }
                decoder.advance(&parents, &vec![100; sequences]).map(drop)
            })?;
            Ok(times)
        })
    }

    /// The relative error between the logits behind a text that one sequence has read word by word, and those behind the
    /// same text where five others are read beside it and, in models without an encoder, its first words were a part of the
    /// prompt: other products, and other rows of the cache. Fails if it is more than rounding explains.
    fn check(&self, model: &LanguageModel<B>, queries: &HostTensor, prompt: &[Prompt]) -> Result<f64> {
        let words = &prompt[0].tokens;
        let (begun, rest) = words.split_at(if model.has_encoder() { 0 } else { WORDS / 2 });
        let alone = |first: &[u32], rest: &[u32]| {
            let prompt = [Prompt { image: 0, tokens: first.to_vec() }];
            model.with_decoder(queries, &prompt, [1, WORDS + 1], |decoder| {
                let mut logits = decoder.begin()?;
                for &word in rest {
                    logits = decoder.advance(&[0], &[word])?;
                }
                Ok(logits)
            })
        };
        let by_word = if model.has_encoder() { alone(&[], words)? } else { alone(&words[..1], &words[1..])? };
        let prompt = [Prompt { image: 0, tokens: begun.to_vec() }];
        let beside = model.with_decoder(queries, &prompt, [6, WORDS + 1], |decoder| {
            decoder.begin()?;
            let mut logits = decoder.advance(&[0; 6], &[7, 8, 9, rest[0], 10, 11])?;
            for &word in &rest[1..] {
                logits = decoder.advance(&[0, 1, 2, 3, 4, 5], &[7, 8, 9, word, 10, 11])?;
            }
            let vocabulary = logits.len() / 6;
            Ok(logits[3 * vocabulary..4 * vocabulary].to_vec())
        })?;
        let square = |x: f32| f64::from(x).powi(2);
        let difference: f64 = beside.iter().zip(&by_word).map(|(&a, &b)| square(a - b)).sum();
        let error = (difference / by_word.iter().map(|&x| square(x)).sum::<f64>()).sqrt();
        if error.is_nan() || error > B::TOLERANCE {
            let what = format!("the logits of a text differ by {error:.1e} between two ways of reading it");
            return Err(Error::device(what));
        }
        Ok(error)
    }
}
