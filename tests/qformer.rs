//! The passes against an independent computation in double precision, for models of many shapes.

#[path = "support/random.rs"]
mod random;
#[path = "../src/bin/qformer-bench/reference.rs"]
mod reference;

use qformer::config::{Activation, Config, VisionConfig, VitConfig};
use qformer::device::Real;
use qformer::generate::Decoding;
use qformer::models::qformer::Abilities;
use qformer::{Captioner, Cpu, HostTensor, Matching, QFormer, VisionEncoder};
use random::{RandomWeights, random};
use reference::Reference;

/// [hidden, heads, intermediate, layers, cross-attention frequency, queries, image width, embedding]
const SHAPES: [[usize; 8]; 6] = [
    [128, 2, 256, 3, 2, 8, 64, 32],
    // Head width 32: two heads a panel, absorbed; every layer crosses.
    [64, 2, 96, 2, 1, 4, 48, 16],
    // Head width 24 and widths that fill no panel: keys and values are projected.
    [96, 4, 130, 4, 3, 5, 70, 33],
    // One of everything.
    [8, 1, 8, 1, 1, 1, 8, 1],
    // More queries than the image has tokens.
    [64, 1, 64, 2, 2, 40, 20, 8],
    // Primes.
    [77, 7, 101, 5, 2, 3, 31, 13],
];

fn config([hidden, heads, intermediate, layers, frequency, queries, width, embedding]: [usize; 8]) -> Config {
    let mut config = Config::tiny();
    config.num_query_tokens = queries;
    config.image_text_hidden_size = embedding;
    config.vision = VisionConfig::Eva(VitConfig {
        hidden_size: width,
        num_attention_heads: 1,
        post_layer_norm_eps: 1e-3,
        ..config.vision.encoder().unwrap().clone()
    });
    config.qformer.encoder_hidden_size = width;
    config.qformer.hidden_size = hidden;
    config.qformer.num_attention_heads = heads;
    config.qformer.intermediate_size = intermediate;
    config.qformer.num_hidden_layers = layers;
    config.qformer.cross_attention_frequency = frequency;
    config.qformer.layer_norm_eps = 1e-2;
    config.qformer.vocab_size = 50;
    config.qformer.max_position_embeddings = 20;
    config.validate().unwrap();
    config
}

fn model<E: Real>(config: &Config) -> QFormer<Cpu<E>> {
    let abilities = Abilities { text: true, retrieval: true };
    QFormer::from_source(Cpu::new(), config.clone(), abilities, &RandomWeights, &mut |_, _| ()).unwrap()
}

fn images(config: &Config, count: usize) -> HostTensor {
    let shape = [count, config.image_tokens(), config.vision.width()];
    HostTensor::new(&shape, random("images", shape.iter().product())).unwrap()
}

fn texts() -> Vec<Vec<u32>> {
    [1, 7, 20, 3].map(|length| (0..length).map(|i| (i * 13 + length) % 50).collect()).to_vec()
}

fn assert_close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(&f, e)| f64::from(f) - e));
    let relative = difference / norm(&mut expected.iter().copied());
    assert!(relative < tolerance, "{what} is off by {relative:e}");
}

fn passes_match_the_reference<E: Real>(tolerance: f64) {
    for shape in SHAPES {
        let config = config(shape);
        let model = model::<E>(&config);
        let reference = Reference { source: &RandomWeights, config: &config };
        let (images, texts) = (images(&config, 3), texts());
        let per_image = images.values().len() / 3;
        let encoded = model.encode_image(&images).unwrap();
        let image_features = encoded.features.unwrap();
        let features = model.encode_text(&texts).unwrap();
        let pairs: Vec<(usize, usize)> = (0..3).flat_map(|i| (0..4).map(move |t| (i, t))).collect();
        let [classified, compared] = [Matching::Classifier, Matching::MaxSimilarity]
            .map(|form| model.match_score(&images, &texts, &pairs, form).unwrap());
        let per_output = encoded.query_output.values().len() / 3;
        let per_feature = image_features.values().len() / 3;
        for i in 0..3 {
            let image = &images.values()[i * per_image..(i + 1) * per_image];
            assert_close(
                &format!("{shape:?} features of image {i}"),
                &image_features.values()[i * per_feature..(i + 1) * per_feature],
                &reference.image_features(image).concat(),
                tolerance,
            );
            let output = &encoded.query_output.values()[i * per_output..(i + 1) * per_output];
            assert_close(
                &format!("{shape:?} image {i}"),
                output,
                &reference.image_pass(image).concat(),
                tolerance,
            );
            for (t, text) in texts.iter().enumerate() {
                let expected = reference.joint_pass(image, text);
                let pair = i * texts.len() + t;
                let logits = classified[pair].logits.unwrap();
                assert_close(
                    &format!("{shape:?} logits {i} {t}"),
                    &logits,
                    &expected.logits,
                    10.0 * tolerance,
                );
                let cosine = f64::from(compared[pair].score);
                assert!((cosine - expected.largest_cosine).abs() < 10.0 * tolerance, "{shape:?} {i} {t}");
            }
        }
        for (t, text) in texts.iter().enumerate() {
            let width = features.shape()[1];
            let feature = &features.values()[t * width..(t + 1) * width];
            assert_close(&format!("{shape:?} text {t}"), feature, &reference.text_pass(text), tolerance);
        }
    }
}

/// −ln p of every token of a text but its first, summed, of logits [T - 1, V].
fn caption_loss(logits: &[Vec<f64>], text: &[u32]) -> f64 {
    let surprisal = |(logits, &label): (&Vec<f64>, &u32)| {
        logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[label as usize]
    };
    logits.iter().zip(&text[1..]).map(surprisal).sum()
}

#[test]
fn captions_match_the_reference_in_double_precision() {
    const ENDS: [u32; 2] = [49, 48];
    for shape in SHAPES {
        let config = config(shape);
        let captioner = Captioner::new(model::<f64>(&config), &RandomWeights, ENDS).unwrap();
        let reference = Reference { source: &RandomWeights, config: &config };
        let (images, texts) = (images(&config, 2), texts());
        let per_image = images.values().len() / 2;
        // Not the text of one token: there is nothing to foresee in it.
        let pairs = [(0, 1), (1, 1), (1, 2), (0, 3)];
        let found = captioner.caption_loss(&images, &texts, &pairs).unwrap();
        for ((image, text), found) in pairs.into_iter().zip(found) {
            let values = &images.values()[image * per_image..(image + 1) * per_image];
            let logits = reference.caption_pass(values, &texts[text], ENDS[0]);
            let expected = caption_loss(&logits, &texts[text]);
            // Row losses are handed out as f32.
            assert!(
                (found.loss - expected).abs() < 1e-6 * expected,
                "{shape:?} {image} {text}: {found:?} {expected}"
            );
        }
    }
}

#[test]
fn passes_match_the_reference_in_double_precision() {
    // The results are handed out as f32: half a unit in their last place.
    passes_match_the_reference::<f64>(1e-7);
}

#[test]
fn passes_match_the_reference_in_single_precision() {
    // What a float32 implementation is held to against float64 values everywhere in this crate.
    passes_match_the_reference::<f32>(1e-4);
}

#[test]
fn a_batch_gives_what_its_members_give() {
    let config = config(SHAPES[0]);
    let model = model::<f32>(&config);
    let (count, texts) = (19, texts());
    let images = images(&config, count);
    let per_image = images.values().len() / count;
    let together = model.encode_image(&images).unwrap();
    // More pairs than one joint pass takes, of images of three passes, out of order.
    let pairs: Vec<(usize, usize)> = (0..76).map(|i| (i * 7 % count, i * 3 % 4)).collect();
    let matches = model.match_score(&images, &texts, &pairs, Matching::Classifier).unwrap();
    for i in 0..count {
        let one = HostTensor::new(
            &[1, images.shape()[1], images.shape()[2]],
            images.values()[i * per_image..(i + 1) * per_image].to_vec(),
        )
        .unwrap();
        let alone = model.encode_image(&one).unwrap();
        let width = alone.query_output.values().len();
        assert_eq!(
            alone.query_output.values(),
            &together.query_output.values()[i * width..(i + 1) * width],
            "image {i}"
        );
        for (pair, found) in pairs.iter().zip(&matches).filter(|(pair, _)| pair.0 == i) {
            let expected = model.match_score(&one, &texts, &[(0, pair.1)], Matching::Classifier).unwrap()[0];
            assert_eq!(*found, expected, "{pair:?}");
        }
    }
    let all = model.encode_text(&texts).unwrap();
    for (t, text) in texts.iter().enumerate() {
        let one = model.encode_text(std::slice::from_ref(text)).unwrap();
        assert_eq!(one.values(), &all.values()[t * all.shape()[1]..(t + 1) * all.shape()[1]], "text {t}");
    }
}

#[test]
fn every_activation_is_honoured() {
    let outputs =
        [Activation::Gelu, Activation::GeluTanh, Activation::QuickGelu, Activation::Relu].map(|activation| {
            let mut config = config(SHAPES[0]);
            config.qformer.hidden_act = activation;
            model::<f64>(&config).encode_image(&images(&config, 1)).unwrap().query_output
        });
    for (i, one) in outputs.iter().enumerate() {
        assert!(outputs[..i].iter().all(|other| other != one));
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused_with_the_shape_that_does() {
    let config = config(SHAPES[0]);
    let model = model::<f32>(&config);
    let wrong = HostTensor::new(&[1, 2, 64], vec![0.0; 128]).unwrap();
    let error = model.encode_image(&wrong).unwrap_err().to_string();
    assert!(error.contains("[1, 2, 64]") && error.contains("[images, 17, 64]"), "{error}");
    for (tokens, fragment) in [(vec![], "0 tokens"), (vec![1; 21], "21 tokens"), (vec![50], "token 50")] {
        let error = model.encode_text(&[tokens]).unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    }
    let error =
        model.match_score(&images(&config, 1), &texts(), &[(1, 0)], Matching::Classifier).unwrap_err();
    assert!(error.to_string().contains("(1, 0)"), "{error}");
}

#[test]
fn features_that_do_not_fit_are_refused_where_they_are_compared() {
    let config = config(SHAPES[0]);
    let model = model::<f32>(&config);
    let filled = |shape: &[usize]| HostTensor::new(shape, vec![0.5; shape.iter().product()]).unwrap();
    let (images, texts) = (filled(&[2, 8, 32]), filled(&[3, 32]));
    assert_eq!(model.similarity(&images, &texts).unwrap().shape(), [2, 3]);
    for wrong in [filled(&[2, 8, 31]), filled(&[2, 7, 32]), filled(&[2, 32]), filled(&[])] {
        let error = model.similarity(&wrong, &texts).unwrap_err().to_string();
        assert!(
            error.contains(&format!("{:?}", wrong.shape())) && error.contains("[images, 8, 32]"),
            "{error}"
        );
    }
    for wrong in [filled(&[3, 33]), filled(&[3, 1, 32]), filled(&[])] {
        let error = model.similarity(&images, &wrong).unwrap_err().to_string();
        assert!(error.contains(&format!("{:?}", wrong.shape())) && error.contains("[texts, 32]"), "{error}");
    }
}

#[test]
fn of_no_images_and_of_no_texts_there_is_an_empty_answer() {
    let config = config(SHAPES[0]);
    let captioner = Captioner::new(model::<f32>(&config), &RandomWeights, [49, 48]).unwrap();
    let model = captioner.model();
    let (none, some) = (images(&config, 0), images(&config, 2));
    let encoded = model.encode_image(&none).unwrap();
    let features = encoded.features.unwrap();
    assert_eq!((encoded.query_output.shape(), features.shape()), (&[0, 8, 128][..], &[0, 8, 32][..]));
    let no_texts = model.encode_text(&[]).unwrap();
    assert_eq!(no_texts.shape(), [0, 32]);
    let texts = model.encode_text(&texts()).unwrap();
    assert_eq!(model.similarity(&features, &texts).unwrap().shape(), [0, 4]);
    let features = model.encode_image(&some).unwrap().features.unwrap();
    assert_eq!(model.similarity(&features, &no_texts).unwrap().shape(), [2, 0]);
    assert_eq!(model.match_score(&none, &[], &[], Matching::Classifier).unwrap(), []);
    assert_eq!(model.cross_attention_maps(&none, None, 0).unwrap().shape(), [0, 2, 8, 17]);
    let decoding = Decoding::default().within(19);
    assert_eq!(captioner.caption(&none, &decoding).unwrap(), Vec::<Vec<qformer::Caption>>::new());
    assert_eq!(captioner.caption_loss(&none, &[], &[]).unwrap(), []);
}

#[test]
fn sizes_that_make_no_model_are_refused() {
    let mut config = config(SHAPES[0]);
    config.qformer.num_attention_heads = 0;
    let abilities = Abilities { text: true, retrieval: true };
    let model =
        QFormer::from_source(Cpu::<f32>::new(), config.clone(), abilities, &RandomWeights, &mut |_, _| ());
    let encoder = VisionEncoder::from_source(Cpu::<f32>::new(), &config, &RandomWeights, &mut |_, _| ());
    for error in [model.err().unwrap(), encoder.err().unwrap()] {
        assert!(error.to_string().contains("qformer_config.num_attention_heads is 0"), "{error}");
    }
}

#[test]
fn pairs_that_are_not_there_are_refused() {
    let config = config(SHAPES[0]);
    let model = model::<f32>(&config);
    let refused = |images: &HostTensor, pair: (usize, usize)| {
        model.match_score(images, &texts(), &[(0, 0), pair], Matching::MaxSimilarity).unwrap_err().to_string()
    };
    for pair in [(2, 0), (0, 4), (usize::MAX, 0)] {
        let error = refused(&images(&config, 2), pair);
        assert!(error.contains(&format!("{pair:?}")) && error.contains("2 images and 4 texts"), "{error}");
    }
    assert!(refused(&images(&config, 0), (0, 0)).contains("(0, 0)"));
}
