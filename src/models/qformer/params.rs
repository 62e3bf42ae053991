//! The Q-Former's parameters and what they are called.

use super::stack::Block;
use crate::config::Config;
use crate::layers::{LayerNorm, Linear};
use crate::params::{Spec, Tree};

/// What a checkpoint's Q-Former can do besides reading images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abilities {
    /// It reads text: word embeddings and the text rows' feed-forward layers are there.
    pub text: bool,
    /// It compares images with texts: the projections and the matching head are there.
    pub retrieval: bool,
}

/// All parameters from the image encoder's last norm to the heads.
#[derive(Clone, Debug)]
pub struct Parameters<T> {
    /// The image encoder's last norm, LAVIS's `ln_vision` [1, W]; trained with the Q-Former.
    pub image_norm: LayerNorm<T>,
    /// Keys and values of the image for all blocks with cross-attention: weight [blocks·2·D, W],
    /// block by block the keys' rows, then the values'.
    pub image_kv: Linear<T>,
    /// The learned queries [Q, D].
    pub query_tokens: T,
    /// Of queries and text, before the first block [1, D].
    pub embedding_norm: LayerNorm<T>,
    /// Absent in models that do not read text.
    pub text_embeddings: Option<TextEmbeddings<T>>,
    /// In order.
    pub blocks: Vec<Block<T>>,
    /// Absent in models that do not compare images with texts.
    pub heads: Option<RetrievalHeads<T>>,
}

/// Embeddings of text.
#[derive(Clone, Debug)]
pub struct TextEmbeddings<T> {
    /// [V, D]
    pub words: T,
    /// [longest text, D]
    pub positions: T,
}

/// What compares images with texts.
#[derive(Clone, Debug)]
pub struct RetrievalHeads<T> {
    /// [E, D]
    pub vision_projection: Linear<T>,
    /// [E, D]
    pub text_projection: Linear<T>,
    /// [2, D]: logits of "does not match" and "matches"
    pub matching: Linear<T>,
}

impl Parameters<Spec> {
    /// The tensors of a model of this configuration, by Hugging Face's names.
    pub fn spec(config: &Config, abilities: Abilities) -> Self {
        let (vision, qformer) = (&config.vision, &config.qformer);
        let (hidden, embedding) = (qformer.hidden_size, config.image_text_hidden_size);
        let image_kv: Vec<String> = qformer
            .cross_attention_layers()
            .flat_map(|i| {
                ["key", "value"]
                    .map(|part| format!("qformer.encoder.layer.{i}.crossattention.attention.{part}"))
            })
            .collect();
        let table = |name: &str, rows| Spec::table(name.to_owned(), &[rows, hidden], hidden);
        Self {
            image_norm: LayerNorm::spec(
                "vision_model.post_layernorm",
                vision.width(),
                vision.post_layer_norm_eps(),
            ),
            image_kv: Linear::fused(&image_kv, hidden, vision.width()),
            query_tokens: Spec::table("query_tokens".into(), &[1, config.num_query_tokens, hidden], hidden),
            embedding_norm: LayerNorm::spec("qformer.layernorm", hidden, qformer.layer_norm_eps),
            text_embeddings: abilities.text.then(|| TextEmbeddings {
                words: table("embeddings.word_embeddings.weight", qformer.vocab_size),
                positions: table("embeddings.position_embeddings.weight", qformer.max_position_embeddings),
            }),
            blocks: (0..qformer.num_hidden_layers).map(|i| Block::spec(qformer, i)).collect(),
            heads: abilities.retrieval.then(|| RetrievalHeads {
                vision_projection: Linear::spec("vision_projection", embedding, hidden),
                text_projection: Linear::spec("text_projection", embedding, hidden),
                matching: Linear::spec("itm_head", 2, hidden),
            }),
        }
    }
}

impl<T> Tree<T> for Parameters<T> {
    type With<U> = Parameters<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Parameters<U> {
        Parameters {
            image_norm: self.image_norm.map(leaf),
            image_kv: self.image_kv.map(leaf),
            query_tokens: leaf(&self.query_tokens),
            embedding_norm: self.embedding_norm.map(leaf),
            text_embeddings: self.text_embeddings.as_ref().map(|t| t.map(leaf)),
            blocks: self.blocks.iter().map(|b| b.map(leaf)).collect(),
            heads: self.heads.as_ref().map(|h| h.map(leaf)),
        }
    }
}

impl<T> Tree<T> for TextEmbeddings<T> {
    type With<U> = TextEmbeddings<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> TextEmbeddings<U> {
        TextEmbeddings { words: leaf(&self.words), positions: leaf(&self.positions) }
    }
}

impl<T> Tree<T> for RetrievalHeads<T> {
    type With<U> = RetrievalHeads<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> RetrievalHeads<U> {
        RetrievalHeads {
            vision_projection: self.vision_projection.map(leaf),
            text_projection: self.text_projection.map(leaf),
            matching: self.matching.map(leaf),
        }
    }
}
