//! The language models on a GPU, simulated where there is none, and with weights of 16 bits on the CPU.

use crate::checkpoint::{Golden, error};
use crate::cuda::cuda;
use crate::dialogue::{prompts, queries, stop};
use qformer::Cpu;
use qformer::generate::{Decoding, NextToken, Search};
use qformer::models::language::{LanguageModel, Prompt};
use qformer::ops::Backend;
use qformer::tensor::NumberType;
use std::ops::ControlFlow;

const GOLDENS: [&str; 2] = ["dialogue-opt", "dialogue-t5"];

/// Logits of what follows each prompt, and the tokens of greedy and of beam search.
struct Run {
    logits: Vec<f32>,
    greedy: Vec<Vec<u32>>,
    beams: Vec<Vec<u32>>,
}

fn run<B: Backend>(golden: &Golden, model: &LanguageModel<B>, prompts: &[Prompt], length: usize) -> Run {
    let queries = queries(golden);
    let logits =
        model.with_decoder(&queries, prompts, [prompts.len(), 1], |decoder| decoder.begin()).unwrap();
    let tokens = |search| {
        let decoding = Decoding { search, max_new_tokens: length, min_new_tokens: 0, ..Decoding::default() };
        let watch = &mut |_| ControlFlow::Continue(());
        let found = model.generate(&queries, prompts, None, &decoding, &[stop(golden)], watch).unwrap();
        found.into_iter().map(|mut texts| texts.swap_remove(0).tokens).collect()
    };
    Run { logits, greedy: tokens(Search::GREEDY), beams: tokens(Search::beams(3, 1.0)) }
}

fn numbers(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| x.into()).collect()
}

#[test]
fn a_gpu_says_what_the_cpu_says_but_for_rounding() {
    for name in GOLDENS {
        let golden = Golden::new(name);
        // Prompts of every length, few tokens: the simulated device is slow.
        let prompts = &prompts(&golden)[..4];
        let expected = run(&golden, &golden.open(Cpu::<f32>::new(), NumberType::F32), prompts, 5);
        let found = run(&golden, &golden.open(cuda().clone(), NumberType::F32), prompts, 5);
        let error = error(&found.logits, &numbers(&expected.logits));
        // bf16 keeps 8 bits; the difference of two layers' activations and weights rounded to it.
        assert!(error < 3e-2, "{name}: {error}");
        assert_eq!(found.greedy, expected.greedy, "{name}");
        assert_eq!(found.beams, expected.beams, "{name}");
    }
}

#[test]
fn weights_of_16_bits_say_what_weights_rounded_so_say() {
    for name in GOLDENS {
        let golden = Golden::new(name);
        let prompts = prompts(&golden);
        let whole = golden.open(Cpu::<f32>::new(), NumberType::F32);
        let expected = run(&golden, &whole, &prompts, 14);
        for (dtype, bound) in [(NumberType::F16, 2e-3), (NumberType::Bf16, 2e-2)] {
            let narrow = golden.open(Cpu::<f32>::new(), dtype);
            assert!(narrow.weight_bytes() < whole.weight_bytes() * 3 / 4, "{}", narrow.weight_bytes());
            let found = run(&golden, &narrow, &prompts, 14);
            // In double precision the same weights give the same but for what single precision leaves.
            let exact = run(&golden, &golden.open(Cpu::<f64>::new(), dtype), &prompts, 14);
            let rounding = error(&found.logits, &numbers(&exact.logits));
            assert!(rounding < 1e-5, "{name} {dtype:?}: {rounding}");
            let narrowing = error(&found.logits, &numbers(&expected.logits));
            assert!(narrowing > 1e-6 && narrowing < bound, "{name} {dtype:?}: {narrowing}");
            assert_eq!(found.greedy, exact.greedy, "{name} {dtype:?}");
        }
    }
}
