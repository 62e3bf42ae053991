//! The front door: the models' own answers, whatever form images and texts come in.

#[path = "support/paths.rs"]
mod paths;

use qformer::models::vision::image::Rgb;
use qformer::params::safetensors::Checkpoint;
use qformer::{
    Captioner, Cpu, DeviceName, HostTensor, Image, ImageProcessor, Matching, Parts, Pipeline, QFormer,
    Tokenizer, VisionEncoder, VisionOutput,
};
use std::num::NonZeroUsize;
use std::path::PathBuf;

const TEXTS: [&str; 3] = ["a cup of coffee", "two dogs run in the snow", "an astronaut"];

fn folder() -> PathBuf {
    paths::path("tests/golden/retrieval/model")
}

fn files() -> [PathBuf; 3] {
    ["astronaut", "chelsea", "coffee"]
        .map(|name| paths::path("tests/golden/retrieval/images").join(format!("{name}.png")))
}

fn pipeline() -> Pipeline {
    // Two images at a time: the third is in a batch of its own.
    let builder = Pipeline::builder(folder()).unwrap().device(DeviceName::Cpu);
    builder.batch_size(NonZeroUsize::new(2).unwrap()).load().unwrap()
}

/// Features of the images [3, N, W], by the image encoder itself.
fn vision_output() -> HostTensor {
    let processor = ImageProcessor::load(&folder()).unwrap();
    let encoder = VisionEncoder::load(Cpu::<f32>::new(), folder()).unwrap();
    let pixels: Vec<f32> = files().iter().flat_map(|file| processor.read(file).unwrap()).collect();
    let (height, width) = processor.size();
    encoder.encode(&HostTensor::new(&[3, 3, height, width], pixels).unwrap()).unwrap()
}

#[test]
fn a_pipeline_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Pipeline>();
    shared::<VisionOutput>();
}

#[test]
fn files_bytes_pixels_and_features_give_the_models_own_answers() {
    let (pipeline, features) = (pipeline(), vision_output());
    let model = QFormer::load(Cpu::<f32>::new(), folder()).unwrap();
    let expected = model.encode_image(&features).unwrap();

    let paths = files();
    let bytes: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let pixels: Vec<Rgb> = paths.iter().map(|path| Rgb::read(path).unwrap()).collect();
    let of_files: Vec<Image<'_>> = paths.iter().map(|path| Image::File(path)).collect();
    let of_bytes: Vec<Image<'_>> = bytes.iter().map(|bytes| Image::Bytes(bytes)).collect();
    let of_pixels: Vec<Image<'_>> = pixels.iter().map(Image::Rgb).collect();
    for images in [&of_files, &of_bytes, &of_pixels] {
        let found = pipeline.image_features(images).unwrap();
        assert_eq!(found.query_output, expected.query_output);
        assert_eq!(found.features, expected.features);
    }
    let encoded = pipeline.encode(&of_files).unwrap();
    assert_eq!(encoded.to_host().unwrap(), features);
    for output in [&encoded, &features.clone().into()] {
        let found = pipeline.image_features(output).unwrap();
        assert_eq!(
            (found.query_output, found.features),
            (expected.query_output.clone(), expected.features.clone())
        );
    }

    let tokens = Tokenizer::load(&folder()).unwrap().encode_batch(&TEXTS, 64).unwrap();
    let texts = pipeline.text_features(&TEXTS).unwrap();
    assert_eq!(texts, model.encode_text(&tokens).unwrap());
    assert_eq!(texts, pipeline.text_features(&tokens).unwrap());
    assert_eq!(texts, pipeline.text_features(&TEXTS.map(String::from)).unwrap());
    let similarity = model.similarity(expected.features.as_ref().unwrap(), &texts).unwrap();
    assert_eq!(pipeline.similarity(&expected, &texts).unwrap(), similarity);

    let pairs = [(2, 0), (0, 2), (1, 1), (0, 0), (2, 2)];
    let matching = pipeline.matching_logits().unwrap().matching();
    let expected = model.match_score(&features, &tokens, &pairs, matching).unwrap();
    assert_eq!(pipeline.match_pairs(&of_bytes, &TEXTS, &pairs, matching).unwrap(), expected);
    assert_eq!(pipeline.match_pairs(&encoded, &tokens, &pairs, matching).unwrap(), expected);

    let maps = model.cross_attention_maps(&features, None, 0).unwrap();
    assert_eq!(pipeline.attention_maps(&of_files, None, 0).unwrap(), maps);
    let maps = model.cross_attention_maps(&features, Some(&tokens[1]), 0).unwrap();
    assert_eq!(pipeline.attention_maps(&encoded, Some(TEXTS[1]), 0).unwrap(), maps);
}

#[test]
fn what_one_pipeline_encoded_another_reads() {
    let (one, other) = (pipeline(), pipeline());
    let file = files();
    let encoded = one.encode(&[Image::File(&file[0])]).unwrap();
    let found = other.image_features(&encoded).unwrap();
    assert_eq!(found.query_output, one.image_features(&encoded).unwrap().query_output);
}

#[test]
fn no_image_and_no_text_have_no_features() {
    let pipeline = pipeline();
    let none: &[Image<'_>] = &[];
    let images = pipeline.image_features(none).unwrap();
    let texts = pipeline.text_features::<&str>(&[]).unwrap();
    let config = pipeline.config();
    let (queries, width) = (config.num_query_tokens, config.image_text_hidden_size);
    assert_eq!(images.query_output.shape(), [0, queries, config.qformer.hidden_size]);
    assert_eq!(images.features.as_ref().unwrap().shape(), [0, queries, width]);
    assert_eq!(texts.shape(), [0, width]);
    assert_eq!(pipeline.similarity(&images, &texts).unwrap().shape(), [0, 0]);
    assert!(pipeline.match_pairs(none, &TEXTS, &[], Matching::Classifier).unwrap().is_empty());
    assert_eq!(pipeline.attention_maps(none, None, 0).unwrap().shape()[0], 0);
    assert_eq!(pipeline.encode(none).unwrap().to_host().unwrap().shape()[0], 0);
}

#[test]
fn captions_are_the_captioner_s_whatever_the_batch() {
    let golden = paths::path("tests/golden/stage1");
    let bytes = std::fs::read(golden.join("batch.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensor = file.tensor("vision_output").unwrap();
    let values: Vec<f32> = tensor.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let features = HostTensor::new(tensor.shape(), values).unwrap();

    let pipeline = Pipeline::open(&golden, DeviceName::Cpu).unwrap();
    assert!(pipeline.can_caption());
    let decoding = pipeline.decoding().unwrap();
    let found = pipeline.caption(&VisionOutput::from(features.clone()), &decoding).unwrap();
    let captioner = Captioner::load(Cpu::<f32>::new(), &golden).unwrap();
    let expected = captioner.caption(&features, &decoding).unwrap();
    let tokenizer = pipeline.tokenizer().unwrap();
    assert_eq!(found.len(), 5);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!((&found.tokens, found.score), (&expected.tokens, expected.score));
        assert_eq!(found.text, tokenizer.decode(&expected.tokens).unwrap());
        assert!(!found.text.is_empty());
    }
}

#[test]
fn each_part_is_loaded_alone_and_says_what_it_cannot_do() {
    let open = |parts| {
        let builder = Pipeline::builder(folder()).unwrap().device(DeviceName::Cpu).parts(parts);
        let mut told = Vec::new();
        let pipeline = builder.load_with_progress(&mut |what, _, _| told.push(what)).unwrap();
        told.dedup();
        (pipeline, told)
    };
    let paths = files();
    let image = [Image::File(&paths[0])];
    let refusal = |result: qformer::Result<()>, words: &str| {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    let (qformer, told) = open(Parts::QFormer);
    assert_eq!(told, ["loading the Q-Former"]);
    refusal(qformer.encode(&image).map(drop), "opened without the image encoder");
    refusal(qformer.image_features(&image).map(drop), "no image encoder");
    assert_eq!(qformer.text_features(&TEXTS).unwrap().shape()[0], 3);
    refusal(
        qformer.caption(&VisionOutput::from(vision_output()), &qformer.decoding().unwrap()).map(drop),
        "model",
    );

    let (encoder, told) = open(Parts::ImageEncoder);
    assert_eq!(told, ["loading the image encoder"]);
    assert_eq!(encoder.encode(&image).unwrap().to_host().unwrap().shape()[0], 1);
    refusal(encoder.text_features(&TEXTS).map(drop), "opened without the Q-Former");
    refusal(encoder.image_features(&image).map(drop), "opened without the Q-Former");
    assert_eq!(encoder.abilities(), None);
    assert_eq!(open(Parts::All).1, ["loading the Q-Former", "loading the image encoder"]);
}

#[test]
fn what_cannot_be_read_is_named() {
    let pipeline = pipeline();
    let message = |result: qformer::Result<()>| result.unwrap_err().to_string();
    let missing = PathBuf::from("no/such/picture.png");
    assert!(message(pipeline.encode(&[Image::File(&missing)]).map(drop)).contains("no/such/picture.png"));
    // The third image is in a batch of its own, and keeps its number.
    let file = files();
    let images = [Image::File(&file[0]), Image::File(&file[1]), Image::Bytes(b"no picture")];
    let told = message(pipeline.image_features(&images).map(drop));
    assert!(told.starts_with("image 2: "), "{told}");
    let flat = Rgb { pixels: vec![0; 5], width: 2, height: 1 };
    let told = message(pipeline.encode(&[Image::Rgb(&flat)]).map(drop));
    assert!(told.starts_with("image 0: ") && told.contains("2x1"), "{told}");

    let outside = pipeline.match_pairs(&images[..1], &TEXTS, &[(0, 0), (1, 0)], Matching::Classifier);
    assert!(message(outside.map(drop)).contains("(1, 0)"));
    let outside = pipeline.match_pairs(&images[..1], &TEXTS, &[(0, 3)], Matching::Classifier);
    assert!(message(outside.map(drop)).contains("(0, 3)"));
    assert!(message(pipeline.attention_maps(&images[..1], None, 99).map(drop)).contains("99"));

    assert!(Pipeline::open("no/such/folder", DeviceName::Cpu).is_err());
    assert!(message("gpu".parse::<DeviceName>().map(drop)).contains("auto, cpu, cuda"));
    assert_eq!("cuda:3".parse::<DeviceName>().unwrap().to_string(), "cuda:3");
}

#[test]
fn a_checkpoint_is_described_before_it_is_loaded() {
    let builder = Pipeline::builder(folder()).unwrap();
    assert_eq!(builder.checkpoint().path(), Checkpoint::open(&folder()).unwrap().path());
    let side = builder.config().vision.image_size().unwrap();
    assert_eq!(builder.image_processor().unwrap().size(), (side, side));
    assert_eq!(builder.tokenizer().unwrap().encode("a cup", 9).unwrap().first(), Some(&2));
    assert!(builder.require_caption_head().unwrap_err().to_string().contains("language-modelling head"));
}
