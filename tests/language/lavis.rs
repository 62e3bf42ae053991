//! What LAVIS generates after stage 2 of training.

use crate::checkpoint::Golden;
use qformer::Cpu;
use qformer::generate::{Decoding, Search};
use qformer::models::language::Prompt;
use qformer::tensor::NumberType;
use serde_json::Value;
use std::ops::ControlFlow;

#[test]
fn texts_are_those_that_lavis_generates() {
    let mut compared = 0;
    for name in ["stage2-opt", "stage2-t5"] {
        let golden = Golden::new(name);
        let model = golden.open(Cpu::<f32>::new(), NumberType::F32);
        let queries = golden.queries(Cpu::<f32>::new(), &golden.host("vision_output"));
        let stop = golden.expected["eos_token_id"].as_u64().unwrap() as u32;
        // The tokens of an empty prompt: OPT's texts begin with </s>, T5's end with it.
        let empty = if name == "stage2-opt" { 2 } else { 1 };
        for case in golden.expected["generated"].as_array().unwrap() {
            let number = |name: &str| case[name].as_f64().unwrap();
            let sequences = number("num_return_sequences") as usize;
            let decoding = Decoding {
                search: Search::beams(number("num_beams") as usize, number("length_penalty")),
                max_new_tokens: number("max_new_tokens") as usize,
                min_new_tokens: number("min_new_tokens") as usize,
                repetition_penalty: number("repetition_penalty"),
                no_repeat_ngram_size: 0,
                sequences,
            };
            assert!(case["prompts"].as_array().unwrap().iter().all(|prompt| prompt == ""));
            let prompts: Vec<Prompt> = (0..5).map(|image| Prompt { image, tokens: vec![empty] }).collect();
            let watch = &mut |_| ControlFlow::Continue(());
            let found = model.generate(&queries, &prompts, None, &decoding, &[stop], watch).unwrap();
            let expected = case.get("ids_transformers_5").unwrap_or(&case["ids"]);
            for (index, found) in found.iter().flatten().enumerate() {
                let case = case["name"].as_str().unwrap();
                assert_eq!(&Value::from(found.tokens.clone()), &expected[index], "{name} {case} {index}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * (5 * 5 + 15));
}
