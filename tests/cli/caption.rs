//! `qformer caption`

use crate::common::*;
use qformer::params::safetensors::Dtype;
use qformer::tensor::HostTensor;
use serde_json::Value;

impl Workplace {
    /// Gives the model a language-modelling head, of numbers that follow no pattern.
    pub(crate) fn add_language_head(&mut self) {
        let words = self.tensors["embeddings.word_embeddings.weight"].shape.clone();
        let (vocabulary, hidden) = (words[0], words[1]);
        let name = |part: &str| format!("cls.predictions.{part}");
        let noise =
            |count: usize| (0..count as u64).map(|i| (i * 2_654_435_761 % 1009) as f32 / 1009.0 - 0.5);
        let mut add = |part: &str, shape: &[usize], values: Vec<f32>| {
            self.tensors.insert(name(part), HostTensor::new(shape, values));
        };
        add("transform.dense.weight", &[hidden, hidden], noise(hidden * hidden).collect());
        add("transform.dense.bias", &[hidden], noise(hidden).collect());
        add("transform.LayerNorm.weight", &[hidden], vec![1.0; hidden]);
        add("transform.LayerNorm.bias", &[hidden], vec![0.0; hidden]);
        add("bias", &[vocabulary], noise(vocabulary).collect());
        self.save(Dtype::F32);
    }

    fn caption(&self, more: &[&str]) -> Run {
        let [model, images] = [self.model(), golden().join("images")].map(|path| shown(&path));
        run([&["caption", "--model", &model, "--image-dir", &images], more].concat())
    }
}

fn captioning() -> Workplace {
    let mut workplace = Workplace::new();
    workplace.add_language_head();
    workplace
}

#[test]
fn every_image_has_its_captions_whatever_the_batch() {
    let workplace = captioning();
    let short = ["--max-length", "8", "--min-length", "4", "--json"];
    for how in [&["--num-captions", "2"][..], &["--do-sample", "--seed", "7", "--num-captions", "2"]] {
        let [one, all] = ["1", "8"].map(|size| -> Value {
            let printed = workplace.caption(&[&short[..], how, &["--batch-size", size]].concat()).succeeds();
            serde_json::from_str(&printed).unwrap()
        });
        let [one, all] = [one, all].map(|json| json.as_array().unwrap().clone());
        assert_eq!(all.len(), 3);
        for ((one, all), image) in one.iter().zip(&all).zip(images()) {
            assert_eq!(all["image"], shown(&image));
            assert_eq!(all["caption"], all["captions"][0]["caption"]);
            assert_eq!(all["captions"].as_array().unwrap().len(), 2);
            for place in 0..2 {
                assert_eq!(one["captions"][place]["caption"], all["captions"][place]["caption"], "{how:?}");
                assert!(all["captions"][place]["score"].as_f64().unwrap() < 0.0);
            }
            let caption = all["caption"].as_str().unwrap();
            assert!(!caption.is_empty() && !caption.contains('['), "{caption}");
        }
    }
}

#[test]
fn captions_are_printed_a_line_each_after_their_image() {
    let printed =
        captioning().caption(&["--max-length", "6", "--min-length", "2", "--num-captions", "3"]).succeeds();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 9);
    for (line, image) in lines.iter().zip(images().iter().flat_map(|image| [image; 3])) {
        assert!(line.starts_with(&format!("{}\t", shown(image))), "{line}");
    }
}

#[test]
fn seeds_and_penalties_make_other_captions() {
    let workplace = captioning();
    let short = ["--max-length", "10"];
    let captions = |more: &[&str]| workplace.caption(&[&short[..], more].concat()).succeeds();
    let drawn = |seed| captions(&["--do-sample", "--top-p", "1", "--temperature", "2", "--seed", seed]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_ne!(captions(&[]), captions(&["--repetition-penalty", "3"]));
}

#[test]
fn a_model_without_the_head_is_refused_and_so_are_wrong_numbers() {
    let workplace = Workplace::new();
    workplace.caption(&[]).fails(&["cls.predictions", "Hugging Face", "qformer train"]);
    workplace.caption(&["--num-captions", "4"]).misuses(&["--num-captions 4", "--num-beams 3"]);
    workplace.caption(&["--top-p", "0.5"]).misuses(&["--do-sample"]);
    workplace.caption(&["--do-sample", "--top-p", "2"]).misuses(&["--top-p 2"]);
    captioning().caption(&["--max-length", "10000"]).misuses(&["10000", "--max-length"]);
}
