//! Configurations: what is read from a `config.json`, what is refused, and what is written.

mod language;
mod vision;

use qformer::config::{Activation, Family, LanguageConfig, VisionConfig, VitConfig};
use qformer::{Config, Result};
use serde_json::{Value, json};
use std::path::Path;

const RETRIEVAL: &str = include_str!("../golden/retrieval/model/config.json");
const LAVIS: &str = include_str!("../golden/stage1/config.json");

/// The image encoder's sizes.
fn vit(config: &Config) -> &VitConfig {
    config.vision.encoder().unwrap()
}

fn parse(text: &str) -> Result<Config> {
    Config::from_json(Path::new("config.json"), text)
}

/// Asserts that `text` is refused with a message that holds every one of `fragments`.
fn assert_refused(text: &str, fragments: &[&str]) {
    let shown = &text[..text.len().min(120)];
    let message = match parse(text) {
        Ok(_) => panic!("accepted: {shown}"),
        Err(error) => error.to_string(),
    };
    for fragment in fragments {
        assert!(message.contains(fragment), "{shown}: \"{message}\" does not say \"{fragment}\"");
    }
    assert!(message.len() < 500, "a message of {} bytes", message.len());
    assert!(!message.contains(|character: char| character.is_control()), "{message:?}");
}

#[test]
fn a_file_of_transformers_is_read() {
    let config = parse(RETRIEVAL).unwrap();
    assert_eq!(config.family, Family::Blip2);
    assert_eq!((config.num_query_tokens, config.image_text_hidden_size), (8, 32));
    assert_eq!((vit(&config).hidden_size, vit(&config).num_hidden_layers), (64, 2));
    assert_eq!((vit(&config).layer_norm_eps, vit(&config).post_layer_norm_eps), (1e-6, 1e-6));
    assert_eq!(config.image_tokens(), 17);
    assert_eq!(config.qformer.vocab_size, 86);
    assert_eq!(config.qformer.layer_norm_eps, 1e-12);
    assert_eq!(config.qformer.head_dim(), 64);
    assert!(config.qformer.use_qformer_text_input);
    assert!(matches!(config.language, Some(LanguageConfig::Opt(_))));
    assert_eq!(config.image_token_index, None);
}

#[test]
fn a_sparse_file_takes_the_defaults_of_transformers() {
    let config = parse(LAVIS).unwrap();
    assert_eq!((vit(&config).hidden_size, vit(&config).num_attention_heads), (64, 16));
    assert_eq!((vit(&config).layer_norm_eps, vit(&config).post_layer_norm_eps), (1e-5, 1e-5));
    assert_eq!((config.qformer.intermediate_size, config.qformer.hidden_dropout_prob), (192, 0.0));

    let config = parse(r#"{"model_type": "blip-2"}"#).unwrap();
    assert_eq!((config.num_query_tokens, config.image_text_hidden_size), (32, 256));
    assert_eq!((vit(&config).hidden_size, vit(&config).intermediate_size), (1408, 6144));
    assert_eq!((vit(&config).num_hidden_layers, vit(&config).head_dim()), (39, 88));
    assert_eq!(config.image_tokens(), 257);
    assert_eq!(vit(&config).hidden_act, Activation::Gelu);
    assert_eq!((config.qformer.vocab_size, config.qformer.hidden_size), (30522, 768));
    assert_eq!((config.qformer.num_hidden_layers, config.qformer.head_dim()), (12, 64));
    assert_eq!((config.qformer.intermediate_size, config.qformer.max_position_embeddings), (3072, 512));
    assert_eq!(config.qformer.hidden_dropout_prob, 0.1);
    assert_eq!(config.qformer.attention_probs_dropout_prob, 0.1);
    assert!(!config.qformer.use_qformer_text_input);
    assert_eq!(config.language, None);
}

#[test]
fn the_presets_are_valid_and_survive_being_written_and_read() {
    for config in [Config::blip2_vit_g(), Config::tiny()] {
        config.validate().unwrap();
        assert_eq!(parse(&config.to_json().to_string()).unwrap(), config);
        assert_eq!(config.to_json()["architectures"], json!(["Blip2ForImageTextRetrieval"]));
    }
    let hub = Config::blip2_vit_g();
    assert_eq!((hub.qformer.vocab_size, hub.image_tokens()), (30523, 257));
}

#[test]
fn what_is_written_is_what_transformers_writes() {
    fn assert_same(ours: &Value, theirs: &Value, place: &str) {
        match ours {
            Value::Object(fields) => {
                for (name, value) in fields {
                    assert_same(value, &theirs[name], &format!("{place}.{name}"));
                }
            }
            _ => assert_eq!(ours, theirs, "{place}"),
        }
    }
    let golden: Value = serde_json::from_str(RETRIEVAL).unwrap();
    let ours = parse(RETRIEVAL).unwrap().to_json();
    assert_same(&ours, &golden, "config");
    for section in ["vision_config", "qformer_config", "text_config"] {
        let names = |json: &Value| json[section].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&golden), "{section}");
    }
}

#[test]
fn fields_beyond_the_defaults_survive_being_written_and_read() {
    let text = r#"{"model_type": "instructblip", "image_token_index": 7,
        "vision_config": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-6, "post_layer_norm_eps": 1e-5},
        "qformer_config": {"hidden_act": "gelu_new", "use_qformer_text_input": false}}"#;
    let config = parse(text).unwrap();
    assert_eq!(config.family, Family::InstructBlip);
    assert!(config.qformer.use_qformer_text_input, "InstructBLIP's Q-Former always reads text");
    assert_eq!(config.image_token_index, Some(7));
    assert_eq!((vit(&config).layer_norm_eps, vit(&config).post_layer_norm_eps), (1e-6, 1e-5));
    assert_eq!(parse(&config.to_json().to_string()).unwrap(), config);
}

#[test]
fn the_older_name_of_the_text_flag_is_read() {
    let text = r#"{"model_type": "blip-2", "qformer_config": {"qformer_text_input": true}}"#;
    assert!(parse(text).unwrap().qformer.use_qformer_text_input);
}

#[test]
fn the_image_encoders_width_replaces_the_one_of_the_q_former() {
    let text = r#"{"model_type": "blip-2", "vision_config": {"hidden_size": 1024},
        "qformer_config": {"encoder_hidden_size": 1408}}"#;
    assert_eq!(parse(text).unwrap().qformer.encoder_hidden_size, 1024);

    let mut config = Config::tiny();
    config.vision = VisionConfig::Eva(VitConfig { hidden_size: 32, ..vit(&config).clone() });
    let message = config.validate().unwrap_err().to_string();
    assert!(message.contains("encoder_hidden_size is 64; it has to be vision_config.hidden_size, 32"));
}

#[test]
fn cross_attention_is_in_every_nth_layer_from_the_first_on() {
    let mut qformer = Config::blip2_vit_g().qformer;
    for (frequency, layers) in
        [(1, (0..12).collect()), (2, vec![0, 2, 4, 6, 8, 10]), (5, vec![0, 5, 10]), (99, vec![0])]
    {
        qformer.cross_attention_frequency = frequency;
        assert_eq!(qformer.cross_attention_layers().collect::<Vec<_>>(), layers);
        let by_layer: Vec<_> = (0..12).filter(|&layer| qformer.has_cross_attention(layer)).collect();
        assert_eq!(by_layer, layers);
    }
}

#[test]
fn activations_are_known_by_the_names_of_transformers() {
    let names = [
        ("gelu", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("quick_gelu", Activation::QuickGelu),
        ("relu", Activation::Relu),
    ];
    for (name, activation) in names {
        let text = json!({ "model_type": "blip-2", "qformer_config": { "hidden_act": name } }).to_string();
        assert_eq!(parse(&text).unwrap().qformer.hidden_act, activation);
    }
    let text = r#"{"model_type": "blip-2", "vision_config": {"hidden_act": "swish"}}"#;
    assert_refused(text, &["vision_config.hidden_act is \"swish\"", "\"gelu\", \"gelu_new\""]);
}

/// Fields by the kind of their values; every field that is read is here.
const INTEGERS: [&str; 17] = [
    "/num_query_tokens",
    "/image_text_hidden_size",
    "/vision_config/hidden_size",
    "/vision_config/intermediate_size",
    "/vision_config/num_hidden_layers",
    "/vision_config/num_attention_heads",
    "/vision_config/image_size",
    "/vision_config/patch_size",
    "/qformer_config/vocab_size",
    "/qformer_config/hidden_size",
    "/qformer_config/num_hidden_layers",
    "/qformer_config/num_attention_heads",
    "/qformer_config/intermediate_size",
    "/qformer_config/max_position_embeddings",
    "/qformer_config/cross_attention_frequency",
    "/qformer_config/pad_token_id",
    "/image_token_index",
];
const NUMBERS: [&str; 6] = [
    "/vision_config/layer_norm_eps",
    "/vision_config/post_layer_norm_eps",
    "/qformer_config/layer_norm_eps",
    "/qformer_config/hidden_dropout_prob",
    "/qformer_config/attention_probs_dropout_prob",
    "/qformer_config/initializer_range",
];
const OTHERS: [&str; 7] = [
    "/model_type",
    "/vision_config/model_type",
    "/vision_config/hidden_act",
    "/vision_config/qkv_bias",
    "/qformer_config/hidden_act",
    "/qformer_config/position_embedding_type",
    "/qformer_config/use_qformer_text_input",
];

/// The golden configuration with `value` at `pointer`.
fn with(pointer: &str, value: &Value) -> String {
    let mut json: Value = serde_json::from_str(RETRIEVAL).unwrap();
    let (section, field) = pointer.rsplit_once('/').unwrap();
    json.pointer_mut(section).unwrap()[field] = value.clone();
    json.to_string()
}

#[test]
fn every_field_refuses_values_of_another_type_by_its_name() {
    let fields = INTEGERS.iter().chain(&NUMBERS).chain(&OTHERS);
    for pointer in fields {
        let field = pointer.rsplit('/').next().unwrap();
        for value in
            [json!([]), json!({}), json!([[1]]), json!("\u{1b}[2J\u{202e}"), json!("x".repeat(10_000))]
        {
            assert_refused(&with(pointer, &value), &[field]);
        }
    }
    // Replaced by another field's value, yet a width it has to be.
    let replaced = ["/qformer_config/encoder_hidden_size"];
    for pointer in INTEGERS.iter().chain(&replaced) {
        let field = pointer.rsplit('/').next().unwrap();
        for value in [json!(-1), json!(2.0), json!(0.5), json!(1e308), json!("2"), json!(true)] {
            assert_refused(&with(pointer, &value), &[field, "an integer"]);
        }
    }
    for pointer in NUMBERS {
        let field = pointer.rsplit('/').next().unwrap();
        for value in [json!("1e-6"), json!("NaN"), json!(false), json!(null)] {
            assert_refused(&with(pointer, &value), &[field, "a number"]);
        }
    }
}

#[test]
fn every_field_refuses_values_out_of_its_bounds_by_its_name() {
    for pointer in INTEGERS.iter().filter(|pointer| !pointer.ends_with("_index")) {
        let field = pointer.rsplit('/').next().unwrap();
        for value in [1_000_000_000_u64, u32::MAX.into(), 1 << 32, 1 << 53, 1 << 63, u64::MAX] {
            assert_refused(&with(pointer, &json!(value)), &[field, &value.to_string(), "it has to be"]);
        }
        if field != "pad_token_id" {
            assert_refused(&with(pointer, &json!(0)), &[field, "is 0; it has to be"]);
        }
    }
    for pointer in NUMBERS {
        let field = pointer.rsplit('/').next().unwrap();
        for value in [-1.0, -1e-300, 1.5, 1e308] {
            assert_refused(&with(pointer, &json!(value)), &[field, "it has to be from"]);
        }
        if field.ends_with("eps") {
            assert_refused(&with(pointer, &json!(0)), &[field, "is 0; it has to be from 1e-30 to 0.1"]);
            assert_refused(&with(pointer, &json!(1e-60)), &[field]);
        }
    }
}

#[test]
fn epsilons_that_are_not_numbers_are_refused_in_values_too() {
    let mut config = Config::tiny();
    config.qformer.layer_norm_eps = f64::NAN;
    assert!(config.validate().unwrap_err().to_string().contains("layer_norm_eps is NaN"));
}

#[test]
fn sizes_that_do_not_divide_each_other_are_refused() {
    let cases = [
        ("/qformer_config/num_attention_heads", 3, "a divisor of hidden_size, 128"),
        ("/vision_config/num_attention_heads", 5, "a divisor of hidden_size, 64"),
        ("/vision_config/patch_size", 16, "a divisor of image_size, 56"),
        ("/qformer_config/pad_token_id", 86, "less than vocab_size, 86"),
    ];
    for (pointer, value, allowed) in cases {
        assert_refused(&with(pointer, &json!(value)), &[&format!("is {value}; it has to be {allowed}")]);
    }
}

#[test]
fn what_no_code_here_computes_is_refused() {
    let cases = [
        ("/model_type", json!("blip"), "\"blip-2\" or \"instructblip\""),
        ("/vision_config/qkv_bias", json!(false), "qkv_bias is false; it has to be true"),
        ("/qformer_config/position_embedding_type", json!("relative_key"), "it has to be \"absolute\""),
    ];
    for (pointer, value, allowed) in cases {
        assert_refused(&with(pointer, &value), &[allowed]);
    }
    assert_refused("{}", &["model_type is absent"]);
}

#[test]
fn what_is_no_plain_json_object_is_refused() {
    let deep =
        format!("{{\"model_type\": \"blip-2\", \"x\": {}1{}}}", "[".repeat(10_000), "]".repeat(10_000));
    let wide = format!("{{\"model_type\": \"blip-2\", \"x\": {}1{}}}", "[".repeat(20), "]".repeat(20));
    let digits = format!("{{\"model_type\": \"blip-2\", \"num_query_tokens\": {}}}", "9".repeat(100_000));
    let cases: [(&str, &str); 12] = [
        ("", "EOF"),
        ("[]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{\"model_type\": \"blip-2\"} x", "trailing characters"),
        ("\u{feff}{\"model_type\": \"blip-2\"}", "expected value"),
        ("{\"model_type\": \"blip-2\", \"a\": 1, \"a\": 1}", "\"a\" comes twice"),
        (
            "{\"model_type\": \"blip-2\", \"vision_config\": {\"a\": {\"b\": 1, \"b\": 2}}}",
            "\"b\" comes twice",
        ),
        ("{\"model_type\": \"blip-2\", \"vision_config\": {\"layer_norm_eps\": NaN}}", "expected value"),
        (&deep, "nested more than 16 deep"),
        (&wide, "nested more than 16 deep"),
        (&digits, "number out of range"),
    ];
    for (text, fragment) in cases {
        assert_refused(text, &["config.json", fragment]);
    }
    for section in ["vision_config", "qformer_config", "text_config"] {
        for value in [json!(1), json!([]), json!("x")] {
            assert_refused(&with(&format!("/{section}"), &value), &[section, "is not an object"]);
        }
    }
}

#[test]
fn files_that_are_absent_too_large_or_not_text_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let message = || Config::load(folder.path()).unwrap_err().to_string();
    assert!(message().contains("cannot open"));
    std::fs::write(&path, format!("{RETRIEVAL}{}", " ".repeat(1 << 20))).unwrap();
    assert!(message().contains("at most 1048576 are read"), "{}", message());
    std::fs::write(&path, b"{\"model_type\": \"\xff\"}").unwrap();
    assert!(message().contains("not UTF-8 at byte 16"), "{}", message());
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(message().contains("not a regular file"), "{}", message());
    std::fs::remove_dir(&path).unwrap();
    std::fs::write(&path, RETRIEVAL).unwrap();
    assert_eq!(Config::load(folder.path()).unwrap(), parse(RETRIEVAL).unwrap());
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_instead_of_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let status =
        std::process::Command::new("mkfifo").arg(folder.path().join("config.json")).status().unwrap();
    assert!(status.success());
    assert!(Config::load(folder.path()).unwrap_err().to_string().contains("not a regular file"));
}
