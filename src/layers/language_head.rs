//! BERT's language-modelling head: logits = E·LN(f(W·x + b)) + c, with E the word embeddings.

use super::linear::Fused;
use super::{LayerNorm, Linear};
use crate::arena::Cursor;
use crate::config::QFormerConfig;
use crate::device::{M, V};
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::activation::Activation;
use crate::params::{Spec, Tree};
use crate::tensor::{Layout, Shape};

/// Columns of logits start at multiples of 16 bytes in every row.
const PITCH: usize = 8;

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

impl LanguageHead<Spec> {
    /// By LAVIS's names, since Hugging Face has none.
    pub fn spec(config: &QFormerConfig) -> Self {
        let (name, hidden) = ("cls.predictions.transform", config.hidden_size);
        Self {
            transform: Linear::spec(&format!("{name}.dense"), hidden, hidden),
            norm: LayerNorm::spec(&format!("{name}.LayerNorm"), hidden, config.layer_norm_eps),
            bias: Spec::vector([("cls.predictions.bias".to_owned(), config.vocab_size)]),
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

/// What the head works in, in inference.
pub struct LanguageHeadActs<'a, B: Backend> {
    /// [rows, D]
    activated: M<'a, B>,
    /// [rows, D]
    normed: M<'a, B>,
    /// [rows, V]
    pub logits: M<'a, B>,
}

impl<'a, B: Backend> LanguageHeadActs<'a, B> {
    /// For `rows` tokens.
    pub fn carve(cursor: &mut Cursor<'a, B>, rows: usize, config: &QFormerConfig) -> Self {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let pitch = vocabulary.next_multiple_of(PITCH);
        Self {
            activated: cursor.take(rows, hidden),
            normed: cursor.take(rows, hidden),
            logits: cursor.take_as(Shape::new(rows, vocabulary), Layout::Rows { pitch }),
        }
    }
}

impl<B: Backend> LanguageHead<V<'_, B>> {
    /// `acts.logits` [rows, V] from x [rows, D] and the word embeddings [V, D], in inference
    pub fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        words: V<'_, B>,
        activation: Activation,
        acts: &mut LanguageHeadActs<'_, B>,
    ) -> Result<()> {
        let fused = Fused { activation: Some(activation), residual: None, pre_activation: None };
        self.transform.fused_forward(b, x, fused, acts.activated.reborrow())?;
        self.norm.forward(b, acts.activated.view(), None, acts.normed.reborrow())?;
        let decoder = Linear { weight: words, bias: self.bias };
        decoder.forward(b, acts.normed.view(), acts.logits.reborrow())
    }
}
