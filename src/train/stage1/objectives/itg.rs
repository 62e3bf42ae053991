//! ITG: the language-modelling head on every token of a text but the last, which predicts the next.

use crate::config::QFormerConfig;
use crate::device::{M, SM, V, W};
use crate::error::Result;
use crate::layers::Keep;
use crate::memory::Cursor;
use crate::models::qformer::LanguageHead;
use crate::models::qformer::language_head::LanguageHeadActs;
use crate::ops::Backend;
use crate::ops::activation::Activation;
use crate::ops::cross_entropy::{CrossEntropyBackward, CrossEntropyForward};
use crate::tensor::ViewMut;

/// What ITG works in; R rows predict.
pub(in crate::train::stage1) struct CaptioningActs<'a, B: Backend> {
    /// [1, R]: what they are to predict; rows that fill up count for nothing
    pub(in crate::train::stage1) labels: ViewMut<'a, B, u32>,
    head: LanguageHeadActs<'a, B>,
    /// [1, R]
    lse: SM<'a, B>,
    /// [1, R]
    row_losses: SM<'a, B>,
    /// [1, R]
    predictions: ViewMut<'a, B, u32>,
    /// [1, 1]
    correct: ViewMut<'a, B, u32>,
}

impl<'a, B: Backend> CaptioningActs<'a, B> {
    pub(in crate::train::stage1) fn carve(
        cursor: &mut Cursor<'a, B>,
        rows: usize,
        config: &QFormerConfig,
    ) -> Self {
        Self {
            labels: cursor.take(1, rows),
            head: LanguageHeadActs::carve(cursor, rows, config, Keep::ForBackward),
            lse: cursor.take(1, rows),
            row_losses: cursor.take(1, rows),
            predictions: cursor.take(1, rows),
            correct: cursor.take(1, 1),
        }
    }
}

/// The head with the word embeddings [V, D], which are its last layer.
pub(in crate::train::stage1) struct Captioning<'a, B: Backend> {
    pub(in crate::train::stage1) head: &'a LanguageHead<W<'a, B>>,
    /// [V, D]
    pub(in crate::train::stage1) words: W<'a, B>,
    pub(in crate::train::stage1) activation: Activation,
    pub(in crate::train::stage1) smoothing: f64,
}

impl<B: Backend> Captioning<'_, B> {
    /// From the outputs that predict, `hidden` [R, D], to the mean loss over them [1, 1].
    pub(in crate::train::stage1) fn forward(
        &self,
        b: &B,
        hidden: V<'_, B>,
        acts: &mut CaptioningActs<'_, B>,
        loss: SM<'_, B>,
    ) -> Result<()> {
        self.head.forward(b, hidden, self.words, self.activation, &mut acts.head)?;
        b.cross_entropy_forward(CrossEntropyForward {
            smoothing: self.smoothing,
            logits: acts.head.logits.view(),
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
    pub(in crate::train::stage1) fn backward(
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
        let logits = acts.head.logits.reborrow();
        b.cross_entropy_backward(CrossEntropyBackward { smoothing, weight, labels, lse, logits })?;
        let (words, activation, acts) = (self.words, self.activation, &mut acts.head);
        self.head.backward(b, hidden, words, activation, acts, gradients, dwords, partials, dhidden)
    }
}
