//! Decoding against transformers' `generate` (tests/golden/decoding).

#[path = "support/paths.rs"]
mod paths;

use qformer::Result;
use qformer::generate::{Decoding, NextToken, Search};
use serde_json::Value;
use std::fs;

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
    /// The prompt, the last token but one, and the last of each sequence.
    sequences: Vec<(usize, Option<u32>, u32)>,
    /// How many sequences were asked for in each call.
    calls: Vec<usize>,
}

impl Toy {
    fn new(model: &Value) -> Self {
        let table = |name: &str| -> Vec<Vec<f32>> {
            let numbers =
                |row: &Value| row.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
            model[name].as_array().unwrap().iter().map(numbers).collect()
        };
        let [last, before, prompt, place] = ["last", "before", "prompt", "place"].map(table);
        Self { last, before, prompt, place, sequences: Vec::new(), calls: Vec::new() }
    }
}

impl NextToken for Toy {
    fn advance(&mut self, parents: &[usize], tokens: &[u32]) -> Result<Vec<f32>> {
        let grown = parents.iter().zip(tokens).map(|(&parent, &token)| match self.calls.is_empty() {
            true => (parent, None, token),
            false => (self.sequences[parent].0, Some(self.sequences[parent].2), token),
        });
        self.sequences = grown.collect();
        let place = &self.place[self.calls.len()];
        self.calls.push(tokens.len());
        let mut logits = Vec::new();
        for &(prompt, before, last) in &self.sequences {
            logits.extend(place.iter().enumerate().map(|(token, of_place)| {
                let before = before.map_or(0.0, |before| self.before[before as usize][token]);
                let of_last = self.last[last as usize][token];
                of_last + before + self.prompt[prompt][token] + of_place
            }));
        }
        Ok(logits)
    }
}

fn ends(expected: &Value) -> [u32; 2] {
    ["start", "end"].map(|name| expected[name].as_u64().unwrap() as u32)
}

#[test]
fn beams_are_those_of_transformers() {
    let expected = expected();
    let mut compared = 0;
    for model in expected["models"].as_array().unwrap() {
        for case in model["cases"].as_array().unwrap() {
            let number = |name: &str| case[name].as_f64().unwrap();
            let beams = number("num_beams") as usize;
            let decoding = Decoding {
                search: Search::Beam { beams, length_penalty: number("length_penalty") },
                max_length: number("max_length") as usize,
                min_length: number("min_length") as usize,
                repetition_penalty: number("repetition_penalty"),
                sequences: beams,
            };
            let found = decoding.run(&mut Toy::new(model), 3, ends(&expected)).unwrap();
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
    assert_eq!(compared, 3 * 3 * (1 + 1 + 1 + 2 + 3 + 3 + 3 + 3 + 3 + 4 + 5 + 4));
}

fn nucleus(top_p: f64, temperature: f64, seed: u64, sequences: usize) -> Decoding {
    Decoding {
        search: Search::Nucleus { top_p, temperature, seed, first: 0 },
        max_length: 8,
        min_length: 0,
        repetition_penalty: 1.0,
        sequences,
    }
}

/// A sequence that has ended is not computed on.
#[test]
fn only_open_sequences_are_followed() {
    let expected = expected();
    let mut toy = Toy::new(&expected["models"][0]);
    let found = nucleus(1.0, 1.0, 3, 50).run(&mut toy, 3, ends(&expected)).unwrap();
    for (step, &count) in toy.calls.iter().enumerate() {
        let open = found.iter().flatten().filter(|hypothesis| hypothesis.tokens.len() > step).count();
        assert_eq!(count, open, "step {step}");
    }
    assert_eq!(toy.calls[0], 150);
    assert!(*toy.calls.last().unwrap() < 150, "{:?}", toy.calls);
}

#[test]
fn tokens_are_drawn_as_often_as_they_are_likely() {
    let expected = expected();
    let model = &expected["models"][0];
    let toy = Toy::new(model);
    let (count, temperature) = (20_000, 0.7);
    let found = nucleus(0.9, temperature, 11, count).run(&mut Toy::new(model), 1, ends(&expected)).unwrap();
    let start = ends(&expected)[0] as usize;
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
    let run = |decoding: Decoding, prompts| {
        decoding.run(&mut Toy::new(&expected["models"][0]), prompts, ends(&expected)).unwrap()
    };
    let one = nucleus(0.95, 1.0, 5, 4);
    assert_eq!(run(one, 3), run(one, 3));
    assert_ne!(run(one, 3), run(nucleus(0.95, 1.0, 6, 4), 3));
    assert_eq!(run(one, 3)[..2], run(one, 2)[..]);
    // The third prompt alone has other logits here, but a toy whose prompts are equal tells the draws.
    let mut equal = expected["models"][0].clone();
    for prompt in 1..3 {
        equal["prompt"][prompt] = equal["prompt"][0].clone();
    }
    let all = one.run(&mut Toy::new(&equal), 3, ends(&expected)).unwrap();
    let last = one.starting_at(2).run(&mut Toy::new(&equal), 1, ends(&expected)).unwrap();
    assert_eq!(all[2], last[0]);
    assert_ne!(all[0], all[2]);
}

#[test]
fn values_out_of_range_are_refused_by_their_names() {
    let good = Decoding::default();
    let beam = |beams, length_penalty| Decoding { search: Search::Beam { beams, length_penalty }, ..good };
    let cases = [
        (Decoding { max_length: 1, min_length: 0, ..good }, "`max_length` 1"),
        (Decoding { min_length: 31, ..good }, "`min_length` 31"),
        (Decoding { repetition_penalty: 0.0, ..good }, "`repetition_penalty` 0"),
        (Decoding { sequences: 0, ..good }, "`sequences` 0"),
        (Decoding { sequences: 4, ..good }, "`beams` 3"),
        (beam(0, 1.0), "`beams` 0"),
        (beam(3, f64::NAN), "`length_penalty` NaN"),
        (nucleus(0.0, 1.0, 0, 1), "`top_p` 0"),
        (nucleus(1.5, 1.0, 0, 1), "`top_p` 1.5"),
        (nucleus(0.9, 0.0, 0, 1), "`temperature` 0"),
    ];
    for (decoding, fragment) in cases {
        let error = decoding.validate().unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    }
    good.validate().unwrap();
}
