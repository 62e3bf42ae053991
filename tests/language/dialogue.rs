//! Dialogue and ranking as transformers has them: prompts with history, of unequal length, in one batch.

use crate::checkpoint::Golden;
use qformer::generate::{Decoding, Search};
use qformer::models::language::Prompt;
use qformer::tensor::NumberType;
use qformer::{Cpu, HostTensor};
use serde_json::Value;
use std::ops::ControlFlow;

/// The images' query outputs; those of each prompt are its image's.
pub(crate) fn queries(golden: &Golden) -> HostTensor {
    let prompts = golden.expected["prompts"].as_array().unwrap();
    let (shape, count) =
        (golden.shape("query_output.0").to_vec(), golden.expected["images"].as_array().unwrap().len());
    let mut values = Vec::new();
    for image in 0..count {
        let of_image = prompts.iter().position(|prompt| prompt["image"] == image).unwrap();
        values.extend(golden.values(&format!("query_output.{of_image}")).iter().map(|&x| x as f32));
    }
    HostTensor::new(&[count, shape[0], shape[1]], values).unwrap()
}

pub(crate) fn prompts(golden: &Golden) -> Vec<Prompt> {
    let prompts = golden.expected["prompts"].as_array().unwrap().iter().enumerate();
    prompts
        .map(|(index, prompt)| Prompt {
            image: prompt["image"].as_u64().unwrap() as usize,
            tokens: golden.words(&golden.ids(&format!("input_ids.{index}"))),
        })
        .collect()
}

pub(crate) fn stop(golden: &Golden) -> u32 {
    golden.expected["stop_token_id"].as_u64().unwrap() as u32
}

#[test]
fn a_batch_of_prompts_is_answered_as_its_members_are() {
    for name in ["dialogue-opt", "dialogue-t5"] {
        let golden = Golden::new(name);
        let model = golden.open(Cpu::<f32>::new(), NumberType::F32);
        let (queries, prompts) = (queries(&golden), prompts(&golden));
        let max_new_tokens = golden.expected["max_new_tokens"].as_u64().unwrap() as usize;
        for (way, search) in [("greedy", Search::GREEDY), ("beam5", Search::beams(5, 1.0))] {
            let decoding = Decoding { search, max_new_tokens, min_new_tokens: 0, ..Decoding::default() };
            let run = |prompts: &[Prompt]| {
                let watch = &mut |_| ControlFlow::Continue(());
                model.generate(&queries, prompts, None, &decoding, &[stop(&golden)], watch).unwrap()
            };
            let together = run(&prompts);
            for (index, prompt) in prompts.iter().enumerate() {
                let wanted = &golden.expected["prompts"][index][way];
                assert_eq!(&Value::from(together[index][0].tokens.clone()), wanted, "{name} {way} {index}");
                let alone = run(std::slice::from_ref(prompt));
                assert_eq!(alone[0][0].tokens, together[index][0].tokens);
            }
        }
    }
}

/// Candidates as the reference tokenizes them are not stored; the sums over all their tokens are.
#[test]
fn candidates_are_found_as_likely_as_transformers_finds_them() {
    for name in ["dialogue-opt", "dialogue-t5"] {
        let golden = Golden::new(name);
        let model = golden.open(Cpu::<f32>::new(), NumberType::F32);
        let tokenizer = tokenizers::Tokenizer::from_file(
            crate::paths::path("tests/golden").join(name).join("model/tokenizer.json"),
        )
        .unwrap();
        let (queries, prompts) = (queries(&golden), prompts(&golden));
        for case in golden.expected["ranking"].as_array().unwrap() {
            let prompt =
                golden.expected["prompts"].as_array().unwrap().iter().position(|prompt| {
                    prompt["image"] == case["image"] && prompt["prompt"] == case["prompt"]
                });
            let candidates: Vec<Vec<u32>> = case["candidates"]
                .as_array()
                .unwrap()
                .iter()
                .map(|text| {
                    let text = text.as_str().unwrap();
                    let text = if name == "dialogue-opt" { format!(" {text}") } else { text.to_owned() };
                    let mut ids = tokenizer.encode_fast(text, false).unwrap().get_ids().to_vec();
                    ids.push(stop(&golden));
                    ids
                })
                .collect();
            let prompt = &prompts[prompt.unwrap()];
            let found = model.candidate_losses(&queries, std::slice::from_ref(prompt), &candidates).unwrap();
            for (found, expected) in found[0].iter().zip(case["token_nll"].as_array().unwrap()) {
                let expected: Vec<f64> = serde_json::from_value(expected.clone()).unwrap();
                assert_eq!(found.len(), expected.len(), "{name}: tokens of a candidate");
                for (found, expected) in found.iter().zip(expected) {
                    // What single precision leaves of logits and their sum of exponentials.
                    assert!(
                        (found - expected).abs() < 1e-4 * expected.max(1.0),
                        "{name}: {found} {expected}"
                    );
                }
            }
        }
    }
}
