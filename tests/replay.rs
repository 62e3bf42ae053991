//! Work that is recorded and replayed on the GPU: the same bits as the same work done kernel by kernel, whatever
//! was in its memory before, and whichever texts it was recorded with.

#[path = "support/cuda.rs"]
mod cuda;
#[path = "support/random.rs"]
mod random;

use cuda::cuda;
use qformer::config::{VisionConfig, VitConfig};
use qformer::device::Device;
use qformer::generate::{Decoding, NextToken, Search};
use qformer::memory::Arena;
use qformer::models::qformer::{Abilities, Decoder};
use qformer::ops::adamw::AdamW;
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::params::Part;
use qformer::train::{Batch, Hardness, Losses, Recompute, Stage1, Stage1Options, StepPart, StepSize};
use qformer::{Captioner, Config, Cuda, HostTensor, Matching, QFormer, VisionEncoder};
use random::{RandomWeights, random};

const WORDS: u32 = 50;
/// Images of a batch.
const IMAGES: usize = 3;

fn config() -> Config {
    let mut config = Config::tiny();
    config.num_query_tokens = 4;
    config.image_text_hidden_size = 16;
    let vision = config.vision.encoder().unwrap().clone();
    config.vision = VisionConfig::Eva(VitConfig { hidden_size: 48, num_attention_heads: 1, ..vision });
    config.qformer.encoder_hidden_size = 48;
    config.qformer.hidden_size = 64;
    config.qformer.intermediate_size = 96;
    config.qformer.num_hidden_layers = 2;
    config.qformer.vocab_size = WORDS as usize;
    config.validate().unwrap();
    config
}

fn images(name: &str) -> HostTensor {
    some_images(IMAGES, name)
}

fn some_images(count: usize, name: &str) -> HostTensor {
    let config = config();
    let shape = [count, config.image_tokens(), config.vision.width()];
    HostTensor::new(&shape, random(name, shape.iter().product())).unwrap()
}

/// Texts of so many tokens each.
fn texts<const N: usize>(lengths: [u32; N], seed: u32) -> Vec<Vec<u32>> {
    let text = |length: u32| (0..length).map(|i| 1 + (i * 13 + length + 7 * seed) % (WORDS - 1)).collect();
    lengths.map(text).to_vec()
}

fn retrieval() -> QFormer<Cuda> {
    let abilities = Abilities { text: true, retrieval: true };
    QFormer::from_source(cuda().clone(), config(), abilities, &RandomWeights, &mut |_, _| ()).unwrap()
}

#[test]
fn work_is_done_then_recorded_and_from_then_on_replayed() {
    let device = cuda();
    let mut arena = Arena::sized(device, "a test", 64).unwrap();
    let (mut replay, mut calls) = (<Cuda as Device>::Replay::default(), 0);
    for _ in 0..4 {
        let mut words = arena.cursor().take::<u32>(1, 3);
        device.write_indices(&[1, 2, 3], words.reborrow()).unwrap();
        let work = || {
            calls += 1;
            device.clear(words.reborrow().split_columns(2).0)
        };
        // SAFETY: the same words of the same arena each time.
        unsafe { device.replay(&mut replay, work) }.unwrap();
        assert_eq!(device.read_indices(words.view()).unwrap(), [0, 0, 3]);
    }
    assert_eq!(calls, 2);
}

#[test]
fn replayed_passes_over_text_have_the_bits_of_a_fresh_model() {
    // 26, 32, 25 and 16 tokens: all are filled up to 32.
    let batches =
        [texts([1, 14, 8, 3], 0), texts([2, 20, 5, 5], 1), texts([9, 2, 6, 8], 2), texts([4; 4], 3)];
    let fresh: Vec<HostTensor> =
        batches.iter().map(|batch| retrieval().encode_text(batch).unwrap()).collect();
    let model = retrieval();
    for _ in 0..2 {
        for (batch, fresh) in batches.iter().zip(&fresh) {
            assert_eq!(&model.encode_text(batch).unwrap(), fresh);
        }
    }
    assert_ne!(fresh[0], fresh[1]);
}

#[test]
fn replayed_joint_passes_have_the_bits_of_a_fresh_model() {
    let images = [images("first"), images("second"), images("third")];
    let texts = [texts([1, 14, 8], 0), texts([11, 5, 2], 1), texts([7, 7, 7], 2)];
    // As many pairs, of other images and other texts: 31, 32 and 28 tokens, filled up to 32.
    let pairs = [
        [(0, 0), (0, 1), (1, 2), (2, 2)],
        [(2, 0), (2, 1), (1, 0), (0, 1)],
        [(0, 2), (1, 1), (1, 0), (0, 1)],
    ];
    for matching in [Matching::Classifier, Matching::MaxSimilarity] {
        let score = |model: &QFormer<Cuda>, i: usize| {
            let matches = model.match_score(&images[i], &texts[i], &pairs[i], matching).unwrap();
            matches.iter().map(|m| (m.score, m.logits)).collect::<Vec<_>>()
        };
        let fresh = [0, 1, 2].map(|i| score(&retrieval(), i));
        let model = retrieval();
        for _ in 0..2 {
            for (i, fresh) in fresh.iter().enumerate() {
                assert_eq!(&score(&model, i), fresh, "{matching:?} {i}");
            }
        }
        assert_ne!(fresh[0], fresh[1]);
    }
}

#[test]
fn a_replayed_image_encoder_has_the_bits_of_a_fresh_one() {
    let encoder =
        || VisionEncoder::from_source(cuda().clone(), &config(), &RandomWeights, &mut |_, _| ()).unwrap();
    let side = config().vision.encoder().unwrap().image_size;
    let pixels = ["first", "second", "third"]
        .map(|name| HostTensor::new(&[2, 3, side, side], random(name, 2 * 3 * side * side)).unwrap());
    let fresh = pixels.each_ref().map(|pixels| encoder().encode(pixels).unwrap());
    let encoder = encoder();
    for (pixels, fresh) in pixels.iter().zip(&fresh).cycle().take(4) {
        assert_eq!(&encoder.encode(pixels).unwrap(), fresh);
    }
    assert_ne!(fresh[0], fresh[1]);
}

fn captioner() -> Captioner<Cuda> {
    let abilities = Abilities { text: true, retrieval: false };
    let model = QFormer::from_source(cuda().clone(), config(), abilities, &RandomWeights, &mut |_, _| ());
    Captioner::new(model.unwrap(), &RandomWeights, [WORDS - 1, 2]).unwrap()
}

#[test]
fn replayed_captions_are_those_of_a_fresh_model() {
    let images = ["first", "second", "third"].map(images);
    let search = Search::beams(2, 1.0);
    let decoding = Decoding { search, max_new_tokens: 5, min_new_tokens: 3, ..Decoding::default() };
    let fresh = images.each_ref().map(|images| captioner().caption(images, &decoding).unwrap());
    let captioner = captioner();
    for (images, fresh) in images.iter().zip(&fresh).cycle().take(4) {
        assert_eq!(&captioner.caption(images, &decoding).unwrap(), fresh);
    }
    assert_ne!(fresh[0], fresh[1]);
}

#[test]
fn captions_are_those_of_a_fresh_model_when_their_memory_has_moved() {
    let (images, texts, pairs) = (images("first"), texts([14, 8], 0), [(0, 0), (2, 1)]);
    let of = |beams, max_new_tokens| {
        let search = Search::beams(beams, 1.0);
        Decoding { search, max_new_tokens, min_new_tokens: 3, ..Decoding::default() }
    };
    let caption = |captioner: &Captioner<Cuda>, decoding| captioner.caption(&images, decoding).unwrap();
    let losses = |captioner: &Captioner<Cuda>| captioner.caption_loss(&images, &texts, &pairs).unwrap();
    let (short, long) = (of(1, 4), of(4, 8));
    let fresh = [&short, &long].map(|decoding| caption(&captioner(), decoding));
    let fresh_losses = losses(&captioner());
    let captioner = captioner();
    // Whatever comes twice is recorded; the first of the short captions and of the long ones need more memory.
    (0..2).for_each(|_| assert_eq!(losses(&captioner), fresh_losses));
    (0..2).for_each(|_| assert_eq!(caption(&captioner, &short), fresh[0]));
    assert_eq!(caption(&captioner, &long), fresh[1]);
    assert_eq!(caption(&captioner, &short), fresh[0]);
    assert_eq!(losses(&captioner), fresh_losses);
}

#[test]
fn replayed_losses_of_captions_have_the_bits_of_a_fresh_model() {
    // 33, 30 and 36 tokens, of which four fewer are foreseen: filled up to 32.
    let batches = [texts([14, 8, 8, 3], 0), texts([5, 20, 3, 2], 1), texts([9, 12, 5, 10], 2)];
    let pairs = [(0, 0), (2, 1), (1, 2), (1, 3)];
    let images = images("first");
    let losses = |captioner: &Captioner<Cuda>, texts: &[Vec<u32>]| {
        captioner.caption_loss(&images, texts, &pairs).unwrap()
    };
    let fresh = batches.each_ref().map(|texts| losses(&captioner(), texts));
    let captioner = captioner();
    for (texts, fresh) in batches.iter().zip(&fresh).cycle().take(4) {
        assert_eq!(&losses(&captioner, texts), fresh);
    }
    assert_ne!(fresh[0], fresh[1]);
}

/// −ln p of each text, read token by token after the image of its place.
fn losses_of_tokens(captioner: &Captioner<Cuda>, images: &HostTensor, texts: &[Vec<u32>]) -> Vec<f64> {
    let length = texts[0].len();
    let mut losses = vec![0.0; texts.len()];
    let read = |decoder: &mut Decoder<'_, Cuda>| {
        for place in 0..length - 1 {
            // Each text goes on from its own past, which lies elsewhere every time.
            let turned = |place: usize| (0..texts.len()).map(move |row| (row + place) % IMAGES);
            let before: Vec<usize> = if place == 0 { vec![0, 1, 2] } else { turned(place - 1).collect() };
            let parent = |text| before.iter().position(|&other| other == text).unwrap();
            let token = |text: usize| if place == 0 { WORDS - 1 } else { texts[text][place] };
            let tokens: Vec<u32> = turned(place).map(token).collect();
            let logits = decoder.advance(&turned(place).map(parent).collect::<Vec<_>>(), &tokens)?;
            for (text, row) in turned(place).zip(logits.chunks(WORDS as usize)) {
                let total = row.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln();
                losses[text] += total - f64::from(row[texts[text][place + 1] as usize]);
            }
        }
        Ok(())
    };
    captioner.with_decoder(images, [IMAGES, length], read).unwrap();
    losses
}

#[test]
fn what_was_recorded_of_one_token_reads_those_at_every_other_place() {
    // All but the first two tokens are read by what was recorded of the second.
    let (images, texts) = (images("first"), texts([18; IMAGES], 1));
    let texts: Vec<Vec<u32>> =
        (0..).zip(texts).map(|(i, text)| text.iter().map(|t| (t * (i + 1)) % WORDS).collect()).collect();
    let captioner = captioner();
    let first = losses_of_tokens(&captioner, &images, &texts);
    assert_eq!(losses_of_tokens(&captioner, &images, &texts), first);
    let whole = captioner.caption_loss(&images, &texts, &[(0, 0), (1, 1), (2, 2)]).unwrap();
    for (loss, whole) in first.iter().zip(whole) {
        assert!((loss - whole.loss).abs() < 5e-3 * whole.loss, "{loss} {}", whole.loss);
    }
}

fn options(matching: Matching, recompute: Recompute) -> Stage1Options {
    Stage1Options {
        weights: [1.0; 3],
        smoothing: 0.1,
        dropout: 0.1,
        hardness: Hardness::Sampled,
        contrastive_gradient: ContrastiveGradient::OneSided,
        matching,
        recompute,
        start_token: WORDS - 1,
        seed: 5,
    }
}

/// Batches whose texts are filled up to the same number of rows in both phases. In the second, a text is the only
/// negative of two images, and these are its; the third has no negative at all.
fn batches() -> [Batch; 3] {
    // 30, 31 and 29 tokens, filled up to 32; in the second phase there is room for 128.
    let of = |(lengths, name, ids): ([u32; IMAGES], _, [u32; IMAGES])| {
        Batch::new(&config(), images(name), texts(lengths, lengths[1]), ids.to_vec()).unwrap()
    };
    [([10, 10, 10], "first", [4, 5, 6]), ([11, 10, 10], "second", [4, 4, 6]), ([10, 9, 10], "third", [5; 3])]
        .map(of)
}

fn stage1(options: &Stage1Options) -> Stage1<Cuda> {
    Stage1::new(cuda().clone(), config(), options.clone(), &RandomWeights).unwrap()
}

/// Losses and gradients.
fn found(model: &Stage1<Cuda>, losses: &Losses) -> (Vec<f64>, Vec<f32>) {
    let mut gradients = Vec::new();
    let each = |_: &Part, found: HostTensor| {
        gradients.extend(found.into_values());
        Ok(())
    };
    model.weights().for_each_gradient(model.device(), each).unwrap();
    let Losses { total, contrastive, matching, captioning, matching_accuracy, recall } = *losses;
    (vec![total, contrastive, matching, captioning, matching_accuracy, recall[0], recall[1]], gradients)
}

#[test]
fn replayed_steps_have_the_bits_of_steps_done_kernel_by_kernel() {
    for (matching, recompute) in
        [(Matching::Classifier, Recompute::None), (Matching::MaxSimilarity, Recompute::Blocks)]
    {
        let options = options(matching, recompute);
        let (mut replayed, mut direct) = (stage1(&options), stage1(&options));
        for (step, batch) in batches().iter().cycle().take(4).enumerate() {
            let step = step + 1;
            let batch = std::slice::from_ref(batch);
            let adamw = |max_norm| AdamW {
                beta1: 0.9,
                beta2: 0.98,
                epsilon: 1e-8,
                weight_decay: 0.05,
                max_norm: Some(max_norm),
            };
            let losses = replayed.differentiate(batch, step).unwrap();
            let of_replayed = found(&replayed, &losses);
            let losses = direct.differentiate_observed(batch, step, &mut |_| Ok(())).unwrap();
            assert!(of_replayed == found(&direct, &losses), "step {step}");
            assert!(of_replayed.1.iter().all(|g| g.is_finite()) && losses.total.is_finite());
            // Constants that were not there before are never replayed; no gradient is as large as these.
            let rate = 1e-3 / step as f64;
            let norm = replayed.update(adamw(1e9), rate, step).unwrap();
            assert_eq!(norm, direct.update(adamw(1e9 + step as f64), rate, step).unwrap());
        }
    }
}

#[test]
fn an_update_with_other_constants_is_not_the_one_that_was_recorded() {
    let options = options(Matching::Classifier, Recompute::None);
    let [batch, ..] = batches();
    let batch = std::slice::from_ref(&batch);
    let adamw = |max_norm, weight_decay| AdamW {
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-8,
        weight_decay,
        max_norm: Some(max_norm),
    };
    let (run, like_it, other) = (adamw(1e9, 0.05), adamw(2e9, 0.05), adamw(0.1, 0.5));
    // What three updates make of a step.
    let after = |constants: [AdamW; 3]| {
        let mut model = stage1(&options);
        model.differentiate(batch, 1).unwrap();
        for (step, constants) in (1..).zip(constants) {
            model.update(constants, 1e-2, step).unwrap();
        }
        let losses = model.differentiate(batch, 1).unwrap();
        found(&model, &losses)
    };
    let changed = after([run, run, other]);
    assert!(changed == after([run, like_it, other]), "what is recorded changes nothing");
    assert!(changed != after([run, run, run]), "the other constants count");
}

#[test]
fn steps_of_several_micro_batches_have_the_bits_of_those_done_kernel_by_kernel() {
    let options = options(Matching::Classifier, Recompute::None);
    let (mut replayed, mut direct) = (stage1(&options), stage1(&options));
    let [first, second, third] = batches();
    let steps = [[&first, &second], [&second, &third], [&third, &first], [&first, &second]];
    for (step, batches) in steps.into_iter().enumerate() {
        let batches = batches.map(Batch::clone);
        let losses = replayed.differentiate(&batches, step + 1).unwrap();
        let of_replayed = found(&replayed, &losses);
        let losses = direct.differentiate_observed(&batches, step + 1, &mut |_| Ok(())).unwrap();
        assert!(of_replayed == found(&direct, &losses), "step {step}");
        assert!(of_replayed.1.iter().all(|g| g.is_finite()) && losses.total.is_finite());
    }
}

#[test]
fn a_step_that_finds_too_little_room_is_done_again() {
    // The one text that four images can have for a negative is as long as eight of the others.
    let ids = vec![4, 4, 4, 4, 5];
    let batch = Batch::new(&config(), some_images(5, "five"), texts([2, 2, 2, 2, 33], 0), ids).unwrap();
    let options = options(Matching::MaxSimilarity, Recompute::None);
    let (mut replayed, mut direct) = (stage1(&options), stage1(&options));
    for step in 1..=3 {
        let batch = std::slice::from_ref(&batch);
        let losses = replayed.differentiate(batch, step).unwrap();
        let of_replayed = found(&replayed, &losses);
        let mut contrasts = 0;
        let losses = direct
            .differentiate_observed(batch, step, &mut |part| {
                contrasts += usize::from(part == StepPart::Contrastive);
                Ok(())
            })
            .unwrap();
        assert_eq!(contrasts, 2, "the step was done twice");
        assert!(of_replayed == found(&direct, &losses), "step {step}");
        assert!(of_replayed.1.iter().all(|g| g.is_finite()) && losses.total.is_finite());
    }
}

#[test]
fn what_a_step_learnt_from_before_does_not_show() {
    let options = options(Matching::Classifier, Recompute::None);
    let batches = batches();
    let mut model = stage1(&options);
    for batch in batches.iter().cycle().take(4) {
        let losses = model.differentiate(std::slice::from_ref(batch), 3).unwrap();
        let mut fresh = stage1(&options);
        let of_fresh = fresh.differentiate(std::slice::from_ref(batch), 3).unwrap();
        assert!(found(&model, &losses) == found(&fresh, &of_fresh));
    }
}

#[test]
fn filler_has_its_place_in_the_memory_that_was_reserved() {
    for matching in [Matching::Classifier, Matching::MaxSimilarity] {
        let mut model = stage1(&options(matching, Recompute::Blocks));
        let size =
            StepSize { images: IMAGES, batches: 1, image_tokens: config().image_tokens(), text_tokens: 33 };
        let plan = model.reserve(size).unwrap();
        for lengths in [[33, 33, 33], [2, 2, 33], [33, 31, 32]] {
            let batch = Batch::new(&config(), images("first"), texts(lengths, 0), vec![4, 5, 6]).unwrap();
            model.differentiate(&[batch], 1).unwrap();
            assert_eq!(model.memory(), plan);
        }
    }
}
