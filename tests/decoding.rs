//! Decoding against transformers' `generate` (tests/golden/decoding).

#[path = "support/paths.rs"]
mod paths;

use qformer::Result;
use qformer::generate::{Decoding, EarlyStopping, Hypothesis, NextToken, Search, Step};
use serde_json::Value;
use std::fs;
use std::ops::ControlFlow;

fn expected() -> Value {
    let path = paths::path("tests/golden/decoding/expected.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Logits follow from the last two tokens, the prompt, and how many tokens there are.
struct Toy {
    last: Vec<Vec<f32>>,
    before: Vec<Vec<f32>>,
    prompt: Vec<Vec<f32>>,
    place: Vec<Vec<f32>>,
    /// How many prompts there are; each is the start token.
    prompts: usize,
    /// The prompt, the last token but one, and the last of each sequence.
    sequences: Vec<(usize, Option<u32>, u32)>,
    /// How many sequences were asked for in each call.
    calls: Vec<usize>,
}

/// The token of every prompt, and the one that ends a sequence.
const START: u32 = 1;
const END: u32 = 2;

impl Toy {
    fn new(model: &Value, prompts: usize) -> Self {
        let table = |name: &str| -> Vec<Vec<f32>> {
            let numbers =
                |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
            model[name].as_array().unwrap().iter().map(numbers).collect()
        };
        let [last, before, prompt, place] = ["last", "before", "prompt", "place"].map(table);
        Self { last, before, prompt, place, prompts, sequences: Vec::new(), calls: Vec::new() }
    }

    fn logits(&mut self) -> Vec<f32> {
        let place = &self.place[self.calls.len()];
        self.calls.push(self.sequences.len());
        let mut logits = Vec::new();
        for &(prompt, before, last) in &self.sequences {
            logits.extend(place.iter().enumerate().map(|(token, of_place)| {
                let before = before.map_or(0.0, |before| self.before[before as usize][token]);
                let of_last = self.last[last as usize][token];
                of_last + before + self.prompt[prompt][token] + of_place
            }));
        }
        logits
    }
}

impl NextToken for Toy {
    fn begin(&mut self) -> Result<Vec<f32>> {
        self.sequences = (0..self.prompts).map(|prompt| (prompt, None, START)).collect();
        Ok(self.logits())
    }

    fn advance(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        let grown = parents.iter().zip(tokens).map(|(&parent, &token)| {
            let (prompt, _, last) = self.sequences[parent];
            (prompt, Some(last), token)
        });
        self.sequences = grown.collect();
        Ok(self.logits())
    }
}

/// What is found for so many prompts.
fn run(decoding: Decoding, model: &Value, prompts: usize) -> Vec<Vec<Hypothesis>> {
    decoding.run(&mut Toy::new(model, prompts), &vec![[START]; prompts], &[END]).unwrap()
}

#[test]
fn beams_are_those_of_transformers() {
    let expected = expected();
    let mut compared = 0;
    for model in expected["models"].as_array().unwrap() {
        for case in model["cases"].as_array().unwrap() {
            let number = |name: &str| case[name].as_f64().unwrap();
            let beams = number("num_beams") as usize;
            let early_stopping = match &case["early_stopping"] {
                Value::Bool(true) => EarlyStopping::AtOnce,
                Value::Bool(false) => EarlyStopping::Heuristic,
                never => {
                    assert_eq!(never, "never");
                    EarlyStopping::Never
                }
            };
            let stops: Vec<u32> = serde_json::from_value(case["eos_token_id"].clone()).unwrap();
            let decoding = Decoding {
                search: Search::Beam { beams, length_penalty: number("length_penalty"), early_stopping },
                // With the start token in transformers.
                max_new_tokens: number("max_length") as usize - 1,
                min_new_tokens: (number("min_length") as usize).saturating_sub(1),
                repetition_penalty: number("repetition_penalty"),
                no_repeat_ngram_size: number("no_repeat_ngram_size") as usize,
                sequences: beams,
            };
            let found = decoding.run(&mut Toy::new(model, 3), &[[START]; 3], &stops).unwrap();
            for (prompt, found) in found.iter().enumerate() {
                for (rank, found) in found.iter().enumerate() {
                    let wanted = &case["sequences"][prompt][rank];
                    assert_eq!(&serde_json::json!(found.tokens), wanted, "{decoding:?} {prompt} {rank}");
                    if let Some(score) = case["scores"][prompt][rank].as_f64() {
                        // transformers adds up in single precision.
                        assert!((found.score - score).abs() < 1e-5 * score.abs(), "{} {score}", found.score);
                    }
                    compared += 1;
                }
            }
        }
    }
    assert_eq!(
        compared,
        3 * 3 * (1 + 1 + 1 + 2 + 3 + 3 + 3 + 3 + 3 + 4 + 5 + 4 + 3 + 3 + 3 + 4 + 1 + 3 + 2 + 1)
    );
}

fn sampling(top_p: f64, temperature: f64, seed: u64, sequences: usize) -> Decoding {
    Decoding {
        search: Search::Sample { top_k: 0, top_p, temperature, seed, first: 0 },
        max_new_tokens: 7,
        min_new_tokens: 0,
        repetition_penalty: 1.0,
        no_repeat_ngram_size: 0,
        sequences,
    }
}

/// A sequence that has ended is not computed on.
#[test]
fn only_open_sequences_are_followed() {
    let expected = expected();
    let mut toy = Toy::new(&expected["models"][0], 3);
    let found = sampling(1.0, 1.0, 3, 50).run(&mut toy, &[[START]; 3], &[END]).unwrap();
    assert_eq!(toy.calls[0], 3);
    for (step, &count) in toy.calls.iter().enumerate().skip(1) {
        let open = found.iter().flatten().filter(|hypothesis| hypothesis.tokens.len() > step).count();
        assert_eq!(count, open, "step {step}");
    }
    assert!(*toy.calls.last().unwrap() < 150, "{:?}", toy.calls);
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let expected = expected();
    let model = &expected["models"][0];
    let toy = Toy::new(model, 1);
    let (count, temperature) = (20_000, 0.7);
    let found = run(sampling(0.9, temperature, 11, count), model, 1);
    let start = START as usize;
    let weights: Vec<f64> = (0..12)
        .map(|token| toy.last[start][token] + toy.prompt[0][token] + toy.place[0][token])
        .map(|logit| (f64::from(logit) / temperature).exp())
        .collect();
    let total: f64 = weights.iter().sum();
    let mut order: Vec<usize> = (0..12).collect();
    order.sort_by(|&a, &b| weights[b].total_cmp(&weights[a]));
    let mut kept = 0.0;
    let mut share = [0.0; 12];
    for token in order {
        if kept < 0.9 * total {
            kept += weights[token];
            share[token] = weights[token];
        }
    }
    for (token, share) in (0u32..).zip(share) {
        let drawn = found[0].iter().filter(|hypothesis| hypothesis.tokens[0] == token).count() as f64;
        let (p, n) = (share / kept, count as f64);
        // Five standard deviations.
        assert!(
            (drawn - n * p).abs() <= 5.0 * (n * p * (1.0 - p)).sqrt(),
            "token {token}: {drawn}, not {}",
            n * p
        );
    }
}

#[test]
fn a_seed_decides_the_draws_and_a_prompt_has_its_own() {
    let expected = expected();
    let model = &expected["models"][0];
    let one = sampling(0.95, 1.0, 5, 4);
    assert_eq!(run(one, model, 3), run(one, model, 3));
    assert_ne!(run(one, model, 3), run(sampling(0.95, 1.0, 6, 4), model, 3));
    assert_eq!(run(one, model, 3)[..2], run(one, model, 2)[..]);
    // The third prompt alone has other logits here, but a toy whose prompts are equal tells the draws.
    let mut equal = model.clone();
    for prompt in 1..3 {
        equal["prompt"][prompt] = equal["prompt"][0].clone();
    }
    let all = run(one, &equal, 3);
    let last = run(one.starting_at(2), &equal, 1);
    assert_eq!(all[2], last[0]);
    assert_ne!(all[0], all[2]);
}

#[test]
fn only_the_likeliest_k_are_drawn_from() {
    let expected = expected();
    let model = &expected["models"][0];
    let of = |top_k| {
        let search = Search::Sample { top_k, top_p: 1.0, temperature: 5.0, seed: 1, first: 0 };
        run(Decoding { search, ..sampling(1.0, 1.0, 0, 400) }, model, 1)
    };
    let first = |found: &[Vec<Hypothesis>]| {
        found[0].iter().map(|hypothesis| hypothesis.tokens[0]).collect::<std::collections::BTreeSet<_>>()
    };
    let counts = [1, 2, 5, 12, 0, 50].map(|top_k| first(&of(top_k)).len());
    assert_eq!(counts, [1, 2, 5, 12, 12, 12]);
    let greedy = run(Decoding { search: Search::GREEDY, sequences: 1, ..sampling(1.0, 1.0, 0, 1) }, model, 1);
    assert_eq!(of(1)[0][7].tokens, greedy[0][0].tokens);
}

#[test]
fn steps_are_told_as_they_come_and_can_be_broken_off() {
    let expected = expected();
    let model = &expected["models"][1];
    let greedy = Decoding { search: Search::GREEDY, ..sampling(1.0, 1.0, 0, 1) };
    let whole = run(greedy, model, 2);
    let watched = |decoding: Decoding, most: usize| {
        let mut told = Vec::new();
        let found = decoding.run_watched(&mut Toy::new(model, 2), &[[START]; 2], &[END], &mut |step| {
            told.push(step);
            if told.len() < most { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        (found.unwrap(), told)
    };
    let (found, told) = watched(greedy, usize::MAX);
    assert_eq!(found, whole);
    for (prompt, found) in found.iter().enumerate() {
        let own = told.iter().filter_map(|step| match *step {
            Step::Token { prompt: of, sequence: 0, token } if of == prompt => Some(token),
            _ => None,
        });
        assert_eq!(own.collect::<Vec<u32>>(), found[0].tokens);
    }
    let (found, told) = watched(greedy, 3);
    assert_eq!((told.len(), found[0][0].tokens.len()), (3, 2));
    assert_eq!(found[0][0].tokens, whole[0][0].tokens[..2]);
    // A search that is broken off gives what it has.
    let (found, told) = watched(Decoding { search: Search::beams(4, 1.0), ..greedy }, 2);
    assert_eq!(told, [Step::Searched; 2]);
    assert!(found.iter().all(|found| found.len() == 1 && !found[0].tokens.is_empty()));
}

/// transformers counts what the prompt holds as read before.
#[test]
fn tokens_of_the_prompt_count_as_repeated() {
    let expected = expected();
    let model = &expected["models"][0];
    let decoding = Decoding {
        search: Search::GREEDY,
        no_repeat_ngram_size: 1,
        max_new_tokens: 4,
        ..sampling(1.0, 1.0, 0, 1)
    };
    let free = run(decoding, model, 1)[0][0].tokens[0];
    let prompt = [START, free];
    let found = decoding.run(&mut Toy::new(model, 1), &[prompt], &[END]).unwrap();
    assert!(found[0][0].tokens.iter().all(|token| !prompt.contains(token)), "{found:?}");
    let penalised = Decoding { no_repeat_ngram_size: 0, repetition_penalty: 1e9, ..decoding };
    let found = penalised.run(&mut Toy::new(model, 1), &[prompt], &[END]).unwrap();
    assert_ne!(found[0][0].tokens[0], free);
}

#[test]
fn values_out_of_range_are_refused_by_their_names() {
    let good = Decoding::default();
    let beam = |beams, length_penalty| Decoding { search: Search::beams(beams, length_penalty), ..good };
    let cases = [
        (Decoding { max_new_tokens: 0, min_new_tokens: 0, ..good }, "`max_new_tokens` 0"),
        (Decoding { min_new_tokens: 31, ..good }, "`min_new_tokens` 31"),
        (Decoding { repetition_penalty: 0.0, ..good }, "`repetition_penalty` 0"),
        (Decoding { sequences: 0, ..good }, "`sequences` 0"),
        (Decoding { sequences: 4, ..good }, "`beams` 3"),
        (beam(0, 1.0), "`beams` 0"),
        (beam(3, f64::NAN), "`length_penalty` NaN"),
        (sampling(0.0, 1.0, 0, 1), "`top_p` 0"),
        (sampling(1.5, 1.0, 0, 1), "`top_p` 1.5"),
        (sampling(0.9, 0.0, 0, 1), "`temperature` 0"),
    ];
    for (decoding, fragment) in cases {
        let error = decoding.validate().unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    }
    good.validate().unwrap();
}
