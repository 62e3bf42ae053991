//! Configurations of the models that BLIP-2 released, and of small ones of the same structure.

use super::language::{LanguageConfig, OptConfig, T5Config};
use super::{Activation, Config, QFormerConfig, VisionConfig, VitConfig};
use crate::tokenizer::LanguageTokenizer;
use serde_json::json;

impl Config {
    /// BLIP-2's image-text matching model with EVA ViT-g/14 at 224 pixels, 1.17 billion parameters:
    /// the sizes of `Salesforce/blip2-itm-vit-g`.
    pub fn blip2_vit_g() -> Self {
        let mut config = Self::parse(&json!({ "model_type": "blip-2" })).expect("all fields have defaults");
        config.qformer.vocab_size = 30523;
        config.qformer.use_qformer_text_input = true;
        config
    }

    /// A model of the same structure with less than a million parameters, for tests and trials. Its
    /// vocabulary is that of [`Tokenizer::write_tiny`](crate::tokenizer::Tokenizer::write_tiny).
    pub fn tiny() -> Self {
        let mut config = Self::blip2_vit_g();
        config.num_query_tokens = 8;
        config.image_text_hidden_size = 32;
        config.vision = VisionConfig::Eva(VitConfig {
            hidden_size: 64,
            intermediate_size: 128,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 56,
            ..VitConfig::default()
        });
        config.qformer = QFormerConfig {
            vocab_size: crate::tokenizer::tiny_vocabulary_size(),
            hidden_size: 128,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            intermediate_size: 256,
            max_position_embeddings: 64,
            encoder_hidden_size: 64,
            ..config.qformer
        };
        config
    }

    /// BLIP-2 with EVA ViT-g/14 at 224 pixels and OPT-2.7B, 3.7 billion parameters: the sizes of
    /// `Salesforce/blip2-opt-2.7b`.
    pub fn blip2_opt_2_7b() -> Self {
        Self::blip2_vit_g().with_language_model(
            50265,
            LanguageConfig::Opt(OptConfig {
                vocab_size: 50304,
                hidden_size: 2560,
                num_hidden_layers: 32,
                num_attention_heads: 32,
                ffn_dim: 10240,
                word_embed_proj_dim: 2560,
                eos_token_id: vec![50118],
                ..OptConfig::default()
            }),
        )
    }

    /// BLIP-2 with EVA ViT-g/14 at 224 pixels and Flan-T5-XL, 3.9 billion parameters: the sizes of
    /// `Salesforce/blip2-flan-t5-xl`.
    pub fn blip2_flan_t5_xl() -> Self {
        Self::blip2_vit_g().with_language_model(
            32100,
            LanguageConfig::T5(T5Config {
                d_model: 2048,
                d_ff: 5120,
                num_layers: 24,
                num_decoder_layers: 24,
                num_heads: 32,
                dense_act_fn: Activation::Gelu,
                is_gated_act: true,
                scale_decoder_outputs: false,
                ..T5Config::default()
            }),
        )
    }

    /// [`Config::tiny`] with a small OPT in place of text. Its tokenizer is that of
    /// [`LanguageTokenizer::write_tiny_opt`](crate::tokenizer::LanguageTokenizer::write_tiny_opt).
    pub fn tiny_opt() -> Self {
        Self::tiny().with_language_model(
            LanguageTokenizer::TINY_OPT_IMAGE,
            LanguageConfig::Opt(OptConfig {
                vocab_size: 272,
                hidden_size: 64,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                ffn_dim: 128,
                max_position_embeddings: 256,
                word_embed_proj_dim: 64,
                ..OptConfig::default()
            }),
        )
    }

    /// [`Config::tiny`] with a small T5 in place of text. Its tokenizer is that of
    /// [`LanguageTokenizer::write_tiny_t5`](crate::tokenizer::LanguageTokenizer::write_tiny_t5).
    pub fn tiny_t5() -> Self {
        Self::tiny().with_language_model(
            LanguageTokenizer::TINY_T5_IMAGE,
            LanguageConfig::T5(T5Config {
                vocab_size: 272,
                d_model: 64,
                d_kv: 32,
                d_ff: 128,
                num_layers: 2,
                num_decoder_layers: 2,
                num_heads: 2,
                dense_act_fn: Activation::Gelu,
                is_gated_act: true,
                scale_decoder_outputs: false,
                ..T5Config::default()
            }),
        )
    }

    /// The same with queries that prompt a language model, whose tokenizer has `<image>` as `image_token`, and a Q-Former
    /// that reads no text.
    fn with_language_model(mut self, image_token: u32, language: LanguageConfig) -> Self {
        self.image_token_index = Some(image_token as usize);
        self.qformer.use_qformer_text_input = false;
        self.language = Some(language);
        self
    }
}
