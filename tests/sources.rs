//! What stage 1 of training begins with.

#[path = "support/bert.rs"]
mod bert;

use bert::{Tensors, save, tiny_bert};
use qformer::models::vision::encoder;
use qformer::params::safetensors::Checkpoint;
use qformer::params::sources::{Bert, Initial, Layered};
use qformer::params::{NamedCheckpoint, Part, Spec, TensorSource, Tree};
use qformer::train::Stage1Parameters;
use qformer::{Config, Error, Matching};
use std::collections::BTreeMap;
use tempfile::TempDir;

const SEED: u64 = 3;

fn specs() -> Stage1Parameters<Spec> {
    Stage1Parameters::spec(&Config::tiny(), Matching::Classifier)
}

fn parts() -> Vec<Part> {
    parts_of(&specs())
}

fn parts_of(specs: &impl Tree<Spec>) -> Vec<Part> {
    let mut parts = Vec::new();
    specs.map(&mut |spec| parts.extend(spec.parts.clone()));
    parts
}

/// All values of a source, after its own check.
fn read(source: &dyn TensorSource) -> Result<BTreeMap<String, Vec<f32>>, Error> {
    read_parts(source, &parts())
}

fn read_parts(source: &dyn TensorSource, parts: &[Part]) -> Result<BTreeMap<String, Vec<f32>>, Error> {
    source.check(&parts.iter().collect::<Vec<_>>())?;
    let all = parts.iter().map(|part| {
        let mut values = Vec::new();
        let not_finite = source.read(part, &mut |first, block| {
            assert_eq!(first, values.len(), "blocks come in order");
            values.extend_from_slice(block);
        })?;
        assert_eq!((values.len(), not_finite), (part.len(), 0), "{}", part.name);
        Ok((part.name.clone(), values))
    });
    all.collect()
}

fn initial(bert: Option<&Bert>) -> BTreeMap<String, Vec<f32>> {
    read(&Initial::new(&Config::tiny(), SEED, bert)).unwrap()
}

/// Mean and standard deviation.
fn moments(values: &[f32]) -> [f64; 2] {
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
    let variance = values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / values.len() as f64;
    [mean, variance.sqrt()]
}

/// A BERT whose every tensor has values of its own.
fn bert() -> Tensors {
    tiny_bert(|tensor, index| 1000.0 * tensor as f32 + index as f32 / 8.0)
}

fn bert_folder(tensors: &Tensors) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    save(&folder.path().join("model.safetensors"), tensors);
    folder
}

#[test]
fn a_new_model_begins_as_blip_2_does_but_for_bert() {
    let values = initial(None);
    let config = Config::tiny();
    assert_eq!(values["temp"], [0.07]);
    let bound = 1.0 / (config.qformer.hidden_size as f32).sqrt();
    for head in ["vision_projection", "text_projection", "itm_head"] {
        for kind in ["weight", "bias"] {
            assert!(values[&format!("{head}.{kind}")].iter().all(|x| x.abs() <= bound));
        }
        // Uniform: a deviation of the bound over the root of 3. Five standard errors of 256 values or more.
        let [_, deviation] = moments(&values[&format!("{head}.weight")]);
        assert!((deviation / f64::from(bound) - 0.577).abs() < 0.1, "{head}: {deviation}");
    }
    for name in
        ["query_tokens", "cls.predictions.transform.dense.weight", "embeddings.word_embeddings.weight"]
    {
        let [mean, deviation] = moments(&values[name]);
        assert!(mean.abs() < 0.005 && (deviation - 0.02).abs() < 0.003, "{name}: {mean} {deviation}");
    }
    for (name, values) in &values {
        let is_norm = name.contains("LayerNorm") || name.contains("layernorm");
        match () {
            () if is_norm && name.ends_with(".weight") => assert!(values.iter().all(|&x| x == 1.0), "{name}"),
            () if name.ends_with(".bias") && !name.contains("projection") && !name.contains("itm_head") => {
                assert!(values.iter().all(|&x| x == 0.0), "{name}");
            }
            () => {}
        }
    }
}

#[test]
fn text_side_and_the_queries_feed_forward_are_berts() {
    let tensors = bert();
    let drawn = initial(None);
    let own: Tensors = tensors
        .iter()
        .map(|(name, tensor)| (name.strip_prefix("bert.").unwrap_or(name).to_owned(), tensor.clone()))
        .collect();
    let old: Tensors = tensors
        .iter()
        .map(|(name, tensor)| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
            (name.replace("LayerNorm.bias", "LayerNorm.beta"), tensor.clone())
        })
        .collect();
    for spelling in [&tensors, &own, &old] {
        let folder = bert_folder(spelling);
        let bert = Bert::open(folder.path()).unwrap();
        for (name, values) in initial(Some(&bert)) {
            let text = name.replace("_query.", ".");
            let theirs = text.replace("attention.attention.", "attention.self.");
            let theirs = match theirs.strip_prefix("qformer.layernorm.") {
                Some(norm) => format!("bert.embeddings.LayerNorm.{norm}"),
                None if theirs.starts_with("embeddings.") => format!("bert.{theirs}"),
                None => theirs.replace("qformer.encoder.", "bert.encoder."),
            };
            match tensors.get(&theirs).filter(|_| !name.contains("crossattention")) {
                Some((_, expected)) => {
                    let (known, added) = values.split_at(expected.len());
                    assert_eq!(known, expected, "{name}");
                    assert_eq!(added, &drawn[&name][expected.len()..], "{name}");
                    let grows = name.ends_with("word_embeddings.weight") || name == "cls.predictions.bias";
                    assert_eq!(!added.is_empty(), grows, "{name}");
                }
                None => assert_eq!(values, drawn[&name], "{name}"),
            }
        }
    }
}

#[test]
fn a_bert_of_another_size_or_without_its_head_is_refused_with_what_does_not_fit() {
    let refusal = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = bert();
        change(&mut tensors);
        let folder = bert_folder(&tensors);
        let bert = Bert::open(folder.path()).unwrap();
        read(&Initial::new(&Config::tiny(), SEED, Some(&bert))).unwrap_err().to_string()
    };
    let missing = refusal(&|tensors| drop(tensors.remove("cls.predictions.transform.dense.bias")));
    assert!(missing.contains("no tensor for \"cls.predictions.transform.dense.bias\""), "{missing}");
    let word = "bert.embeddings.word_embeddings.weight";
    let wide = refusal(&|tensors| drop(tensors.insert(word.into(), (vec![2, 7], vec![0.0; 14]))));
    assert!(wide.contains(&format!("tensor \"{word}\" has shape [2, 7], expected")), "{wide}");
    let long = refusal(&|tensors| {
        drop(tensors.insert("cls.predictions.bias".into(), (vec![5000], vec![0.0; 5000])))
    });
    assert!(long.contains("\"cls.predictions.bias\" has shape [5000]"), "{long}");
    let mut twice = bert();
    let tensor = twice[word].clone();
    twice.insert("embeddings.word_embeddings.weight".into(), tensor);
    let error = Bert::open(bert_folder(&twice).path()).err().unwrap().to_string();
    assert!(error.contains("comes twice"), "{error}");
}

#[test]
fn a_checkpoint_without_head_and_temperature_begins_these_anew_and_nothing_else() {
    let drawn = read(&Initial::new(&Config::tiny(), SEED + 1, None)).unwrap();
    let (lacking, whole): (Vec<Part>, Vec<Part>) =
        parts().into_iter().partition(|part| part.name == "temp" || part.name.starts_with("cls."));
    let mut tensors: Tensors = whole
        .iter()
        .map(|part| (part.name.clone(), (part.shape.clone(), drawn[&part.name].clone())))
        .collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    let bert_folder = bert_folder(&bert());
    let bert = Bert::open(bert_folder.path()).unwrap();
    let begin = |bert| {
        let config = Config::tiny();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let named = NamedCheckpoint::new(&checkpoint).unwrap();
        let source = Layered::new(&named, Initial::new(&config, SEED, bert));
        (source.begun(&specs()), read(&source))
    };
    save(&path, &tensors);
    for bert in [None, Some(&bert)] {
        let (begun, values) = begin(bert);
        let (values, anew) = (values.unwrap(), initial(bert));
        assert!(begun.iter().eq(lacking.iter().map(|part| &part.name)), "{begun:?}");
        for (name, values) in values {
            let expected = if begun.contains(&name) { &anew[&name] } else { &tensors[&name].1 };
            assert_eq!(&values, expected, "{name}");
        }
    }
    // What it has is taken.
    tensors.insert("temp".into(), (vec![], vec![0.01]));
    save(&path, &tensors);
    let (begun, values) = begin(None);
    assert_eq!(values.unwrap()["temp"], [0.01]);
    assert!(!begun.contains(&"temp".to_owned()) && begun.len() == lacking.len() - 1);
    // Anything else that is missing is told.
    for name in ["vision_model.post_layernorm.weight", "itm_head.bias"] {
        tensors.remove(name);
    }
    save(&path, &tensors);
    let error = begin(Some(&bert)).1.unwrap_err().to_string();
    for name in ["vision_model.post_layernorm.weight", "itm_head.bias"] {
        assert!(error.contains(&format!("tensor \"{name}\"")), "{error}");
    }
}

#[test]
fn of_a_checkpoint_whose_encoder_is_taken_nothing_else_is() {
    let config = Config::tiny();
    let of_encoder = parts_of(&encoder::Parameters::spec(config.vision.encoder().unwrap()));
    let all = [parts(), of_encoder.clone()].concat();
    let theirs = read_parts(&Initial::new(&config, SEED + 1, None), &all).unwrap();
    let write = |parts: &[Part]| {
        let folder = tempfile::tempdir().unwrap();
        let tensors =
            parts.iter().map(|part| (part.name.clone(), (part.shape.clone(), theirs[&part.name].clone())));
        save(&folder.path().join("model.safetensors"), &tensors.collect());
        folder
    };
    let bert_folder = bert_folder(&bert());
    let bert = Bert::open(bert_folder.path()).unwrap();
    let begin = |folder: &TempDir| {
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let named = NamedCheckpoint::new(&checkpoint).unwrap();
        let initial = Initial::new(&config, SEED, Some(&bert));
        read_parts(&Layered::with_encoder_of(&named, initial), &all)
    };
    let anew = initial(Some(&bert));
    // A whole checkpoint and an image encoder alone are the same.
    for parts in [&all, &of_encoder] {
        for (name, values) in begin(&write(parts)).unwrap() {
            assert_eq!(&values, anew.get(&name).unwrap_or(&theirs[&name]), "{name}");
        }
    }
    let error = begin(&write(&of_encoder[1..])).unwrap_err().to_string();
    assert!(error.contains(&format!("tensor \"{}\"", of_encoder[0].name)), "{error}");
}
