//! ITG: the language-modelling head on every token of a text but the last, which predicts the next.

use crate::arena::Cursor;
use crate::config::QFormerConfig;
use crate::device::{M, SM, V, Write};
use crate::error::Result;
use crate::layers::layer_norm::LayerNormActs;
use crate::layers::linear::{Fused, Linear};
use crate::layers::{Keep, LanguageHead};
use crate::ops::Backend;
use crate::ops::activation::{Activation, ActivationBackward};
use crate::ops::cross_entropy::{CrossEntropyBackward, CrossEntropyForward};
use crate::tensor::{Layout, Shape, ViewMut};

/// Columns of logits start at multiples of 16 bytes in every row.
const PITCH: usize = 8;

/// What ITG works in; R rows predict.
pub(super) struct CaptioningActs<'a, B: Backend> {
    /// [1, R]: what they are to predict; rows that fill up count for nothing
    pub(super) labels: ViewMut<'a, B, u32>,
    /// [R, D]
    pre_activation: M<'a, B>,
    /// [R, D]
    activated: M<'a, B>,
    norm: LayerNormActs<'a, B>,
    /// [R, D]
    normed: M<'a, B>,
    /// [R, V]; in the backward pass its gradient
    logits: M<'a, B>,
    /// [1, R]
    lse: SM<'a, B>,
    /// [1, R]
    row_losses: SM<'a, B>,
    /// [1, R]
    predictions: ViewMut<'a, B, u32>,
    /// [1, 1]
    correct: ViewMut<'a, B, u32>,
    /// [R, D]: gradients on their way through the head, in turns
    d: [M<'a, B>; 2],
}

impl<'a, B: Backend> CaptioningActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, rows: usize, config: &QFormerConfig) -> Self {
        let hidden = config.hidden_size;
        let pitch = config.vocab_size.next_multiple_of(PITCH);
        Self {
            labels: cursor.take(1, rows),
            pre_activation: cursor.take(rows, hidden),
            activated: cursor.take(rows, hidden),
            norm: LayerNormActs::carve(cursor, rows, hidden, Keep::ForBackward).expect("kept"),
            normed: cursor.take(rows, hidden),
            logits: cursor.take_as(Shape::new(rows, config.vocab_size), Layout::Rows { pitch }),
            lse: cursor.take(1, rows),
            row_losses: cursor.take(1, rows),
            predictions: cursor.take(1, rows),
            correct: cursor.take(1, 1),
            d: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
        }
    }
}

/// The head with the word embeddings [V, D], which are its last layer.
pub(super) struct Captioning<'a, B: Backend> {
    pub(super) head: &'a LanguageHead<V<'a, B>>,
    /// [V, D]
    pub(super) words: V<'a, B>,
    pub(super) activation: Activation,
    pub(super) smoothing: f64,
}

impl<B: Backend> Captioning<'_, B> {
    /// From the outputs that predict, `hidden` [R, D], to the mean loss over them [1, 1].
    pub(super) fn forward(
        &self,
        b: &B,
        hidden: V<'_, B>,
        acts: &mut CaptioningActs<'_, B>,
        loss: SM<'_, B>,
    ) -> Result<()> {
        let pre_activation = Some(acts.pre_activation.reborrow());
        let fused = Fused { activation: Some(self.activation), residual: None, pre_activation };
        self.head.transform.fused_forward(b, hidden, fused, acts.activated.reborrow())?;
        let (x, y) = (acts.activated.view(), acts.normed.reborrow());
        self.head.norm.training_forward(b, x, None, None, Some(&mut acts.norm), y)?;
        self.decoder().forward(b, acts.normed.view(), acts.logits.reborrow())?;
        b.cross_entropy_forward(CrossEntropyForward {
            smoothing: self.smoothing,
            logits: acts.logits.view(),
            labels: acts.labels.view(),
            lse: acts.lse.reborrow(),
            row_losses: acts.row_losses.reborrow(),
            predictions: acts.predictions.reborrow(),
            loss,
            correct: acts.correct.reborrow(),
        })
    }

    /// The gradient of `hidden`, into `dhidden` [R, D].
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(super) fn backward(
        &self,
        b: &B,
        weight: f64,
        hidden: V<'_, B>,
        acts: &mut CaptioningActs<'_, B>,
        gradients: &mut LanguageHead<SM<'_, B>>,
        dwords: SM<'_, B>,
        partials: &mut SM<'_, B>,
        dhidden: M<'_, B>,
    ) -> Result<()> {
        let (smoothing, labels, lse) = (self.smoothing, acts.labels.view(), acts.lse.view());
        let logits = acts.logits.reborrow();
        b.cross_entropy_backward(CrossEntropyBackward { smoothing, weight, labels, lse, logits })?;
        let [dnormed, dactivated] = &mut acts.d;
        let mut decoder = Linear { weight: dwords, bias: gradients.bias.reborrow() };
        let to = Some((Write::Replace, dnormed.reborrow()));
        self.decoder().backward(b, acts.normed.view(), acts.logits.view(), &mut decoder, to)?;
        let (norm, to) = (&mut gradients.norm, (dactivated.reborrow(), None));
        self.head.norm.backward(b, &acts.norm, None, dnormed.view(), norm, partials, to)?;
        let (activation, x) = (self.activation, acts.pre_activation.view());
        b.activation_backward(ActivationBackward { activation, x, dy: dactivated.reborrow() })?;
        let to = Some((Write::Replace, dhidden));
        self.head.transform.backward(b, hidden, dactivated.view(), &mut gradients.transform, to)
    }

    fn decoder(&self) -> Linear<V<'_, B>> {
        Linear { weight: self.words, bias: self.head.bias }
    }
}
