//! What images are seen by: EVA, CLIP, or features.

use super::{assert_refused, parse};
use qformer::Config;
use qformer::config::{Activation, FeaturesConfig, VisionConfig};
use serde_json::{Value, json};

/// A file with this `vision_config`.
fn with_vision(vision: &Value) -> String {
    json!({ "model_type": "blip-2", "vision_config": vision }).to_string()
}

fn read(vision: &Value) -> Config {
    parse(&with_vision(vision)).unwrap()
}

#[test]
fn an_image_encoder_is_known_by_its_model_type() {
    for name in ["blip_2_vision_model", "instructblip_vision_model"] {
        assert!(matches!(read(&json!({ "model_type": name })).vision, VisionConfig::Eva(_)), "{name}");
    }
    assert!(matches!(read(&json!({})).vision, VisionConfig::Eva(_)));
    assert!(matches!(read(&json!({ "model_type": "clip_vision_model" })).vision, VisionConfig::Clip(_)));
    assert_refused(
        &with_vision(&json!({ "model_type": "siglip_vision_model" })),
        &["vision_config.model_type is siglip_vision_model", "\"clip_vision_model\" or \"image_features\""],
    );
}

#[test]
fn clip_has_the_defaults_of_transformers_and_is_not_run_yet() {
    let config = read(&json!({ "model_type": "clip_vision_model" }));
    let VisionConfig::Clip(vit) = &config.vision else { panic!("{config:?}") };
    assert_eq!((vit.hidden_size, vit.intermediate_size, vit.num_hidden_layers), (768, 3072, 12));
    assert_eq!((vit.num_attention_heads, vit.image_size, vit.patch_size), (12, 224, 32));
    assert_eq!(vit.hidden_act, Activation::QuickGelu);
    assert_eq!((vit.layer_norm_eps, vit.post_layer_norm_eps), (1e-5, 1e-5));
    assert_eq!((config.image_tokens(), config.vision.width()), (50, 768));
    assert_eq!(config.vision.image_size(), Some(224));
    let message = config.vision.encoder().unwrap_err().to_string();
    assert!(message.contains("\"clip_vision_model\"") && message.contains("not built yet"), "{message}");
}

#[test]
fn clip_survives_being_written_and_read() {
    let large = json!({ "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 23, "num_attention_heads": 16, "patch_size": 14, "hidden_act": "gelu",
        "layer_norm_eps": 1e-6, "post_layer_norm_eps": 1e-5, "projection_dim": 768 });
    let config = read(&large);
    assert_eq!((config.image_tokens(), config.qformer.encoder_hidden_size), (257, 1024));
    let written = config.to_json();
    assert_eq!(parse(&written.to_string()).unwrap(), config);
    assert_eq!(
        (&written["vision_config"]["num_channels"], &written["vision_config"]["patch_size"]),
        (&json!(3), &json!(14))
    );
    let grey = with_vision(&json!({ "model_type": "clip_vision_model", "num_channels": 1 }));
    assert_refused(&grey, &["vision_config.num_channels is 1; it has to be 3"]);
    let uneven = with_vision(&json!({ "model_type": "clip_vision_model", "patch_size": 15 }));
    assert_refused(&uneven, &["vision_config.patch_size is 15; it has to be a divisor of image_size, 224"]);
}

#[test]
fn features_are_of_any_number_of_tokens_and_any_width() {
    let config = read(&json!({ "model_type": "image_features", "image_tokens": 13, "hidden_size": 40 }));
    let expected = FeaturesConfig { image_tokens: 13, hidden_size: 40, layer_norm_eps: 1e-6 };
    assert_eq!(config.vision, VisionConfig::Features(expected));
    assert_eq!((config.image_tokens(), config.vision.width()), (13, 40));
    assert_eq!((config.qformer.encoder_hidden_size, config.vision.image_size()), (40, None));
    let message = config.vision.encoder().unwrap_err().to_string();
    assert!(message.contains("has no image encoder") && message.contains("[images, 13, 40]"), "{message}");
}

#[test]
fn a_model_on_features_keeps_the_rest_and_survives_being_written_and_read() {
    let text = json!({ "model_type": "blip-2", "num_query_tokens": 7,
        "vision_config": { "post_layer_norm_eps": 1e-5 } });
    let with_encoder = parse(&text.to_string()).unwrap();
    let mut config = with_encoder.clone().on_features(5, 7);
    config.validate().unwrap();
    assert_eq!((config.image_tokens(), config.vision.width()), (5, 7));
    assert_eq!(config.vision.post_layer_norm_eps(), 1e-5);
    config.qformer.encoder_hidden_size = 8;
    assert!(config.validate().unwrap_err().to_string().contains("encoder_hidden_size is 8; it has to be"));
    config.qformer.encoder_hidden_size = 7;
    let written = config.to_json();
    assert_eq!(written["vision_config"]["model_type"], "image_features");
    assert_eq!(parse(&written.to_string()).unwrap(), config);
    assert_eq!(with_encoder.num_query_tokens, config.num_query_tokens);
}

#[test]
fn features_without_a_shape_or_out_of_bounds_are_refused() {
    for (field, others) in [("image_tokens", "hidden_size"), ("hidden_size", "image_tokens")] {
        let with =
            |value: Value| with_vision(&json!({ "model_type": "image_features", field: value, others: 3 }));
        let absent = with_vision(&json!({ "model_type": "image_features", others: 3 }));
        assert_refused(&absent, &[&format!("vision_config.{field} is 0; it has to be from 1 to 65536")]);
        for value in [json!(0), json!(65_537), json!(u64::MAX)] {
            assert_refused(&with(value), &[&format!("vision_config.{field} is "), "from 1 to 65536"]);
        }
        for value in [json!(-1), json!("13"), json!(null), json!(1.5)] {
            assert_refused(&with(value), &[field, "an integer"]);
        }
    }
    let epsilon =
        json!({ "model_type": "image_features", "image_tokens": 3, "hidden_size": 3, "layer_norm_eps": 0 });
    assert_refused(&with_vision(&epsilon), &["vision_config.layer_norm_eps is 0"]);
}
