//! Checkpoints with other names, types and files than the golden one.

use crate::common::*;
use qformer::params::safetensors::{Dtype, NewTensor, write};
use qformer::tensor::HostTensor;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;

/// LAVIS's name of what Hugging Face calls `name`: the beginnings of names first, then what is within.
fn lavis_name(name: &str) -> String {
    let renamed = [
        ("vision_model.embeddings.class_embedding", "visual_encoder.cls_token"),
        ("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed"),
        ("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj"),
        ("vision_model.encoder.layers", "visual_encoder.blocks"),
        ("vision_model.post_layernorm", "ln_vision"),
        ("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm"),
        ("qformer.encoder", "Qformer.bert.encoder"),
        ("embeddings", "Qformer.bert.embeddings"),
        ("vision_projection", "vision_proj"),
        ("text_projection", "text_proj"),
    ]
    .iter()
    .find_map(|(own, lavis)| Some(format!("{lavis}{}", name.strip_prefix(own)?)))
    .unwrap_or_else(|| name.to_owned());
    if name.starts_with("vision_model.encoder") {
        return renamed
            .replace("layer_norm", "norm")
            .replace("self_attn.projection", "attn.proj")
            .replace("self_attn", "attn");
    }
    renamed.replace("attention.attention", "attention.self")
}

/// The golden model with a keys' bias of zero in the image encoder, the only one LAVIS knows.
fn without_key_bias() -> Workplace {
    let mut workplace = Workplace::new();
    for (name, tensor) in &mut workplace.tensors {
        if name.ends_with("self_attn.qkv.bias") {
            tensor.values_mut()[64..128].fill(0.0);
        }
    }
    workplace.save(Dtype::F32);
    workplace
}

fn name_as_lavis(workplace: &mut Workplace) {
    workplace.rename(lavis_name);
    for block in 0..2 {
        let name = |bias| format!("visual_encoder.blocks.{block}.attn.{bias}");
        let bias = workplace.tensors.remove(&name("qkv.bias")).unwrap().into_values();
        for (part, values) in [("q_bias", &bias[..64]), ("v_bias", &bias[128..])] {
            workplace.tensors.insert(name(part), HostTensor::new(&[64], values.to_vec()).unwrap());
        }
    }
    // What Hugging Face leaves out.
    let words = workplace.tensors["Qformer.bert.embeddings.word_embeddings.weight"].clone();
    workplace.tensors.insert("Qformer.cls.predictions.decoder.weight".into(), words);
    let extra = [
        ("temp", &[][..]),
        ("Qformer.bert.embeddings.position_ids", &[1, 64]),
        ("Qformer.cls.predictions.bias", &[86]),
        ("Qformer.cls.predictions.decoder.bias", &[86]),
        ("Qformer.cls.predictions.transform.dense.weight", &[128, 128]),
        ("Qformer.cls.predictions.transform.dense.bias", &[128]),
        ("Qformer.cls.predictions.transform.LayerNorm.weight", &[128]),
        ("Qformer.cls.predictions.transform.LayerNorm.bias", &[128]),
    ];
    for (name, shape) in extra {
        let values = vec![0.5; shape.iter().product()];
        workplace.tensors.insert(name.into(), HostTensor::new(shape, values).unwrap());
    }
    workplace.save(Dtype::F32);
}

#[test]
fn lavis_names_give_the_same_bytes() {
    let mut workplace = without_key_bias();
    let expected = workplace.embedded();
    name_as_lavis(&mut workplace);
    assert!(workplace.tensors.keys().all(|name| !name.starts_with("qformer.")));
    assert!(expected == workplace.embedded());
    let report = run(["inspect", &shown(&workplace.model())]).succeeds();
    for line in ["names of LAVIS", "All tensors fit config.json."] {
        assert!(report.contains(line), "{report}");
    }
}

#[test]
fn a_lavis_checkpoint_without_image_encoder_reads_saved_features() {
    let mut workplace = without_key_bias();
    let features = workplace.path().join("vision.safetensors");
    let mut arguments = embed_all(&workplace.model(), &workplace.output());
    arguments.extend(["--save-vision-output".into(), shown(&features)]);
    run(arguments).succeeds();
    let expected = fs::read(workplace.output()).unwrap();
    name_as_lavis(&mut workplace);
    workplace.tensors.retain(|name, _| !name.starts_with("visual_encoder."));
    workplace.save(Dtype::F32);

    fs::remove_file(workplace.output()).unwrap();
    workplace.embed().fails(&["has no image encoder", "LAVIS's .pth files", "--features"]);
    workplace.has_written_nothing();
    let mut arguments = vec!["embed".to_owned(), "--model".into(), shown(&workplace.model())];
    arguments.extend(["--features".into(), shown(&features), "--text".into()]);
    arguments.extend(TEXTS.map(str::to_owned));
    arguments.extend(["--output".into(), shown(&workplace.output())]);
    run(arguments).succeeds();
    assert!(expected == fs::read(workplace.output()).unwrap());
    let report = run(["inspect", &shown(&workplace.model())]).succeeds();
    assert!(report.contains("its output can be given with --features"), "{report}");
}

#[test]
fn instructblip_names_give_the_same_query_outputs() {
    let mut workplace = Workplace::new();
    workplace.rename(|name| match name {
        _ if name.starts_with("embeddings.") => format!("qformer.{name}"),
        _ => name.replace("qformer.layernorm", "qformer.embeddings.layernorm"),
    });
    workplace.tensors.retain(|name, _| !name.contains("_projection.") && !name.starts_with("itm_head."));
    workplace.save(Dtype::F32);
    workplace.configure(|config| config["model_type"] = "instructblip".into());
    workplace.embed().misuses(&["no projections and no matching head"]);
    workplace.has_written_nothing();
    let mut arguments = embed_all(&workplace.model(), &workplace.output());
    arguments.truncate(arguments.len() - TEXTS.len() - 1);
    run(arguments).succeeds();
    let error = relative_error(&read(&workplace.output(), "query_output"), &expected("query_output"));
    assert!(error < TOLERANCE, "{error:e}");
    let report = run(["inspect", &shown(&workplace.model())]).succeeds();
    assert!(report.contains("names of InstructBLIP"), "{report}");
}

#[test]
fn a_model_that_reads_no_text_says_so() {
    let mut workplace = Workplace::new();
    workplace.tensors.retain(|name, _| {
        let is_of_text = name.contains(".intermediate.");
        let is_text_output = name.starts_with("qformer.encoder") && name.split('.').nth(4) == Some("output");
        let is_head = name.contains("_projection.") || name.starts_with("itm_head.");
        !(is_of_text || is_text_output || is_head || name.starts_with("embeddings."))
    });
    workplace.save(Dtype::F32);
    workplace.configure(|config| config["qformer_config"]["use_qformer_text_input"] = false.into());
    workplace.embed().misuses(&[
        "reads no text",
        "use_qformer_text_input is false",
        "Blip2ForImageTextRetrieval",
    ]);
    workplace.has_written_nothing();
    let mut arguments = embed_all(&workplace.model(), &workplace.output());
    arguments.truncate(arguments.len() - TEXTS.len() - 1);
    run(arguments).succeeds();
    let error = relative_error(&read(&workplace.output(), "query_output"), &expected("query_output"));
    assert!(error < TOLERANCE, "{error:e}");
}

#[test]
fn the_image_token_that_transformers_adds_is_no_obstacle() {
    let workplace = Workplace::new();
    let expected = workplace.embedded();
    let path = workplace.model().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let added = json["added_tokens"].as_array_mut().unwrap();
    let mut image = added[0].clone();
    (image["id"], image["content"]) = (86.into(), "<image>".into());
    added.push(image);
    fs::write(path, json.to_string()).unwrap();
    assert!(expected == workplace.embedded());

    let mut arguments = embed_all(&workplace.model(), &workplace.output());
    arguments.push("an <image> of a cat".into());
    run(arguments).fails(&["text 5 has token 86, but the vocabulary has 86"]);
}

#[test]
fn half_precision_checkpoints_agree_within_their_precision() {
    // Rounding moves weights by up to 2^-11 (f16) or 2^-8 (bf16) of their size, and layers add up.
    for (dtype, tolerance) in [(Dtype::F16, 8.0 / 2048.0), (Dtype::BF16, 8.0 / 256.0)] {
        let workplace = Workplace::new();
        workplace.save(dtype);
        workplace.embed().succeeds();
        for (name, golden) in [("image_features", "query_features"), ("text_features", "text_features")] {
            let error = relative_error(&read(&workplace.output(), name), &expected(golden));
            assert!(error > 1e-5 && error < tolerance, "{name} in {dtype} is off by {error:e}");
        }
    }
}

#[test]
fn shards_give_the_same_bytes() {
    let workplace = Workplace::new();
    let expected = workplace.embedded();
    fs::remove_file(workplace.weights()).unwrap();
    let mut weight_map = Map::new();
    for shard in 0..3 {
        let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
        let tensors = workplace.tensors.iter().skip(shard).step_by(3);
        let new = tensors.map(|(name, tensor)| {
            weight_map.insert(name.clone(), file.clone().into());
            NewTensor::from_slice(name, Dtype::F32, tensor.shape(), tensor.values())
        });
        let new = new.collect();
        write(&workplace.model().join(&file), &BTreeMap::new(), new).unwrap();
    }
    let index = json!({ "metadata": { "total_size": 0 }, "weight_map": weight_map }).to_string();
    fs::write(workplace.model().join("model.safetensors.index.json"), index).unwrap();
    assert!(expected == workplace.embedded());

    fs::remove_file(workplace.output()).unwrap();
    fs::remove_file(workplace.model().join("model-00002-of-00003.safetensors")).unwrap();
    workplace.embed().fails(&["cannot open", "model-00002-of-00003.safetensors"]);
    workplace.has_written_nothing();
}
