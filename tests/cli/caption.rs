//! `qformer caption`

use crate::common::*;
use qformer::params::safetensors::Dtype;
use qformer::tensor::HostTensor;
use serde_json::Value;
use std::fs;

impl Workplace {
    /// Gives the model a language-modelling head, of numbers that follow no pattern.
    pub(crate) fn add_language_head(&mut self) {
        let words = self.tensors["embeddings.word_embeddings.weight"].shape().to_vec();
        let (vocabulary, hidden) = (words[0], words[1]);
        let name = |part: &str| format!("cls.predictions.{part}");
        let noise =
            |count: usize| (0..count as u64).map(|i| (i * 2_654_435_761 % 1009) as f32 / 1009.0 - 0.5);
        let mut add = |part: &str, shape: &[usize], values: Vec<f32>| {
            self.tensors.insert(name(part), HostTensor::new(shape, values).unwrap());
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
    let short = ["--max-new-tokens", "7", "--min-new-tokens", "3", "--json"];
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
    let printed = captioning()
        .caption(&["--max-new-tokens", "5", "--min-new-tokens", "1", "--num-captions", "3"])
        .succeeds();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 9);
    for (line, image) in lines.iter().zip(images().iter().flat_map(|image| [image; 3])) {
        assert!(line.starts_with(&format!("{}\t", shown(image))), "{line}");
    }
}

#[test]
fn seeds_and_penalties_make_other_captions() {
    let workplace = captioning();
    let short = ["--max-new-tokens", "9"];
    let captions = |more: &[&str]| workplace.caption(&[&short[..], more].concat()).succeeds();
    let drawn = |seed| captions(&["--do-sample", "--top-p", "1", "--temperature", "2", "--seed", seed]);
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    assert_ne!(captions(&[]), captions(&["--repetition-penalty", "3"]));
}

impl Workplace {
    /// Takes all but the first `count` positions of a text from the model.
    fn keep_positions(&mut self, count: usize) {
        let table = self.tensors.get_mut("embeddings.position_embeddings.weight").unwrap();
        let hidden = table.shape()[1];
        *table = HostTensor::new(&[count, hidden], table.values()[..count * hidden].to_vec()).unwrap();
        self.configure(|config| config["qformer_config"]["max_position_embeddings"] = count.into());
        self.save(Dtype::F32);
    }

    fn write_generation_config(&self, json: &str) {
        fs::write(self.model().join("generation_config.json"), json).unwrap();
    }
}

#[test]
fn by_default_captions_are_no_longer_than_the_model_reads() {
    let mut workplace = captioning();
    workplace.keep_positions(20);
    let default = workplace.caption(&[]).succeeds();
    let said = workplace
        .caption(&["--max-new-tokens", "19", "--min-new-tokens", "9", "--num-beams", "3"])
        .succeeds();
    assert_eq!(default, said);
    workplace.keep_positions(6);
    let said = workplace.caption(&["--max-new-tokens", "5", "--min-new-tokens", "5"]).succeeds();
    assert_eq!(workplace.caption(&[]).succeeds(), said);
    // A length that is given bounds the least that is not.
    let said = workplace.caption(&["--max-new-tokens", "3", "--min-new-tokens", "3"]).succeeds();
    assert_eq!(workplace.caption(&["--max-new-tokens", "3"]).succeeds(), said);
}

#[test]
fn captions_are_found_as_the_checkpoint_says_unless_flags_say_otherwise() {
    let workplace = captioning();
    let captions = |more: &[&str]| workplace.caption(more).succeeds();
    let flags =
        ["--max-new-tokens", "6", "--min-new-tokens", "2", "--num-beams", "2", "--length-penalty", "-1"];
    let searched = captions(&[&flags[..], &["--repetition-penalty", "2", "--num-captions", "2"]].concat());
    let short = ["--max-new-tokens", "6", "--min-new-tokens", "2"];
    let drawn = captions(&[&short[..], &["--do-sample", "--top-p", "0.8", "--temperature", "3"]].concat());
    let greedy = captions(&[&short[..], &["--num-beams", "1"]].concat());
    assert!(searched != drawn && drawn != greedy);

    workplace.write_generation_config(
        r#"{"max_length": 7, "min_length": 3, "num_beams": 2, "length_penalty": -1.0, "repetition_penalty": 2.0,
            "num_return_sequences": 2, "transformers_version": "5.0.0"}"#,
    );
    assert_eq!(captions(&[]), searched);
    let others =
        ["--num-beams", "1", "--length-penalty", "1", "--repetition-penalty", "1", "--num-captions", "1"];
    assert_eq!(captions(&others), greedy);
    workplace.write_generation_config(
        r#"{"max_length": 7, "min_length": 3, "do_sample": true, "top_p": 0.8, "temperature": 3.0}"#,
    );
    assert_eq!(captions(&[]), drawn);
    assert_eq!(captions(&["--num-beams", "1"]), greedy);

    workplace.write_generation_config(r#"{"max_length": 65}"#);
    workplace.caption(&[]).fails(&["generation_config.json", "max_length is 65", "room for 64"]);
}

#[test]
fn a_model_without_the_head_is_refused_and_so_are_wrong_numbers() {
    let workplace = Workplace::new();
    workplace.caption(&[]).fails(&["cls.predictions", "Hugging Face", "qformer train"]);
    workplace.caption(&["--num-captions", "4"]).misuses(&["--num-captions 4", "--num-beams 3"]);
    workplace.caption(&["--top-p", "0.5"]).misuses(&["--do-sample"]);
    workplace.caption(&["--do-sample", "--top-p", "2"]).misuses(&["--top-p 2"]);
    captioning().caption(&["--max-new-tokens", "9999"]).misuses(&["10000", "--max-new-tokens"]);
}
