//! Logits and generated tokens of transformers' `Blip2ForConditionalGeneration`.

use crate::checkpoint::{Golden, error};
use qformer::generate::{Decoding, NextToken, Search};
use qformer::models::language::Prompt;
use qformer::tensor::NumberType;
use qformer::{Cpu, HostTensor};
use std::ops::ControlFlow;

/// Queries [I, Q, Dq] as the reference has them.
fn queries(golden: &Golden) -> HostTensor {
    golden.host("query_output")
}

/// OPT's logits of every place behind the image: each is what a prompt that is so long ends with.
#[test]
fn logits_of_opt_are_those_of_transformers() {
    let golden = Golden::new("opt");
    let model = golden.open(Cpu::<f32>::new(), NumberType::F32);
    let queries = queries(&golden);
    let soft = golden.config().num_query_tokens;
    for name in ["0", "1"] {
        let &[_, length, vocabulary] = golden.shape(&format!("logits.{name}")) else { panic!() };
        let logits = golden.values(&format!("logits.{name}"));
        for words in 0..=length - soft {
            let prompts: Vec<Prompt> = golden
                .prompts(&format!("input_ids.{name}"))
                .into_iter()
                .map(|prompt| Prompt { tokens: prompt.tokens[..words].to_vec(), ..prompt })
                .collect();
            let found = model.with_decoder(&queries, &prompts, [2, 1], |decoder| decoder.begin()).unwrap();
            for (image, found) in found.chunks(vocabulary).enumerate() {
                let row = (image * length + soft + words - 1) * vocabulary;
                let error = error(found, &logits[row..row + vocabulary]);
                assert!(error < 1e-4, "prompt {name}, {words} words, image {image}: {error}");
            }
        }
    }
}

/// T5's logits of its labels.
#[test]
fn logits_of_t5_are_those_of_transformers() {
    let golden = Golden::new("t5");
    let model = golden.open(Cpu::<f32>::new(), NumberType::F32);
    let queries = queries(&golden);
    for name in ["0", "1"] {
        let &[_, length, vocabulary] = golden.shape(&format!("logits.{name}")) else { panic!() };
        let (logits, labels) =
            (golden.values(&format!("logits.{name}")), golden.ids(&format!("labels.{name}")));
        let prompts = golden.prompts(&format!("input_ids.{name}"));
        let found = model.with_decoder(&queries, &prompts, [2, length], |decoder| {
            let mut found = vec![decoder.begin()?];
            for place in 0..length - 1 {
                let tokens = [labels[place], labels[length + place]];
                found.push(decoder.advance(&[0, 1], &tokens)?);
            }
            Ok(found)
        });
        for (place, found) in found.unwrap().iter().enumerate() {
            for (image, found) in found.chunks(vocabulary).enumerate() {
                let row = (image * length + place) * vocabulary;
                let error = error(found, &logits[row..row + vocabulary]);
                // transformers' own single precision stands at 1.1e-4.
                assert!(error < 5e-4, "prompt {name}, place {place}, image {image}: {error}");
            }
        }
    }
}

#[test]
fn tokens_are_those_that_transformers_generates() {
    for name in ["opt", "t5"] {
        let golden = Golden::new(name);
        let model = golden.open(Cpu::<f32>::new(), NumberType::F32);
        let queries = queries(&golden);
        let stop = if name == "opt" { 2 } else { 1 };
        for prompt in ["0", "1"] {
            let prompts = golden.prompts(&format!("input_ids.{prompt}"));
            for (way, search) in [("greedy", Search::GREEDY), ("beam5", Search::beams(5, 1.0))] {
                let decoding =
                    Decoding { search, max_new_tokens: 12, min_new_tokens: 0, ..Decoding::default() };
                let watch = &mut |_| ControlFlow::Continue(());
                let found = model.generate(&queries, &prompts, None, &decoding, &[stop], watch).unwrap();
                for (image, found) in found.iter().enumerate() {
                    let expected = &golden.expected[format!("{way}.{prompt}")][image];
                    let expected: Vec<u32> = serde_json::from_value(expected.clone()).unwrap();
                    // Behind image tokens and prompt, or the start token; after the stop token comes padding.
                    let begin = if name == "opt" { expected.len() - 12 } else { 1 };
                    let expected = &expected[begin..];
                    let end = expected.iter().position(|&id| id == stop).map_or(expected.len(), |at| at + 1);
                    assert_eq!(found[0].tokens, expected[..end], "{name} {way} {prompt} {image}");
                }
            }
        }
    }
}
