//! ITG: the language-modelling head on every token of a text but the last, which predicts the next.

use super::plan::Plan;
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
use crate::ops::embedding::EmbeddingForward;
use crate::tensor::{Layout, Shape, ViewMut};

/// Columns of logits start at multiples of 16 bytes in every row.
const PITCH: usize = 8;

/// What ITG works in; R rows predict.
pub(super) struct CaptioningActs<'a, B: Backend> {
    /// [1, R]: rows of the stream that predict
    ids: ViewMut<'a, B, u32>,
    /// [1, R]: what they are to predict
    labels: ViewMut<'a, B, u32>,
    /// [R, D]
    hidden: M<'a, B>,
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
    loss: SM<'a, B>,
    /// [1, 1]
    correct: ViewMut<'a, B, u32>,
    /// [R, D]: gradients on their way through the head, in turns
    d: [M<'a, B>; 2],
    /// [R + 1, D]: the gradient of `hidden`, then zeros
    dhidden: M<'a, B>,
    /// [1, text rows]: for each row of text its row of `dhidden`
    from_hidden: ViewMut<'a, B, u32>,
}

/// Rows of the stream that predict, and what.
pub(super) struct Predictions {
    rows: Vec<u32>,
    labels: Vec<u32>,
}

impl Predictions {
    /// Of the last `texts` texts of the plan.
    pub(super) fn of(plan: &Plan, texts: usize) -> Self {
        let spans = &plan.texts[plan.texts.len() - texts..];
        let rows = spans.iter().flat_map(|span| span.start..span.start + span.len - 1);
        let (rows, labels) = rows.map(|row| (row as u32, plan.tokens[row + 1 - plan.query_rows()])).unzip();
        Self { rows, labels }
    }
}

impl<'a, B: Backend> CaptioningActs<'a, B> {
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        plan: &Plan,
        predictions: &Predictions,
        config: &QFormerConfig,
    ) -> Self {
        let (rows, hidden) = (predictions.rows.len(), config.hidden_size);
        let pitch = config.vocab_size.next_multiple_of(PITCH);
        Self {
            ids: cursor.take(1, rows),
            labels: cursor.take(1, rows),
            hidden: cursor.take(rows, hidden),
            pre_activation: cursor.take(rows, hidden),
            activated: cursor.take(rows, hidden),
            norm: LayerNormActs::carve(cursor, rows, hidden, Keep::ForBackward).expect("kept"),
            normed: cursor.take(rows, hidden),
            logits: cursor.take_as(Shape::new(rows, config.vocab_size), Layout::Rows { pitch }),
            lse: cursor.take(1, rows),
            row_losses: cursor.take(1, rows),
            predictions: cursor.take(1, rows),
            loss: cursor.take(1, 1),
            correct: cursor.take(1, 1),
            d: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            dhidden: cursor.take(rows + 1, hidden),
            from_hidden: cursor.take(1, plan.tokens.len()),
        }
    }
}

impl<B: Backend> CaptioningActs<'_, B> {
    /// The loss.
    pub(super) fn read(&self, b: &B) -> Result<f64> {
        Ok(b.read(self.loss.view())?[0].into())
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
    /// From the second phase's output [rows, D] to the mean loss over the tokens.
    pub(super) fn forward(
        &self,
        b: &B,
        predictions: &Predictions,
        output: V<'_, B>,
        acts: &mut CaptioningActs<'_, B>,
    ) -> Result<()> {
        b.write_indices(&predictions.rows, acts.ids.reborrow())?;
        b.write_indices(&predictions.labels, acts.labels.reborrow())?;
        let (ids, y) = (acts.ids.view(), acts.hidden.reborrow());
        b.embedding_forward(EmbeddingForward { ids, table: output, positions: None, y })?;
        let pre_activation = Some(acts.pre_activation.reborrow());
        let fused = Fused { activation: Some(self.activation), residual: None, pre_activation };
        self.head.transform.fused_forward(b, acts.hidden.view(), fused, acts.activated.reborrow())?;
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
            loss: acts.loss.reborrow(),
            correct: acts.correct.reborrow(),
        })
    }

    /// The gradient of the second phase's text rows, into `dtext` [text rows, D].
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(super) fn backward(
        &self,
        b: &B,
        plan: &Plan,
        predictions: &Predictions,
        weight: f64,
        acts: &mut CaptioningActs<'_, B>,
        gradients: &mut LanguageHead<SM<'_, B>>,
        dwords: SM<'_, B>,
        partials: &mut SM<'_, B>,
        dtext: M<'_, B>,
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
        let rows = predictions.rows.len();
        let (dhidden, zeros) = acts.dhidden.reborrow().split_rows(rows);
        b.clear(zeros)?;
        let (transform, to) = (&mut gradients.transform, Some((Write::Replace, dhidden)));
        self.head.transform.backward(b, acts.hidden.view(), dactivated.view(), transform, to)?;
        // A row of text that predicts nothing gets the row of zeros.
        let mut from = vec![rows as u32; plan.tokens.len()];
        for (index, &row) in predictions.rows.iter().enumerate() {
            from[row as usize - plan.query_rows()] = index as u32;
        }
        b.write_indices(&from, acts.from_hidden.reborrow())?;
        let (ids, table) = (acts.from_hidden.view(), acts.dhidden.view());
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: dtext })
    }

    fn decoder(&self) -> Linear<V<'_, B>> {
        Linear { weight: self.words, bias: self.head.bias }
    }
}
