//! BERT's language-modelling head: logits = E·LN(f(W·x + b)) + c, with E the word embeddings.

use crate::config::QFormerConfig;
use crate::device::{M, SM, V, W, Write};
use crate::error::Result;
use crate::layers::layer_norm::LayerNormActs;
use crate::layers::linear::Fused;
use crate::layers::{Keep, LayerNorm, Linear};
use crate::memory::Cursor;
use crate::ops::Backend;
use crate::ops::activation::{Activation, ActivationBackward};
use crate::params::{Spec, Tree};
use crate::tensor::Shape;

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

/// What the head works in; R rows predict.
pub(crate) struct LanguageHeadActs<'a, B: Backend> {
    /// [R, D]
    pre_activation: Option<M<'a, B>>,
    /// [R, D]
    activated: M<'a, B>,
    norm: Option<LayerNormActs<'a, B>>,
    /// [R, D]
    normed: M<'a, B>,
    /// [R, V]; in the backward pass its gradient
    pub(crate) logits: M<'a, B>,
    /// [R, D]: gradients on their way through the head, in turns
    d: Option<[M<'a, B>; 2]>,
}

impl<'a, B: Backend> LanguageHeadActs<'a, B> {
    /// For `rows` tokens.
    pub(crate) fn carve(cursor: &mut Cursor<'a, B>, rows: usize, config: &QFormerConfig, keep: Keep) -> Self {
        let (hidden, vocabulary) = (config.hidden_size, config.vocab_size);
        let (pitch, kept) = (vocabulary.next_multiple_of(PITCH), keep == Keep::ForBackward);
        Self {
            pre_activation: kept.then(|| cursor.take(rows, hidden)),
            activated: cursor.take(rows, hidden),
            norm: LayerNormActs::carve(cursor, rows, hidden, keep),
            normed: cursor.take(rows, hidden),
            logits: cursor.take_pitched(Shape::new(rows, vocabulary), pitch),
            d: kept.then(|| [cursor.take(rows, hidden), cursor.take(rows, hidden)]),
        }
    }
}

impl<B: Backend> LanguageHead<W<'_, B>> {
    /// `acts.logits` [R, V] from x [R, D] and the word embeddings [V, D]
    pub(crate) fn forward(
        &self,
        b: &B,
        x: V<'_, B>,
        words: W<'_, B>,
        activation: Activation,
        acts: &mut LanguageHeadActs<'_, B>,
    ) -> Result<()> {
        let pre_activation = acts.pre_activation.as_mut().map(M::<B>::reborrow);
        let fused = Fused { activation: Some(activation), residual: None, pre_activation };
        self.transform.fused_forward(b, x, fused, acts.activated.reborrow())?;
        let (activated, normed) = (acts.activated.view(), acts.normed.reborrow());
        self.norm.training_forward(b, activated, None, None, acts.norm.as_mut(), normed)?;
        self.decoder(words).forward(b, acts.normed.view(), acts.logits.reborrow())
    }

    /// dx [R, D] from the gradient of the logits, which is in their place; the word embeddings' is added to `dwords`
    /// [V, D].
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(crate) fn backward(
        &self,
        b: &B,
        x: V<'_, B>,
        words: W<'_, B>,
        activation: Activation,
        acts: &mut LanguageHeadActs<'_, B>,
        gradients: &mut LanguageHead<SM<'_, B>>,
        dwords: SM<'_, B>,
        partials: &mut SM<'_, B>,
        dx: M<'_, B>,
    ) -> Result<()> {
        let kept = "kept for the backward pass";
        let [dnormed, dactivated] = acts.d.as_mut().expect(kept);
        let mut decoder = Linear { weight: dwords, bias: Some(gradients.bias.reborrow()) };
        let to = Some((Write::Replace, dnormed.reborrow()));
        self.decoder(words).backward(b, acts.normed.view(), acts.logits.view(), &mut decoder, to)?;
        let (norm, to) = (&mut gradients.norm, (dactivated.reborrow(), None));
        let norm_acts = acts.norm.as_ref().expect(kept);
        self.norm.backward(b, norm_acts, None, dnormed.view(), norm, partials, to)?;
        let pre_activation = acts.pre_activation.as_ref().expect(kept).view();
        b.activation_backward(ActivationBackward {
            activation,
            x: pre_activation,
            dy: dactivated.reborrow(),
        })?;
        let to = Some((Write::Replace, dx));
        self.transform.backward(b, x, dactivated.view(), &mut gradients.transform, to)
    }

    /// The last layer.
    fn decoder<'a>(&'a self, words: W<'a, B>) -> Linear<W<'a, B>> {
        Linear { weight: words, bias: Some(self.bias) }
    }
}
