//! What stage 1 trains.

use crate::config::Config;
use crate::layers::{LayerNorm, Linear};
use crate::params::{Spec, Tree};
use crate::qformer::{Abilities, Parameters};

/// The Q-Former, the image encoder's last norm, and what the three objectives need besides.
#[derive(Clone, Debug)]
pub struct Stage1Parameters<T> {
    /// The Q-Former with its heads.
    pub qformer: Parameters<T>,
    /// Predicts the next token.
    pub language_head: LanguageHead<T>,
    /// Divides contrastive similarities [1, 1].
    pub temperature: T,
}

/// BERT's language-modelling head; its last layer's weight is that of the word embeddings.
#[derive(Clone, Debug)]
pub struct LanguageHead<T> {
    /// [D, D]
    pub transform: Linear<T>,
    /// [1, D]
    pub norm: LayerNorm<T>,
    /// [1, V]
    pub bias: T,
}

impl Stage1Parameters<Spec> {
    /// By Hugging Face's names, or LAVIS's where Hugging Face has none.
    pub fn spec(config: &Config) -> Self {
        let qformer = &config.qformer;
        let head = "cls.predictions.transform";
        let temperature = Spec::vector([("temp".to_owned(), 1)]);
        Self {
            qformer: Parameters::spec(config, Abilities { text: true, retrieval: true }),
            language_head: LanguageHead {
                transform: Linear::spec(&format!("{head}.dense"), qformer.hidden_size, qformer.hidden_size),
                norm: LayerNorm::spec(
                    &format!("{head}.LayerNorm"),
                    qformer.hidden_size,
                    qformer.layer_norm_eps,
                ),
                bias: Spec::vector([("cls.predictions.bias".to_owned(), qformer.vocab_size)]),
            },
            temperature: temperature.shaped_as(&[]),
        }
    }
}

impl<T> Tree<T> for Stage1Parameters<T> {
    type With<U> = Stage1Parameters<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Stage1Parameters<U> {
        Stage1Parameters {
            qformer: self.qformer.map(leaf),
            language_head: self.language_head.map(leaf),
            temperature: leaf(&self.temperature),
        }
    }
}

impl<T> Tree<T> for LanguageHead<T> {
    type With<U> = LanguageHead<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> LanguageHead<U> {
        LanguageHead {
            transform: self.transform.map(leaf),
            norm: self.norm.map(leaf),
            bias: leaf(&self.bias),
        }
    }
}
