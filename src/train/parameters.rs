//! What stage 1 trains.

use crate::config::Config;
use crate::layers::LanguageHead;
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

impl Stage1Parameters<Spec> {
    /// By Hugging Face's names, or LAVIS's where Hugging Face has none.
    pub fn spec(config: &Config) -> Self {
        let temperature = Spec::vector([("temp".to_owned(), 1)]);
        Self {
            qformer: Parameters::spec(config, Abilities { text: true, retrieval: true }),
            language_head: LanguageHead::spec(&config.qformer),
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
