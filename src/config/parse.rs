//! From JSON to a [`Config`]: types, names and defaults. Bounds are checked in `validate`.

use serde_json::{Map, Value};

use super::{Activation, Config, Family, QFormerConfig, VisionConfig};
use crate::input::printable;

type Parsed<T> = std::result::Result<T, String>;

/// The configuration that `json` describes; the error is a sentence without the file's name.
pub(super) fn config(json: &Value) -> Parsed<Config> {
    let top = Section::new("", Some(json))?;
    let family = match top.text("model_type", "")? {
        "blip-2" => Family::Blip2,
        "instructblip" => Family::InstructBlip,
        other => return Err(top.complaint("model_type", other, "\"blip-2\" or \"instructblip\"")),
    };
    let vision = vision(&Section::new("vision_config", top.get("vision_config"))?)?;
    let qformer =
        qformer(&Section::new("qformer_config", top.get("qformer_config"))?, family, vision.hidden_size)?;
    let image_token_index = match top.get("image_token_index") {
        None | Some(Value::Null) => None,
        Some(_) => Some(top.integer("image_token_index", 0)?),
    };
    let text_model = top.get("text_config").filter(|value| !value.is_null()).cloned();
    Ok(Config {
        family,
        num_query_tokens: top.integer("num_query_tokens", 32)?,
        image_text_hidden_size: top.integer("image_text_hidden_size", 256)?,
        vision,
        qformer,
        text_model,
        image_token_index,
    })
}

fn vision(section: &Section<'_>) -> Parsed<VisionConfig> {
    // No released model differs here, and the parameter tree counts on it.
    section.only("qkv_bias", &Value::Bool(true))?;
    let layer_norm_eps = section.number("layer_norm_eps", 1e-6)?;
    Ok(VisionConfig {
        hidden_size: section.integer("hidden_size", 1408)?,
        intermediate_size: section.integer("intermediate_size", 6144)?,
        num_hidden_layers: section.integer("num_hidden_layers", 39)?,
        num_attention_heads: section.integer("num_attention_heads", 16)?,
        image_size: section.integer("image_size", 224)?,
        patch_size: section.integer("patch_size", 14)?,
        hidden_act: section.activation("hidden_act")?,
        layer_norm_eps,
        post_layer_norm_eps: section.number("post_layer_norm_eps", layer_norm_eps)?,
    })
}

fn qformer(section: &Section<'_>, family: Family, image_width: usize) -> Parsed<QFormerConfig> {
    // transformers 4 could also have "relative_key", whose parameters no released model has.
    section.only("position_embedding_type", &Value::from("absolute"))?;
    // Replaced below, but a value that is no width is an error nonetheless.
    section.integer("encoder_hidden_size", image_width)?;
    let older_name = section.boolean("qformer_text_input", family == Family::InstructBlip)?;
    let use_qformer_text_input = section.boolean("use_qformer_text_input", older_name)?;
    Ok(QFormerConfig {
        vocab_size: section.integer("vocab_size", 30522)?,
        hidden_size: section.integer("hidden_size", 768)?,
        num_hidden_layers: section.integer("num_hidden_layers", 12)?,
        num_attention_heads: section.integer("num_attention_heads", 12)?,
        intermediate_size: section.integer("intermediate_size", 3072)?,
        hidden_act: section.activation("hidden_act")?,
        hidden_dropout_prob: section.number("hidden_dropout_prob", 0.1)?,
        attention_probs_dropout_prob: section.number("attention_probs_dropout_prob", 0.1)?,
        max_position_embeddings: section.integer("max_position_embeddings", 512)?,
        initializer_range: section.number("initializer_range", 0.02)?,
        layer_norm_eps: section.number("layer_norm_eps", 1e-12)?,
        pad_token_id: section.integer("pad_token_id", 0)?,
        cross_attention_frequency: section.integer("cross_attention_frequency", 2)?,
        encoder_hidden_size: image_width,
        use_qformer_text_input: use_qformer_text_input || family == Family::InstructBlip,
    })
}

/// One object of the file, under its name.
struct Section<'a> {
    name: &'static str,
    fields: Option<&'a Map<String, Value>>,
}

impl<'a> Section<'a> {
    /// `value` as the object that it has to be, if it is there at all.
    fn new(name: &'static str, value: Option<&'a Value>) -> Parsed<Self> {
        match value {
            None | Some(Value::Null) if !name.is_empty() => Ok(Self { name, fields: None }),
            Some(Value::Object(fields)) => Ok(Self { name, fields: Some(fields) }),
            _ if name.is_empty() => Err("not a JSON object".into()),
            _ => Err(format!("{name} is not an object")),
        }
    }

    fn get(&self, field: &str) -> Option<&'a Value> {
        self.fields.and_then(|fields| fields.get(field))
    }

    /// The sentence about `field`, whose value is `value` instead of `allowed`.
    fn complaint(&self, field: &str, value: impl ToString, allowed: &str) -> String {
        let dot = if self.name.is_empty() { "" } else { "." };
        let value = printable(&value.to_string());
        let value = if value.is_empty() { "absent" } else { &value };
        format!("{}{dot}{field} is {value}; it has to be {allowed}", self.name)
    }

    /// The field `field` as `read` takes it, `default` where it is absent.
    fn field<T>(
        &self,
        field: &str,
        default: T,
        allowed: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Parsed<T> {
        match self.get(field) {
            None => Ok(default),
            Some(value) => read(value).ok_or_else(|| self.complaint(field, value, allowed)),
        }
    }

    fn integer(&self, field: &str, default: usize) -> Parsed<usize> {
        self.field(field, default, "an integer that is not negative", |value| {
            value.as_u64().and_then(|value| usize::try_from(value).ok())
        })
    }

    fn number(&self, field: &str, default: f64) -> Parsed<f64> {
        self.field(field, default, "a number", Value::as_f64)
    }

    fn boolean(&self, field: &str, default: bool) -> Parsed<bool> {
        self.field(field, default, "true or false", Value::as_bool)
    }

    fn text(&self, field: &str, default: &'a str) -> Parsed<&'a str> {
        self.field(field, default, "a string", Value::as_str)
    }

    fn activation(&self, field: &str) -> Parsed<Activation> {
        let names = Activation::NAMES.map(|(name, _)| format!("\"{name}\"")).join(", ");
        self.field(field, Activation::Gelu, &format!("one of {names}"), |value| {
            let (_, activation) = Activation::NAMES.iter().find(|(name, _)| value == name)?;
            Some(*activation)
        })
    }

    /// Refuses any value of `field` but `supported`.
    fn only(&self, field: &str, supported: &Value) -> Parsed<()> {
        self.field(field, (), &supported.to_string(), |value| (value == supported).then_some(()))
    }
}
