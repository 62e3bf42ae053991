//! The language model of a generating checkpoint: OPT, T5 or LLaMA.
//!
//! `tests/golden/config` holds the config.json of small models that transformers saved.

use super::{assert_refused, parse};
use qformer::config::{Activation, LanguageConfig, LlamaConfig, OptConfig, T5Config};
use serde_json::{Map, Value, json};

const OPT: &str = include_str!("../golden/config/opt.json");
const T5: &str = include_str!("../golden/config/t5.json");
const LLAMA: &str = include_str!("../golden/config/llama.json");

/// A file with this `text_config`.
fn with_text(text: &Value) -> String {
    json!({ "model_type": "blip-2", "text_config": text }).to_string()
}

fn read(text: &Value) -> LanguageConfig {
    parse(&with_text(text)).unwrap().language.unwrap()
}

fn opt(text: &Value) -> OptConfig {
    match read(text) {
        LanguageConfig::Opt(opt) => opt,
        other => panic!("{other:?}"),
    }
}

fn t5(text: &Value) -> T5Config {
    match read(text) {
        LanguageConfig::T5(t5) => t5,
        other => panic!("{other:?}"),
    }
}

fn llama(text: &Value) -> LlamaConfig {
    match read(text) {
        LanguageConfig::Llama(llama) => llama,
        other => panic!("{other:?}"),
    }
}

/// `text_config` of a golden file.
fn golden(file: &str) -> Map<String, Value> {
    let file: Value = serde_json::from_str(file).unwrap();
    file["text_config"].as_object().unwrap().clone()
}

#[test]
fn files_of_transformers_are_read() {
    let opt = opt(&golden(OPT).into());
    assert_eq!((opt.vocab_size, opt.hidden_size, opt.num_hidden_layers, opt.ffn_dim), (331, 128, 2, 256));
    assert_eq!((opt.max_position_embeddings, opt.word_embed_proj_dim), (128, 128));
    assert_eq!((opt.do_layer_norm_before, opt.remove_final_layer_norm), (true, false));
    assert_eq!((opt.activation_function, opt.dropout), (Activation::Relu, 0.0));
    let t5 = t5(&golden(T5).into());
    assert_eq!((t5.vocab_size, t5.d_model, t5.d_kv, t5.d_ff, t5.num_heads), (331, 64, 32, 128, 2));
    assert_eq!((t5.dense_act_fn, t5.is_gated_act), (Activation::GeluTanh, true));
    assert!(!t5.scale_decoder_outputs, "version 5 of transformers says so apart from tie_word_embeddings");
    let llama = llama(&golden(LLAMA).into());
    assert_eq!((llama.hidden_size, llama.intermediate_size, llama.head_dim), (64, 128, 32));
    assert_eq!((llama.num_key_value_heads, llama.rope_theta, llama.pad_token_id), (2, 1e4, Some(3)));
    let sizes = |file: &str| {
        let language = parse(file).unwrap().language.unwrap();
        (language.hidden_size(), language.vocab_size())
    };
    assert_eq!([OPT, T5, LLAMA].map(sizes), [(128, 331), (64, 331), (64, 395)]);
}

#[test]
fn what_transformers_wrote_is_written_again() {
    for file in [OPT, T5, LLAMA] {
        let config = parse(file).unwrap();
        let written = config.to_json();
        assert_eq!(parse(&written.to_string()).unwrap(), config);
        let theirs: Value = serde_json::from_str(file).unwrap();
        assert_eq!(written["architectures"], theirs["architectures"]);
        for (name, value) in golden(file) {
            // Version 4 scales T5's output by it, version 5 by scale_decoder_outputs only.
            if (&*name, &theirs["text_config"]["model_type"]) != ("tie_word_embeddings", &json!("t5")) {
                assert_eq!(written["text_config"][&name], value, "{name}");
            }
        }
    }
}

#[test]
fn sparse_files_take_the_defaults_of_transformers() {
    let opt = opt(&json!({}));
    assert_eq!((opt.vocab_size, opt.hidden_size, opt.num_hidden_layers), (50272, 768, 12));
    assert_eq!((opt.num_attention_heads, opt.ffn_dim, opt.max_position_embeddings), (12, 3072, 2048));
    assert_eq!((opt.word_embed_proj_dim, opt.dropout, opt.attention_dropout), (768, 0.1, 0.0));
    assert_eq!((opt.pad_token_id, opt.bos_token_id, opt.eos_token_id), (Some(1), Some(2), vec![2]));
    assert!(opt.do_layer_norm_before && opt.enable_bias && opt.layer_norm_elementwise_affine);
    assert!(opt.tie_word_embeddings && !opt.remove_final_layer_norm);
    let t5 = t5(&json!({ "model_type": "t5" }));
    assert_eq!((t5.vocab_size, t5.d_model, t5.d_kv, t5.d_ff), (32128, 512, 64, 2048));
    assert_eq!((t5.num_layers, t5.num_decoder_layers, t5.num_heads), (6, 6, 8));
    assert_eq!((t5.relative_attention_num_buckets, t5.relative_attention_max_distance), (32, 128));
    assert_eq!((t5.dense_act_fn, t5.is_gated_act, t5.scale_decoder_outputs), (Activation::Relu, false, true));
    assert_eq!((t5.pad_token_id, t5.eos_token_id, t5.decoder_start_token_id), (Some(0), vec![1], Some(0)));
    let llama = llama(&json!({ "model_type": "llama" }));
    assert_eq!((llama.vocab_size, llama.hidden_size, llama.intermediate_size), (32000, 4096, 11008));
    assert_eq!((llama.num_attention_heads, llama.num_key_value_heads, llama.head_dim), (32, 32, 128));
    assert_eq!((llama.rope_theta, llama.rms_norm_eps, llama.max_position_embeddings), (1e4, 1e-6, 2048));
    assert_eq!((llama.pad_token_id, llama.bos_token_id, llama.eos_token_id), (None, Some(1), vec![2]));
    assert!(!llama.attention_bias && !llama.mlp_bias && !llama.tie_word_embeddings);
}

#[test]
fn fields_beyond_the_defaults_survive_being_written_and_read() {
    let texts = [
        // Sizes of OPT-350M.
        json!({ "model_type": "opt", "hidden_size": 1024, "word_embed_proj_dim": 512, "num_hidden_layers": 24,
            "num_attention_heads": 16, "ffn_dim": 4096, "do_layer_norm_before": false,
            "_remove_final_layer_norm": true, "activation_function": "gelu", "enable_bias": false,
            "layer_norm_elementwise_affine": false, "tie_word_embeddings": false, "dropout": 0.2,
            "attention_dropout": 0.3, "init_std": 0.01, "pad_token_id": null, "bos_token_id": null,
            "eos_token_id": [2, 50118], "vocab_size": 50304, "max_position_embeddings": 64 }),
        json!({ "model_type": "t5", "vocab_size": 99, "d_model": 48, "d_kv": 20, "d_ff": 30, "num_layers": 3,
            "num_decoder_layers": 2, "num_heads": 5, "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 9, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu",
            "layer_norm_epsilon": 1e-5, "tie_word_embeddings": false, "dropout_rate": 0.2,
            "initializer_factor": 2.0, "pad_token_id": 4, "eos_token_id": null, "decoder_start_token_id": 5 }),
        json!({ "model_type": "t5", "feed_forward_proj": "relu", "dense_act_fn": "quick_gelu" }),
        json!({ "model_type": "t5", "feed_forward_proj": "gelu_new" }),
        json!({ "model_type": "t5", "feed_forward_proj": "gated-relu" }),
        json!({ "model_type": "llama", "vocab_size": 99, "hidden_size": 48, "intermediate_size": 100,
            "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 10,
            "max_position_embeddings": 77, "rope_theta": 5e5, "rms_norm_eps": 1e-5, "attention_bias": true,
            "mlp_bias": true, "tie_word_embeddings": true, "attention_dropout": 0.1,
            "initializer_range": 0.01, "pad_token_id": 0, "bos_token_id": 3, "eos_token_id": [4, 5] }),
    ];
    for text in texts {
        let config = parse(&with_text(&text)).unwrap();
        let written = config.to_json();
        for (name, value) in text.as_object().unwrap() {
            assert_eq!(&written["text_config"][name], value, "{name}");
        }
        assert_eq!(parse(&written.to_string()).unwrap(), config);
    }
}

#[test]
fn a_gated_gelu_is_of_the_kind_that_the_file_names() {
    let of = |text: Value| {
        let t5 = t5(&text);
        (t5.dense_act_fn, t5.is_gated_act)
    };
    let flan = json!({ "model_type": "t5", "feed_forward_proj": "gated-gelu" });
    assert_eq!(of(flan.clone()), (Activation::GeluTanh, true));
    // As BLIP-2's files say.
    let mut blip2 = flan;
    blip2["dense_act_fn"] = "gelu".into();
    blip2["is_gated_act"] = true.into();
    assert_eq!(of(blip2), (Activation::Gelu, true));
    assert_eq!(of(json!({ "model_type": "t5", "feed_forward_proj": "relu" })), (Activation::Relu, false));
}

#[test]
fn the_output_of_t5_is_scaled_unless_the_file_says_that_its_head_is_untied() {
    let scaled = |more: Value| {
        let mut text = json!({ "model_type": "t5" });
        text.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        t5(&text).scale_decoder_outputs
    };
    assert!(scaled(json!({})) && scaled(json!({ "tie_word_embeddings": true })));
    assert!(!scaled(json!({ "tie_word_embeddings": false })));
    assert!(!scaled(json!({ "tie_word_embeddings": true, "scale_decoder_outputs": false })));
}

#[test]
fn absent_sizes_follow_the_others_where_they_are_null_too() {
    let opt = opt(&json!({ "hidden_size": 96, "word_embed_proj_dim": null, "pad_token_id": -1 }));
    assert_eq!((opt.word_embed_proj_dim, opt.pad_token_id), (96, None));
    let t5 =
        t5(&json!({ "model_type": "t5", "num_layers": 9, "num_decoder_layers": null, "pad_token_id": 7 }));
    assert_eq!((t5.num_decoder_layers, t5.decoder_start_token_id), (9, Some(7)));
    let text = json!({ "model_type": "llama", "hidden_size": 96, "num_attention_heads": 8, "head_dim": null,
        "num_key_value_heads": null, "rope_scaling": null, "rope_parameters": null, "rope_theta": 5.0 });
    let llama = llama(&text);
    assert_eq!((llama.num_key_value_heads, llama.head_dim, llama.rope_theta), (8, 12, 5.0));
}

#[test]
fn what_no_code_here_will_compute_is_refused_by_name() {
    let cases = [
        (
            json!({ "model_type": "gpt2" }),
            "text_config.model_type is gpt2; it has to be \"opt\", \"t5\" or \"llama\"",
        ),
        (json!({ "layerdrop": 0.1 }), "text_config.layerdrop is 0.1; it has to be 0"),
        (json!({ "activation_function": "swish" }), "text_config.activation_function is \"swish\""),
        (
            json!({ "model_type": "t5", "feed_forward_proj": "gated-silu" }),
            "text_config.feed_forward_proj is gated-silu",
        ),
        (
            json!({ "model_type": "t5", "feed_forward_proj": "relu", "is_gated_act": true }),
            "text_config.is_gated_act is true; it has to be false",
        ),
        (json!({ "model_type": "t5", "dense_act_fn": "silu" }), "text_config.dense_act_fn is \"silu\""),
        (
            json!({ "model_type": "llama", "hidden_act": "gelu" }),
            "text_config.hidden_act is \"gelu\"; it has to be \"silu\"",
        ),
        (
            json!({ "model_type": "llama", "rope_scaling": { "type": "linear", "factor": 2.0 } }),
            "text_config.rope_scaling.type is \"linear\"; it has to be \"default\"",
        ),
        (
            json!({ "model_type": "llama", "rope_parameters": { "rope_type": "llama3" } }),
            "text_config.rope_parameters.rope_type is \"llama3\"",
        ),
        (json!({ "model_type": "llama", "rope_scaling": 3 }), "text_config.rope_scaling is not an object"),
        (json!({ "num_attention_heads": 7 }), "is 7; it has to be a divisor of hidden_size, 768"),
        (
            json!({ "model_type": "llama", "num_attention_heads": 7 }),
            "is 7; it has to be a divisor of hidden_size, 4096",
        ),
        (
            json!({ "model_type": "llama", "num_key_value_heads": 5 }),
            "is 5; it has to be a divisor of num_attention_heads, 32",
        ),
        (json!({ "model_type": "llama", "head_dim": 33 }), "text_config.head_dim is 33; it has to be even"),
        (json!({ "model_type": "llama", "num_attention_heads": 0 }), "text_config.num_attention_heads is 0"),
        (
            json!({ "model_type": "t5", "relative_attention_max_distance": 16 }),
            "is 16; it has to be more than half of relative_attention_num_buckets, 32",
        ),
    ];
    for (text, told) in cases {
        assert_refused(&with_text(&text), &[told]);
    }
}

/// The golden file `file` with `value` in a field of its `text_config`.
fn with(file: &str, field: &str, value: &Value) -> String {
    let mut json: Value = serde_json::from_str(file).unwrap();
    json["text_config"][field] = value.clone();
    json.to_string()
}

/// Fields by the kind of their values; every field that is read is here.
const INTEGERS: [(&str, &[&str]); 3] = [
    (
        OPT,
        &[
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "ffn_dim",
            "max_position_embeddings",
            "word_embed_proj_dim",
        ],
    ),
    (
        T5,
        &[
            "vocab_size",
            "d_model",
            "d_kv",
            "d_ff",
            "num_layers",
            "num_decoder_layers",
            "num_heads",
            "relative_attention_num_buckets",
            "relative_attention_max_distance",
        ],
    ),
    (
        LLAMA,
        &[
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ],
    ),
];
const NUMBERS: [(&str, &[&str]); 3] = [
    (OPT, &["dropout", "attention_dropout", "init_std", "layerdrop"]),
    (T5, &["dropout_rate", "layer_norm_epsilon", "initializer_factor"]),
    (LLAMA, &["attention_dropout", "rms_norm_eps", "initializer_range"]),
];
const TOKENS: [(&str, &[&str]); 3] = [
    (OPT, &["pad_token_id", "bos_token_id", "eos_token_id"]),
    (T5, &["pad_token_id", "eos_token_id", "decoder_start_token_id"]),
    (LLAMA, &["pad_token_id", "bos_token_id", "eos_token_id"]),
];
const OTHERS: [(&str, &[&str]); 3] = [
    (
        OPT,
        &[
            "model_type",
            "activation_function",
            "do_layer_norm_before",
            "_remove_final_layer_norm",
            "enable_bias",
            "layer_norm_elementwise_affine",
            "tie_word_embeddings",
        ],
    ),
    (
        T5,
        &[
            "feed_forward_proj",
            "dense_act_fn",
            "is_gated_act",
            "tie_word_embeddings",
            "scale_decoder_outputs",
        ],
    ),
    (LLAMA, &["hidden_act", "attention_bias", "mlp_bias", "tie_word_embeddings"]),
];

/// Every file with every field of a list.
fn each<'a>(fields: &[(&'a str, &'a [&'a str])]) -> Vec<(&'a str, &'a str)> {
    fields.iter().flat_map(|&(file, names)| names.iter().map(move |&name| (file, name))).collect()
}

#[test]
fn every_field_refuses_values_of_another_type_by_its_name() {
    for (file, field) in each(&[INTEGERS, NUMBERS, TOKENS, OTHERS].concat()) {
        for value in [json!({}), json!([[1]]), json!("\u{1b}[2J\u{202e}"), json!("x".repeat(10_000))] {
            assert_refused(&with(file, field, &value), &["text_config.", field]);
        }
    }
    for (file, field) in each(&[INTEGERS, TOKENS].concat()) {
        for value in [json!(-2), json!(2.0), json!(0.5), json!("2"), json!(true)] {
            assert_refused(&with(file, field, &value), &[field, "an integer"]);
        }
    }
    for (file, field) in each(&NUMBERS) {
        for value in [json!("0.5"), json!(false), json!(null)] {
            assert_refused(&with(file, field, &value), &[field, "it has to be "]);
        }
    }
    for value in [json!("1e4"), json!(null), json!([])] {
        assert_refused(
            &with(LLAMA, "rope_parameters", &json!({ "rope_theta": value })),
            &["rope_theta", "a number"],
        );
    }
}

#[test]
fn every_field_refuses_values_out_of_its_bounds_by_its_name() {
    for (file, field) in each(&[INTEGERS, TOKENS].concat()) {
        for value in [1_000_000_000_u64, 1 << 32, 1 << 53, u64::MAX] {
            assert_refused(&with(file, field, &json!(value)), &[field, &value.to_string(), "it has to be"]);
        }
    }
    for (file, field) in each(&INTEGERS) {
        assert_refused(&with(file, field, &json!(0)), &[field, "is 0; it has to be"]);
    }
    for (file, field) in each(&NUMBERS) {
        for value in [-1.0, -1e-300, 1e308] {
            assert_refused(&with(file, field, &json!(value)), &[field, "it has to be"]);
        }
    }
    for value in [0.0, 0.5, 1e13] {
        assert_refused(
            &with(LLAMA, "rope_parameters", &json!({ "rope_theta": value })),
            &["text_config.rope_theta"],
        );
    }
}
