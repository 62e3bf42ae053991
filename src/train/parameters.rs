//! What stage 1 trains.

use crate::config::Config;
use crate::layers::{LayerNorm, Linear};
use crate::params::{Spec, Tree};
use crate::qformer::{Abilities, Matching, Parameters};

/// The Q-Former, the image encoder's last norm, and what the three objectives need besides.
#[derive(Clone, Debug)]
pub struct Stage1Parameters<T> {
    /// The Q-Former with its heads.
    pub qformer: Parameters<T>,
    /// Predicts the next token.
    pub language_head: LanguageHead<T>,
    /// Divides contrastive similarities [1, 1].
    pub temperature: T,
    /// Of [`Matching::MaxSimilarity`] alone. With it the two-class head stays among the parameters, as
    /// checkpoints have it, but gets no gradient.
    pub similarity_logit: Option<SimilarityLogit<T>>,
}

/// Makes a logit of the largest similarity of a pair: scale·similarity + bias.
///
/// Begun with 10 and −5 a pair whose outputs are unrelated (cosine 0) is told a match with probability
/// 0.7 %, one whose outputs are equal with 99.3 %, and one in the middle with a half. The optimiser
/// moves each by about the learning rate a step, so they begin where they could stay and the outputs
/// come to them.
#[derive(Clone, Debug)]
pub struct SimilarityLogit<T> {
    /// [1, 1]
    pub scale: T,
    /// [1, 1]
    pub bias: T,
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
    /// By Hugging Face's names, or LAVIS's where Hugging Face has none, or this crate's own where LAVIS
    /// has none either: `itm_scale` and `itm_bias`.
    pub fn spec(config: &Config, matching: Matching) -> Self {
        let qformer = &config.qformer;
        let head = "cls.predictions.transform";
        let scalar = |name: &str| Spec::vector([(name.to_owned(), 1)]).shaped_as(&[]);
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
            temperature: scalar("temp"),
            similarity_logit: match matching {
                Matching::Classifier => None,
                Matching::MaxSimilarity => {
                    Some(SimilarityLogit { scale: scalar("itm_scale"), bias: scalar("itm_bias") })
                }
            },
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
            similarity_logit: self.similarity_logit.as_ref().map(|logit| logit.map(leaf)),
        }
    }
}

impl<T> Tree<T> for SimilarityLogit<T> {
    type With<U> = SimilarityLogit<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> SimilarityLogit<U> {
        SimilarityLogit { scale: leaf(&self.scale), bias: leaf(&self.bias) }
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
