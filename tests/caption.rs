//! Captions by the Q-Former's own head, against LAVIS's loss (tests/golden/stage1) and against themselves.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/paths.rs"]
mod paths;

use cuda::cuda;
use qformer::config::Config;
use qformer::generate::{Decoding, NextToken, Search};
use qformer::ops::Backend;
use qformer::params::NamedCheckpoint;
use qformer::params::safetensors::Checkpoint;
use qformer::{Captioner, Cpu, HostTensor, QFormer};
use std::path::PathBuf;

/// `[DEC]` and `[SEP]`.
const ENDS: [u32; 2] = [138, 3];
const VOCABULARY: usize = 139;

fn golden() -> PathBuf {
    paths::path("tests/golden/stage1")
}

/// The batch's images have 17 tokens, as those of 4 by 4 patches.
fn config() -> Config {
    Config::load(&golden()).unwrap()
}

fn captioner<B: Backend>(device: B) -> Captioner<B> {
    let checkpoint = Checkpoint::open(&golden()).unwrap();
    Captioner::from_checkpoint(device, config(), &checkpoint, ENDS, &mut |_, _| ()).unwrap()
}

fn numbers(file: &str, name: &str) -> Vec<f64> {
    let bytes = std::fs::read(golden().join(file)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor(name).unwrap();
    let data = tensor.data();
    match tensor.dtype() {
        safetensors::Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
        safetensors::Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
        safetensors::Dtype::I64 => data.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f64).collect(),
        other => panic!("{other:?}"),
    }
}

/// Five images [5, N, 64] and their captions.
fn batch() -> (HostTensor, Vec<Vec<u32>>) {
    let values: Vec<f32> =
        numbers("batch.safetensors", "vision_output").into_iter().map(|x| x as f32).collect();
    let tokens = values.len() / (5 * 64);
    let (ids, mask) =
        (numbers("batch.safetensors", "input_ids"), numbers("batch.safetensors", "attention_mask"));
    let rows = ids.chunks(16).zip(mask.chunks(16));
    let real = |(ids, mask): (&[f64], &[f64])| {
        ids.iter().zip(mask).filter(|(_, m)| **m == 1.0).map(|(&id, _)| id as u32).collect()
    };
    (HostTensor::new(&[5, tokens, 64], values).unwrap(), rows.map(real).collect())
}

/// Log-probabilities [V] of each token that follows, read token by token: for every text one row after
/// each of its tokens but the last.
fn token_by_token<B: Backend>(
    captioner: &Captioner<B>,
    images: &HostTensor,
    texts: &[Vec<u32>],
) -> Vec<Vec<Vec<f64>>> {
    let longest = texts.iter().map(Vec::len).max().unwrap();
    let mut found = vec![Vec::new(); texts.len()];
    captioner
        .with_decoder(images, [texts.len(), longest], |decoder| {
            // Which text each sequence of the last call was; at first the images.
            let mut last: Vec<usize> = (0..texts.len()).collect();
            for place in 0..longest - 1 {
                // In another order each time.
                let mut now: Vec<usize> =
                    (0..texts.len()).filter(|&text| texts[text].len() > place + 1).collect();
                let turn = place % now.len();
                now.rotate_left(turn);
                let parents: Vec<usize> =
                    now.iter().map(|text| last.iter().position(|other| other == text).unwrap()).collect();
                let token = |&text: &usize| if place == 0 { ENDS[0] } else { texts[text][place] };
                let logits = decoder.advance(&parents, &now.iter().map(token).collect::<Vec<u32>>())?;
                for (&text, row) in now.iter().zip(logits.chunks(VOCABULARY)) {
                    let total = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                    found[text].push(row.iter().map(|&x| f64::from(x) - total).collect());
                }
                last = now;
            }
            Ok(())
        })
        .unwrap();
    found
}

#[test]
fn the_loss_token_by_token_is_that_of_lavis() {
    let (images, texts) = batch();
    let found = token_by_token(&captioner(Cpu::<f32>::new()), &images, &texts);
    let (mut loss, mut count) = (0.0, 0.0);
    for (text, rows) in texts.iter().zip(&found) {
        for (row, &next) in rows.iter().zip(&text[1..]) {
            loss -= 0.9 * row[next as usize] + 0.1 * row.iter().sum::<f64>() / VOCABULARY as f64;
            count += 1.0;
        }
    }
    let expected = numbers("expected.safetensors", "losses")[3];
    assert!((loss / count - expected).abs() < 1e-5 * expected, "{} {expected}", loss / count);
}

fn whole_texts_and_tokens_agree<B: Backend>(device: B, tolerance: f64) {
    let (captioner, (images, texts)) = (captioner(device), batch());
    let own: Vec<(usize, usize)> = (0..5).map(|i| (i, i)).collect();
    let whole = captioner.caption_loss(&images, &texts, &own).unwrap();
    let tokens = token_by_token(&captioner, &images, &texts);
    for ((text, rows), whole) in texts.iter().zip(tokens).zip(whole) {
        assert_eq!(whole.tokens, text.len() - 1);
        let loss: f64 = rows.iter().zip(&text[1..]).map(|(row, &next)| -row[next as usize]).sum();
        assert!((loss - whole.loss).abs() < tolerance * loss, "{loss} {}", whole.loss);
    }
}

#[test]
fn a_text_token_by_token_is_foreseen_as_the_whole_text_is() {
    // What single precision leaves of sums in different orders; in double precision, results are handed
    // out as f32.
    whole_texts_and_tokens_agree(Cpu::<f32>::new(), 1e-5);
    whole_texts_and_tokens_agree(Cpu::<f64>::new(), 1e-6);
}

#[test]
fn the_gpu_foresees_token_by_token_what_it_foresees_whole() {
    // bf16 keeps 8 bits; the two ways round differently.
    whole_texts_and_tokens_agree(cuda().clone(), 2e-2);
}

#[test]
fn several_texts_of_one_image_are_each_foreseen_as_alone() {
    let (captioner, (images, texts)) = (captioner(Cpu::<f64>::new()), batch());
    let pairs: Vec<(usize, usize)> = (0..40).map(|i| (i * 7 % 5, i * 3 % 5)).collect();
    let together = captioner.caption_loss(&images, &texts, &pairs).unwrap();
    for (pair, together) in pairs.iter().zip(together) {
        let alone = captioner.caption_loss(&images, &texts, &[*pair]).unwrap()[0];
        assert!((alone.loss - together.loss).abs() < 1e-6 * alone.loss, "{pair:?}");
    }
}

/// Greedy search, by trying every token at the end of the text.
#[test]
fn greedy_search_takes_the_token_that_is_foreseen_best() {
    let (captioner, (images, _)) = (captioner(Cpu::<f64>::new()), batch());
    let decoding =
        Decoding { search: Search::GREEDY, max_new_tokens: 5, min_new_tokens: 3, ..Decoding::default() };
    let found = captioner.caption(&images, &decoding).unwrap();
    for (image, found) in found.iter().enumerate() {
        let mut text = vec![0];
        let mut loss = 0.0;
        while text.len() < 6 {
            let tried: Vec<Vec<u32>> =
                (0..VOCABULARY as u32).map(|token| [&text[..], &[token]].concat()).collect();
            let pairs: Vec<(usize, usize)> = (0..VOCABULARY).map(|token| (image, token)).collect();
            let losses = captioner.caption_loss(&images, &tried, &pairs).unwrap();
            let may_end = text.len() >= 4;
            let allowed = (0..VOCABULARY).filter(|&token| may_end || token != ENDS[1] as usize);
            let best = allowed.min_by(|&a, &b| losses[a].loss.total_cmp(&losses[b].loss)).unwrap();
            (text, loss) = (tried[best].clone(), losses[best].loss);
            if best == ENDS[1] as usize {
                break;
            }
        }
        let tokens: Vec<u32> = text[1..].iter().copied().filter(|&token| token != ENDS[1]).collect();
        assert_eq!(found[0].tokens, tokens, "image {image}");
        let score = -loss / (text.len() - 1) as f64;
        assert!((found[0].score - score).abs() < 1e-5, "{} {score}", found[0].score);
    }
}

/// The score of every caption is what the whole text's loss says it is.
#[test]
fn beams_are_in_order_and_their_scores_those_of_the_whole_texts() {
    let (captioner, (images, _)) = (captioner(Cpu::<f64>::new()), batch());
    let search = Search::beams(4, 0.5);
    let decoding =
        Decoding { search, max_new_tokens: 8, min_new_tokens: 2, sequences: 4, ..Decoding::default() };
    for (image, found) in captioner.caption(&images, &decoding).unwrap().into_iter().enumerate() {
        assert_eq!(found.len(), 4);
        assert!(found.windows(2).all(|pair| pair[0].score >= pair[1].score));
        for caption in found {
            let mut text = [&[0], &caption.tokens[..]].concat();
            if text.len() < 9 {
                text.push(ENDS[1]);
            }
            let loss =
                captioner.caption_loss(&images, std::slice::from_ref(&text), &[(image, 0)]).unwrap()[0];
            let score = -loss.loss / (loss.tokens as f64).sqrt();
            assert!((caption.score - score).abs() < 1e-5, "{caption:?} {score}");
        }
    }
}

#[test]
fn a_batch_of_several_passes_is_captioned_as_its_members_are() {
    let (captioner, (images, _)) = (captioner(Cpu::<f32>::new()), batch());
    let per_image = images.values().len() / 5;
    let count = 2 * 5;
    let twice = HostTensor::new(&[count, images.shape()[1], 64], images.values().repeat(2)).unwrap();
    let drawn = |first| Decoding {
        search: Search::Sample { top_k: 50, top_p: 0.9, temperature: 1.0, seed: 4, first },
        max_new_tokens: 7,
        min_new_tokens: 1,
        sequences: 2,
        ..Decoding::default()
    };
    let searched = Decoding { max_new_tokens: 7, min_new_tokens: 1, ..Decoding::default() };
    let [all_drawn, all_searched] = [drawn(0), searched].map(|d| captioner.caption(&twice, &d).unwrap());
    for image in 0..count {
        let place = image % 5 * per_image;
        let values = images.values()[place..place + per_image].to_vec();
        let one = HostTensor::new(&[1, images.shape()[1], 64], values).unwrap();
        let tokens =
            |captions: &[qformer::Caption]| captions.iter().map(|c| c.tokens.clone()).collect::<Vec<_>>();
        let alone = captioner.caption(&one, &drawn(image as u64)).unwrap();
        assert_eq!(tokens(&alone[0]), tokens(&all_drawn[image]), "image {image}");
        let alone = captioner.caption(&one, &searched).unwrap();
        assert_eq!(tokens(&alone[0]), tokens(&all_searched[image]), "image {image}");
    }
    assert_ne!(all_drawn[0], all_drawn[5], "the same image drawn anew");
}

#[test]
fn what_cannot_be_captioned_is_refused_with_the_remedy() {
    let checkpoint = Checkpoint::open(&golden()).unwrap();
    let named = NamedCheckpoint::new(&checkpoint).unwrap();
    let model =
        || QFormer::from_checkpoint(Cpu::<f32>::new(), config(), &checkpoint, &mut |_, _| ()).unwrap();
    let error = Captioner::new(model(), &named, [139, 3]).err().unwrap().to_string();
    assert!(error.contains("139") && error.contains("vocab_size"), "{error}");

    let captioner = Captioner::new(model(), &named, ENDS).unwrap();
    let (images, texts) = batch();
    let long = Decoding { max_new_tokens: 64, ..Decoding::default() };
    let error = captioner.caption(&images, &long).unwrap_err().to_string();
    assert!(error.contains("65") && error.contains("64") && error.contains("`max_new_tokens`"), "{error}");
    let wrong = HostTensor::new(&[1, 2, 64], vec![0.0; 128]).unwrap();
    assert!(captioner.caption(&wrong, &Decoding::default()).unwrap_err().to_string().contains("[1, 2, 64]"));
    let mut spoilt = images.clone();
    spoilt.values_mut()[0] = f32::NAN;
    let error = captioner.caption(&spoilt, &Decoding::default()).unwrap_err().to_string();
    assert!(error.contains("not a number"), "{error}");
    let error = captioner.caption_loss(&images, &[vec![2]], &[(0, 0)]).unwrap_err().to_string();
    assert!(error.contains("text 0"), "{error}");
    let error = captioner.caption_loss(&images, &texts, &[(5, 0)]).unwrap_err().to_string();
    assert!(error.contains("(5, 0)"), "{error}");
}

#[test]
fn a_checkpoint_of_hugging_face_is_refused_since_it_has_no_head() {
    let error =
        Captioner::load(Cpu::<f32>::new(), paths::path("tests/golden/retrieval/model")).err().unwrap();
    let error = error.to_string();
    for fragment in ["cls.predictions", "Hugging Face", ".pth", "qformer train"] {
        assert!(error.contains(fragment), "{error}");
    }
}

#[test]
fn sequences_that_cannot_go_on_are_refused() {
    let (captioner, (images, _)) = (captioner(Cpu::<f32>::new()), batch());
    let advance = |steps: &[(&[usize], &[u32])]| {
        let found = captioner.with_decoder(&images, [6, 3], |decoder| {
            steps.iter().try_for_each(|(parents, tokens)| decoder.advance(parents, tokens).map(drop))
        });
        found.map_err(|error| error.to_string())
    };
    let two: (&[usize], &[u32]) = (&[3, 4], &[ENDS[0]; 2]);
    advance(&[two, (&[1, 0], &[5, 6])]).unwrap();
    for (steps, fragment) in [
        (&[(&[5][..], &[5][..])][..], "number 5, but there are 5"),
        (&[two, (&[0, 2], &[5, 5])], "number 2, but there are 2"),
        (&[two, (&[0, 1], &[5])], "2 sequences go on with 1 tokens"),
        (&[two, (&[], &[])], "0 sequences"),
        (&[two, (&[0, 1], &[5, 139])], "token 139, but the vocabulary has 139"),
        (&[two, (&[0; 10], &[5; 10])], "10 sequences of 2 tokens are more than"),
    ] {
        let error = advance(steps).unwrap_err();
        assert!(error.contains(fragment), "{error}");
    }
    let none = HostTensor::new(&[0, images.shape()[1], 64], Vec::new()).unwrap();
    let error = captioner.with_decoder(&none, [1, 8], |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("no image"), "{error}");
    let search = Search::beams(usize::MAX, 1.0);
    let error = captioner.caption(&images, &Decoding { search, ..Decoding::default() }).unwrap_err();
    assert!(error.to_string().contains("lower `beams`"), "{error}");
}
