//! What LAVIS generates after stage 2 of training.

use crate::checkpoint::Golden;
use crate::paths::path;
use qformer::Cpu;
use qformer::generate::{Decoding, Search};
use qformer::models::language::Prompt;
use qformer::tensor::NumberType;
use serde_json::Value;

#[test]
fn texts_are_those_that_lavis_generates() {
    let mut compared = 0;
    for name in ["stage2-opt", "stage2-t5"] {
        let golden = Golden::new(name);
        let model = golden.open(Cpu::<f32>::new(), NumberType::F32);
        let queries = golden.queries(Cpu::<f32>::new(), &golden.host("vision_output"));
        let stop = golden.expected["eos_token_id"].as_u64().unwrap() as u32;
        let tokenizer = path("tests/golden").join(name).join("llm/tokenizer.json");
        let tokenizer = tokenizers::Tokenizer::from_file(tokenizer).unwrap();
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
            let texts = case["prompts"].as_array().unwrap().iter();
            let tokens = texts.map(|text| {
                let encoding = tokenizer.encode_fast(text.as_str().unwrap(), true).unwrap();
                encoding.get_ids().to_vec()
            });
            let prompts: Vec<Prompt> =
                tokens.enumerate().map(|(image, tokens)| Prompt { image, tokens }).collect();
            // LAVIS gives OPT embeddings, so that no token of a prompt counts as read; T5's decoder begins with one.
            let read = vec![if name == "stage2-opt" { vec![] } else { vec![0] }; 5];
            let sizes = [5 * decoding.sequences_at_a_time(), decoding.max_new_tokens];
            let found = model
                .with_decoder(&queries, &prompts, sizes, |decoder| decoding.run(decoder, &read, &[stop]));
            let found = found.unwrap();
            let expected = case.get("ids_transformers_5").unwrap_or(&case["ids"]);
            for (index, found) in found.iter().flatten().enumerate() {
                let case = case["name"].as_str().unwrap();
                assert_eq!(&Value::from(found.tokens.clone()), &expected[index], "{name} {case} {index}");
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 2 * (16 * 5 + 2 * 15));
}
