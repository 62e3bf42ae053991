//! What images are seen by.

use super::Family;
use super::activation::Activation;
use super::parse::{Parsed, Section};
use super::validate::{COUNT, Checked, FEED_FORWARD, WIDTH, divides, epsilon, within};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// Most tokens of an image that features have.
const IMAGE_TOKENS: usize = 65_536;

/// What images are seen by, by the `model_type` of `vision_config`.
///
/// | variant | `model_type` | computed here |
/// |---|---|---|
/// | [`Eva`](Self::Eva) | `blip_2_vision_model`, `instructblip_vision_model`, or none | yes |
/// | [`Clip`](Self::Clip) | `clip_vision_model` | not yet: features can be given |
/// | [`Features`](Self::Features) | `image_features` | features are given |
#[derive(Clone, Debug, PartialEq)]
pub enum VisionConfig {
    /// EVA-CLIP's vision transformer, of all released BLIP-2 models but those with CLIP's ViT-L.
    Eva(VitConfig),
    /// OpenAI CLIP's: a norm before the first block too, and patches without a bias.
    Clip(VitConfig),
    /// None: the model reads features of some encoder, of any number of tokens and any width.
    Features(FeaturesConfig),
}

/// A pre-norm vision transformer; the defaults are EVA's and, where they differ, CLIP's.
#[derive(Clone, Debug, PartialEq)]
pub struct VitConfig {
    /// W. Default 1408; 768.
    pub hidden_size: usize,
    /// Width of the blocks' feed-forward layer. Default 6144; 3072.
    pub intermediate_size: usize,
    /// Blocks that are run: BLIP-2 leaves the encoder's last one out. Default 39; 12.
    pub num_hidden_layers: usize,
    /// Heads; they divide W. Default 16; 12.
    pub num_attention_heads: usize,
    /// Side of the square image, in pixels. Default 224.
    pub image_size: usize,
    /// Side of a square patch, in pixels; it divides the image's. Default 14; 32.
    pub patch_size: usize,
    /// Activation of the feed-forward layers. Default exact GELU; `quick_gelu`.
    pub hidden_act: Activation,
    /// What the blocks' layer norms add to the variance. Default 1e-6; 1e-5.
    pub layer_norm_eps: f64,
    /// The same for the last layer norm (`vision_model.post_layernorm`, LAVIS's `ln_vision`), where
    /// LAVIS has 1e-5. transformers has no such field and takes `layer_norm_eps`: the default.
    pub post_layer_norm_eps: f64,
}

/// Features of an encoder that the model does not have. transformers knows no such `vision_config`:
///
/// ```json
/// { "model_type": "image_features", "image_tokens": 13, "hidden_size": 40 }
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct FeaturesConfig {
    /// N: tokens of an image. No default.
    pub image_tokens: usize,
    /// W: width of a token. No default.
    pub hidden_size: usize,
    /// What the layer norm of the features (`vision_model.post_layernorm`) adds to the variance. Default 1e-6.
    pub layer_norm_eps: f64,
}

impl VisionConfig {
    const NAMES: [(&'static str, Kind); 4] = [
        ("blip_2_vision_model", Kind::Eva),
        ("instructblip_vision_model", Kind::Eva),
        ("clip_vision_model", Kind::Clip),
        ("image_features", Kind::Features),
    ];

    /// N: tokens of an image.
    pub fn image_tokens(&self) -> usize {
        match self {
            Self::Eva(vit) | Self::Clip(vit) => vit.image_tokens(),
            Self::Features(features) => features.image_tokens,
        }
    }

    /// W: width of an image's tokens.
    pub fn width(&self) -> usize {
        match self {
            Self::Eva(vit) | Self::Clip(vit) => vit.hidden_size,
            Self::Features(features) => features.hidden_size,
        }
    }

    /// Side of the images that are seen, in pixels, if there is an encoder.
    pub fn image_size(&self) -> Option<usize> {
        match self {
            Self::Eva(vit) | Self::Clip(vit) => Some(vit.image_size),
            Self::Features(_) => None,
        }
    }

    /// What the layer norm of an image's tokens adds to the variance, before the Q-Former reads them.
    pub fn post_layer_norm_eps(&self) -> f64 {
        match self {
            Self::Eva(vit) | Self::Clip(vit) => vit.post_layer_norm_eps,
            Self::Features(features) => features.layer_norm_eps,
        }
    }

    /// The image encoder, to be loaded and run.
    ///
    /// # Errors
    /// Fails if there is none, or one that is not built yet; features can be given to such a model.
    pub fn encoder(&self) -> Result<&VitConfig> {
        match self {
            Self::Eva(vit) => Ok(vit),
            Self::Clip(_) => Err(Error::value(
                "the image encoder is CLIP's (vision_config.model_type is \"clip_vision_model\"), which is not built \
                 yet; give its output as features",
            )),
            Self::Features(FeaturesConfig { image_tokens, hidden_size, .. }) => Err(Error::value(format!(
                "the model was trained on features and has no image encoder, so it reads no images; give features \
                 [images, {image_tokens}, {hidden_size}] of the encoder that it was trained with"
            ))),
        }
    }

    pub(super) fn parse(section: &Section<'_>) -> Parsed<Self> {
        match section.named("model_type", "blip_2_vision_model", &Self::NAMES)? {
            Kind::Eva => {
                // No released model differs here, and the parameter tree counts on it.
                section.only("qkv_bias", &Value::Bool(true))?;
                VitConfig::parse(section, VitConfig::EVA).map(Self::Eva)
            }
            Kind::Clip => {
                section.only("num_channels", &Value::from(3))?;
                VitConfig::parse(section, VitConfig::CLIP).map(Self::Clip)
            }
            // 0 is no size: an absent field is told as one out of bounds.
            Kind::Features => Ok(Self::Features(FeaturesConfig {
                image_tokens: section.integer("image_tokens", 0)?,
                hidden_size: section.integer("hidden_size", 0)?,
                layer_norm_eps: section.number("layer_norm_eps", 1e-6)?,
            })),
        }
    }

    pub(super) fn check(&self) -> Checked {
        match self {
            Self::Eva(vit) | Self::Clip(vit) => vit.check(),
            Self::Features(features) => {
                within("vision_config.image_tokens", features.image_tokens, 1..=IMAGE_TOKENS)?;
                within("vision_config.hidden_size", features.hidden_size, WIDTH)?;
                epsilon("vision_config.layer_norm_eps", features.layer_norm_eps)
            }
        }
    }

    pub(super) fn to_json(&self, family: Family) -> Value {
        match (self, family) {
            (Self::Eva(vit), Family::Blip2) => vit.eva_json("blip_2_vision_model"),
            (Self::Eva(vit), Family::InstructBlip) => vit.eva_json("instructblip_vision_model"),
            (Self::Clip(vit), _) => vit.clip_json(),
            (Self::Features(features), _) => json!({
                "hidden_size": features.hidden_size,
                "image_tokens": features.image_tokens,
                "layer_norm_eps": features.layer_norm_eps,
                "model_type": "image_features",
            }),
        }
    }
}

/// A variant of [`VisionConfig`].
#[derive(Clone, Copy)]
enum Kind {
    Eva,
    Clip,
    Features,
}

/// EVA ViT-g/14's sizes.
impl Default for VitConfig {
    fn default() -> Self {
        Self::EVA
    }
}

impl VitConfig {
    const EVA: Self = Self {
        hidden_size: 1408,
        intermediate_size: 6144,
        num_hidden_layers: 39,
        num_attention_heads: 16,
        image_size: 224,
        patch_size: 14,
        hidden_act: Activation::Gelu,
        layer_norm_eps: 1e-6,
        post_layer_norm_eps: 1e-6,
    };
    const CLIP: Self = Self {
        hidden_size: 768,
        intermediate_size: 3072,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        image_size: 224,
        patch_size: 32,
        hidden_act: Activation::QuickGelu,
        layer_norm_eps: 1e-5,
        post_layer_norm_eps: 1e-5,
    };

    /// Patches along a side of the image.
    pub fn patches_per_side(&self) -> usize {
        self.image_size / self.patch_size
    }

    /// N: one token for the whole image, then one a patch.
    pub fn image_tokens(&self) -> usize {
        1 + self.patches_per_side().pow(2)
    }

    /// W/H: width of an attention head.
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    fn parse(section: &Section<'_>, default: Self) -> Parsed<Self> {
        let layer_norm_eps = section.number("layer_norm_eps", default.layer_norm_eps)?;
        Ok(Self {
            hidden_size: section.integer("hidden_size", default.hidden_size)?,
            intermediate_size: section.integer("intermediate_size", default.intermediate_size)?,
            num_hidden_layers: section.integer("num_hidden_layers", default.num_hidden_layers)?,
            num_attention_heads: section.integer("num_attention_heads", default.num_attention_heads)?,
            image_size: section.integer("image_size", default.image_size)?,
            patch_size: section.integer("patch_size", default.patch_size)?,
            hidden_act: section.activation("hidden_act", default.hidden_act)?,
            layer_norm_eps,
            post_layer_norm_eps: section.number("post_layer_norm_eps", layer_norm_eps)?,
        })
    }

    fn check(&self) -> Checked {
        within("vision_config.hidden_size", self.hidden_size, WIDTH)?;
        within("vision_config.intermediate_size", self.intermediate_size, FEED_FORWARD)?;
        within("vision_config.num_hidden_layers", self.num_hidden_layers, COUNT)?;
        within("vision_config.num_attention_heads", self.num_attention_heads, COUNT)?;
        divides(
            "vision_config.num_attention_heads",
            self.num_attention_heads,
            "hidden_size",
            self.hidden_size,
        )?;
        within("vision_config.image_size", self.image_size, 1..=4096)?;
        within("vision_config.patch_size", self.patch_size, 1..=4096)?;
        divides("vision_config.patch_size", self.patch_size, "image_size", self.image_size)?;
        epsilon("vision_config.layer_norm_eps", self.layer_norm_eps)?;
        epsilon("vision_config.post_layer_norm_eps", self.post_layer_norm_eps)
    }

    fn eva_json(&self, model_type: &str) -> Value {
        let mut json = self.common_json(model_type);
        json["initializer_range"] = 1e-10.into();
        json["qkv_bias"] = true.into();
        json
    }

    fn clip_json(&self) -> Value {
        let mut json = self.common_json("clip_vision_model");
        json["initializer_factor"] = 1.0.into();
        json["initializer_range"] = 0.02.into();
        json["num_channels"] = 3.into();
        json
    }

    fn common_json(&self, model_type: &str) -> Value {
        let mut json = json!({
            "attention_dropout": 0.0,
            "hidden_act": self.hidden_act.name(),
            "hidden_size": self.hidden_size,
            "image_size": self.image_size,
            "intermediate_size": self.intermediate_size,
            "layer_norm_eps": self.layer_norm_eps,
            "model_type": model_type,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "patch_size": self.patch_size,
        });
        if self.post_layer_norm_eps != self.layer_norm_eps {
            json["post_layer_norm_eps"] = self.post_layer_norm_eps.into();
        }
        json
    }
}
