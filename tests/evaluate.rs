//! Evaluation against ranks by sorting whole matrices of scores, as LAVIS finds them.

#[path = "support/paths.rs"]
mod paths;
#[path = "support/random.rs"]
mod random;

use qformer::config::{Config, VisionConfig, VitConfig};
use qformer::evaluate::{Captions, Images, MatchingLogits, captioning, retrieval};
use qformer::models::qformer::Abilities;
use qformer::params::safetensors::Checkpoint;
use qformer::{Captioner, Cpu, HostTensor, Matching, QFormer};
use random::{RandomWeights, random};
use std::ops::Range;

fn config() -> Config {
    let mut config = Config::tiny();
    config.num_query_tokens = 4;
    config.image_text_hidden_size = 16;
    let vision = config.vision.encoder().unwrap().clone();
    config.vision = VisionConfig::Eva(VitConfig { hidden_size: 48, num_attention_heads: 1, ..vision });
    config.qformer.encoder_hidden_size = 48;
    config.qformer.hidden_size = 64;
    config.qformer.num_attention_heads = 2;
    config.qformer.intermediate_size = 96;
    config.qformer.num_hidden_layers = 2;
    config.qformer.cross_attention_frequency = 1;
    config.qformer.vocab_size = 50;
    config.qformer.max_position_embeddings = 20;
    config.validate().unwrap();
    config
}

/// More images than a pass takes; one has no caption, others have several.
const IMAGES: usize = 19;
const OWNERS: [u32; 26] =
    [0, 0, 1, 2, 2, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 12, 13, 14, 15, 15, 16, 17, 18, 18, 18, 1];

fn model() -> QFormer<Cpu> {
    let abilities = Abilities { text: true, retrieval: true };
    QFormer::from_source(Cpu::new(), config(), abilities, &RandomWeights, &mut |_, _| ()).unwrap()
}

fn images() -> HostTensor {
    let config = config();
    let shape = [IMAGES, config.image_tokens(), config.vision.width()];
    HostTensor::new(&shape, random("images", shape.iter().product())).unwrap()
}

fn texts() -> Vec<Vec<u32>> {
    (0..OWNERS.len() as u32).map(|t| (0..3 + t % 5).map(|i| (i * 13 + t * 7 + 1) % 50).collect()).collect()
}

fn part(images: &HostTensor, range: Range<usize>) -> HostTensor {
    let per_image = images.values().len() / images.shape()[0];
    let values = images.values()[range.start * per_image..range.end * per_image].to_vec();
    HostTensor::new(&[range.len(), images.shape()[1], images.shape()[2]], values).unwrap()
}

/// Recall at 1, 5 and 10 for rows of scores: the best place of those a row `owns`, after sorting.
fn recall(rows: &[Vec<f64>], owns: impl Fn(usize, usize) -> bool) -> [f64; 3] {
    let mut places = Vec::new();
    for (row, scores) in rows.iter().enumerate() {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
        places.extend(order.iter().position(|&column| owns(row, column)));
    }
    [1, 5, 10].map(|k| places.iter().filter(|&&place| place < k).count() as f64 / places.len() as f64)
}

fn transposed(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    (0..rows[0].len()).map(|column| rows.iter().map(|row| row[column]).collect()).collect()
}

/// The `k` largest of every row are scored anew; the others keep their order behind them.
fn reranked(rows: &[Vec<f64>], anew: &[Vec<f64>], k: usize) -> Vec<Vec<f64>> {
    let row = |(row, anew): (&Vec<f64>, &Vec<f64>)| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        let candidates = &order[..k.min(order.len())];
        (0..row.len()).map(|i| if candidates.contains(&i) { anew[i] } else { row[i] - 100.0 }).collect()
    };
    rows.iter().zip(anew).map(row).collect()
}

/// In each row the highest of the columns that are not its own.
fn hardest(scores: &[Vec<f64>], owns: impl Fn(usize, usize) -> bool) -> Vec<usize> {
    scores
        .iter()
        .enumerate()
        .map(|(row, scores)| {
            let others = (0..scores.len()).filter(|&column| !owns(row, column));
            others.max_by(|&a, &b| scores[a].total_cmp(&scores[b])).unwrap()
        })
        .collect()
}

#[test]
fn retrieval_is_that_of_sorted_matrices() {
    let (model, images, texts) = (model(), images(), texts());
    let features = model.encode_image(&images).unwrap().features.unwrap();
    let similarity = model.similarity(&features, &model.encode_text(&texts).unwrap()).unwrap();
    let itc: Vec<Vec<f64>> =
        similarity.values().chunks(texts.len()).map(|row| row.iter().map(|&x| x.into()).collect()).collect();
    let pairs: Vec<(usize, usize)> =
        (0..IMAGES).flat_map(|i| (0..texts.len()).map(move |t| (i, t))).collect();
    let matches = model.match_score(&images, &texts, &pairs, Matching::Classifier).unwrap();
    let logits: Vec<Vec<[f64; 2]>> = matches
        .chunks(texts.len())
        .map(|row| row.iter().map(|m| m.logits.unwrap().map(f64::from)).collect())
        .collect();
    let score: Vec<Vec<f64>> = logits
        .iter()
        .zip(&itc)
        .map(|(logits, itc)| logits.iter().zip(itc).map(|(logits, cosine)| logits[1] + cosine).collect())
        .collect();

    let owns = |image: usize, text: usize| OWNERS[text] as usize == image;
    let hardest_images = hardest(&transposed(&itc), |text, image| owns(image, text));
    let hardest_texts = hardest(&itc, owns);
    let negatives = hardest_images.into_iter().enumerate().map(|(text, image)| (image, text));
    let negatives: Vec<(usize, usize)> = negatives.chain(hardest_texts.into_iter().enumerate()).collect();
    let yes = |&(image, text): &(usize, usize)| logits[image][text][1] > logits[image][text][0];
    let positives: Vec<(usize, usize)> = OWNERS.iter().enumerate().map(|(t, &i)| (i as usize, t)).collect();
    let found = positives.iter().filter(|pair| yes(pair)).count() as f64;
    let rejected = negatives.iter().filter(|pair| !yes(pair)).count() as f64;
    assert!(found > 0.0 && rejected > 0.0, "a head that always says the same tests little");

    for rerank in [1, 4, 128] {
        let mut reads = Vec::new();
        let mut read = |range: Range<usize>| {
            reads.push(range.clone());
            Ok(part(&images, range))
        };
        let mut steps = Vec::new();
        let set = Images { count: IMAGES, read: &mut read };
        let captions = Captions { tokens: &texts, images: &OWNERS };
        let evaluated =
            retrieval(&model, set, captions, rerank, MatchingLogits::Classifier, &mut |_, done, total| {
                steps.push((done, total))
            })
            .unwrap();
        assert_eq!(evaluated.itc.image_to_text, recall(&itc, owns));
        assert_eq!(evaluated.itc.text_to_image, recall(&transposed(&itc), |text, image| owns(image, text)));
        let expected = recall(&reranked(&itc, &score, rerank), owns);
        assert_eq!(evaluated.reranked.image_to_text, expected, "rerank {rerank}");
        let expected = reranked(&transposed(&itc), &transposed(&score), rerank);
        let expected = recall(&expected, |text, image| owns(image, text));
        assert_eq!(evaluated.reranked.text_to_image, expected, "rerank {rerank}");
        let (true_pairs, false_pairs) = (positives.len() as f64, negatives.len() as f64);
        assert_eq!(evaluated.matching.positives, found / true_pairs);
        assert_eq!(evaluated.matching.negatives, Some(rejected / false_pairs));
        assert_eq!(evaluated.matching.all, (found + rejected) / (true_pairs + false_pairs));
        // Twice over all images, a few at a time.
        assert_eq!(reads.iter().map(Range::len).sum::<usize>(), 2 * IMAGES);
        assert!(reads.iter().all(|range| range.len() < IMAGES));
        assert!(steps.last().is_some_and(|(done, total)| done == total), "{steps:?}");
    }
}

#[test]
fn equal_scores_come_in_the_order_of_their_numbers() {
    let (model, config) = (model(), config());
    // Two images that are the same, with two texts that are.
    let one = part(&images(), 0..1);
    let same = HostTensor::new(&[2, config.image_tokens(), 48], one.values().repeat(2)).unwrap();
    let texts = vec![vec![1, 2, 3]; 2];
    let mut read = |range: Range<usize>| Ok(part(&same, range));
    let set = Images { count: 2, read: &mut read };
    let captions = Captions { tokens: &texts, images: &[0, 1] };
    let evaluated =
        retrieval(&model, set, captions, 1, MatchingLogits::Classifier, &mut |_, _, _| ()).unwrap();
    for recalls in [evaluated.itc, evaluated.reranked] {
        assert_eq!((recalls.image_to_text, recalls.text_to_image), ([0.5, 1.0, 1.0], [0.5, 1.0, 1.0]));
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let (model, images, texts) = (model(), images(), texts());
    let mut read = |range: Range<usize>| Ok(part(&images, range));
    let mut evaluate = |count, tokens: &[Vec<u32>], owners: &[u32]| {
        let set = Images { count, read: &mut read };
        let captions = Captions { tokens, images: owners };
        retrieval(&model, set, captions, 1, MatchingLogits::Classifier, &mut |_, _, _| ())
            .unwrap_err()
            .to_string()
    };
    assert!(evaluate(3, &texts, &OWNERS).contains("image 3"));
    assert!(evaluate(IMAGES, &texts, &OWNERS[1..]).contains("26 texts"));
    assert!(evaluate(IMAGES, &[], &[]).contains("no text"));
    let mut spoilt = images.clone();
    spoilt.values_mut()[0] = f32::NAN;
    let set = Images { count: IMAGES, read: &mut |range| Ok(part(&spoilt, range)) };
    let captions = Captions { tokens: &texts, images: &OWNERS };
    let error = retrieval(&model, set, captions, 1, MatchingLogits::Classifier, &mut |_, _, _| ())
        .unwrap_err()
        .to_string();
    assert!(error.contains("image 0 and text 0"), "{error}");
}

#[test]
fn features_of_another_number_of_images_are_refused() {
    let (model, images, texts) = (model(), images(), texts());
    for size in [0, 1, IMAGES] {
        let mut read = |_: Range<usize>| Ok(part(&images, 0..size));
        let set = Images { count: IMAGES, read: &mut read };
        let captions = Captions { tokens: &texts, images: &OWNERS };
        let error = retrieval(&model, set, captions, 1, MatchingLogits::Classifier, &mut |_, _, _| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains(&format!("shape [{size}, ")) && error.contains("images 0.."), "{error}");
    }
}

#[test]
fn perplexity_is_that_of_every_token_once() {
    let golden = paths::path("tests/golden/stage1");
    let (config, checkpoint) = (Config::load(&golden).unwrap(), Checkpoint::open(&golden).unwrap());
    let shape = [IMAGES, config.image_tokens(), config.vision.width()];
    let images = HostTensor::new(&shape, random("images", shape.iter().product())).unwrap();
    let captioner =
        Captioner::from_checkpoint(Cpu::<f64>::new(), config, &checkpoint, [138, 3], &mut |_, _| ()).unwrap();
    let texts = texts();
    let mut read = |range: Range<usize>| Ok(part(&images, range));
    let set = Images { count: IMAGES, read: &mut read };
    let captions = Captions { tokens: &texts, images: &OWNERS };
    let found = captioning(&captioner, set, captions, &mut |_, _, _| ()).unwrap();
    let (mut loss, mut tokens) = (0.0, 0);
    for (text, &image) in OWNERS.iter().enumerate() {
        let alone = part(&images, image as usize..image as usize + 1);
        let one = captioner.caption_loss(&alone, &texts, &[(0, text)]).unwrap()[0];
        assert_eq!(one.tokens, texts[text].len() - 1);
        loss += one.loss;
        tokens += one.tokens;
    }
    assert_eq!(found.tokens, tokens);
    // Handed out as f32.
    assert!((found.loss - loss / tokens as f64).abs() < 1e-6 * found.loss, "{} {loss}", found.loss);
    assert_eq!(found.perplexity(), found.loss.exp());
}
