//! What stage 1 trains.

use crate::config::Config;
use crate::models::qformer::{Abilities, LanguageHead, Matching, Parameters};
use crate::params::{Spec, Tree};

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
/// Begun with 10 and −5 a pair whose outputs are unrelated (cosine 0) is called a match with probability
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

impl Stage1Parameters<Spec> {
    /// By Hugging Face's names, or LAVIS's where Hugging Face has none, or this crate's own where LAVIS
    /// has none either: `itm_scale` and `itm_bias`.
    pub fn spec(config: &Config, matching: Matching) -> Self {
        let scalar = |name: &str| Spec::vector([(name.to_owned(), 1)]).shaped_as(&[]);
        Self {
            qformer: Parameters::spec(config, Abilities { text: true, retrieval: true }),
            language_head: LanguageHead::spec(&config.qformer),
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
