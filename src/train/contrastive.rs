//! ITC: projected queries against projected texts.

use super::plan::Plan;
use crate::arena::Cursor;
use crate::config::Config;
use crate::device::{M, S, SM, V, Write};
use crate::error::Result;
use crate::layers::linear::Linear;
use crate::ops::Backend;
use crate::ops::contrastive::{
    ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, Negatives,
    workspace_words,
};
use crate::ops::embedding::EmbeddingForward;
use crate::ops::normalize::{NormalizeBackward, NormalizeForward};
use crate::qformer::RetrievalHeads;
use crate::tensor::ViewMut;

/// One side of the comparison.
struct Side<'a, B: Backend> {
    /// [rows, E]
    projected: M<'a, B>,
    /// [rows, E], of unit length
    unit: M<'a, B>,
    /// [rows, E]: the gradient of `projected`
    dprojected: M<'a, B>,
    /// [rows, E]: the gradient of `unit`
    dunit: M<'a, B>,
}

impl<'a, B: Backend> Side<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, rows: usize, width: usize) -> Self {
        let mut take = || cursor.take(rows, width);
        Self { projected: take(), unit: take(), dprojected: take(), dunit: take() }
    }

    fn forward(&mut self, b: &B, projection: &Linear<V<'_, B>>, x: V<'_, B>) -> Result<()> {
        projection.forward(b, x, self.projected.reborrow())?;
        b.normalize_forward(NormalizeForward { x: self.projected.view(), y: self.unit.reborrow() })
    }

    /// dx from `self.dunit`
    fn backward(
        &mut self,
        b: &B,
        projection: &Linear<V<'_, B>>,
        x: V<'_, B>,
        gradients: &mut Linear<SM<'_, B>>,
        dx: M<'_, B>,
    ) -> Result<()> {
        let (x_projected, dy) = (self.projected.view(), self.dunit.view());
        b.normalize_backward(NormalizeBackward { x: x_projected, dy, dx: self.dprojected.reborrow() })?;
        projection.backward(b, x, self.dprojected.view(), gradients, Some((Write::Replace, dx)))
    }
}

/// What ITC works in.
pub(super) struct ContrastiveActs<'a, B: Backend> {
    /// Of the queries [B·Q, E]
    queries: Side<'a, B>,
    /// Of the texts [B, E]
    texts: Side<'a, B>,
    /// [1, B]: the texts' first rows
    cls_ids: ViewMut<'a, B, u32>,
    /// [B, D]
    cls: M<'a, B>,
    /// [B + 1, D]: its gradient, then zeros
    dcls: M<'a, B>,
    /// [1, text rows]: for each row of text its row of `dcls`
    from_cls: ViewMut<'a, B, u32>,
    /// [1, B]
    image_ids: ViewMut<'a, B, u32>,
    /// [2, B]
    image_statistics: SM<'a, B>,
    /// [2, B]
    text_statistics: SM<'a, B>,
    /// [B, B]
    winner: ViewMut<'a, B, u8>,
    /// [1, 1]
    loss: SM<'a, B>,
    /// [1, 2]
    recalled: ViewMut<'a, B, u32>,
    /// [1, B]
    negative_texts: ViewMut<'a, B, u32>,
    /// [1, B]
    negative_images: ViewMut<'a, B, u32>,
    /// [1, words]
    workspace: ViewMut<'a, B, u32>,
}

/// The hard negatives that ITC found.
pub(super) struct HardNegatives {
    /// [B]: for each image
    pub(super) texts: Vec<u32>,
    /// [B]: for each text
    pub(super) images: Vec<u32>,
}

/// How ITC is computed.
#[derive(Clone, Copy)]
pub(super) struct Contrastive<'a, B: Backend> {
    pub(super) heads: &'a RetrievalHeads<V<'a, B>>,
    /// [1, 1]
    pub(super) temperature: S<'a, B>,
    pub(super) smoothing: f64,
    pub(super) gradient: ContrastiveGradient,
}

impl<'a, B: Backend> ContrastiveActs<'a, B> {
    pub(super) fn carve(cursor: &mut Cursor<'a, B>, plan: &Plan, config: &Config) -> Self {
        let (hidden, width) = (config.qformer.hidden_size, config.image_text_hidden_size);
        let (texts, text_rows) = (plan.texts.len(), plan.tokens.len());
        let images = plan.images.len();
        Self {
            queries: Side::carve(cursor, plan.query_rows(), width),
            texts: Side::carve(cursor, texts, width),
            cls_ids: cursor.take(1, texts),
            cls: cursor.take(texts, hidden),
            dcls: cursor.take(texts + 1, hidden),
            from_cls: cursor.take(1, text_rows),
            image_ids: cursor.take(1, images),
            image_statistics: cursor.take(2, images),
            text_statistics: cursor.take(2, texts),
            winner: cursor.take(images, texts),
            loss: cursor.take(1, 1),
            recalled: cursor.take(1, 2),
            negative_texts: cursor.take(1, images),
            negative_images: cursor.take(1, texts),
            workspace: cursor.take(1, workspace_words(images, texts, [config.num_query_tokens, width])),
        }
    }
}

impl<B: Backend> ContrastiveActs<'_, B> {
    /// The loss, and the share of images, and of texts, whose most similar partner is theirs.
    pub(super) fn read(&self, b: &B) -> Result<(f64, [f64; 2])> {
        let items = f64::from(self.image_ids.cols() as u32);
        let recalled = b.read_indices(self.recalled.view())?;
        let recall = [recalled[0], recalled[1]].map(|right| f64::from(right) / items);
        Ok((b.read(self.loss.view())?[0].into(), recall))
    }
}

impl<B: Backend> Contrastive<'_, B> {
    /// `queries` [B·Q, E] and `texts` [B, E] of the images `ids` [1, B]
    fn batch<'s>(
        &'s self,
        queries: &'s M<'_, B>,
        texts: &'s M<'_, B>,
        ids: &'s ViewMut<'_, B, u32>,
    ) -> ContrastiveBatch<'s, B> {
        ContrastiveBatch {
            queries: queries.view(),
            texts: texts.view(),
            temperature: self.temperature,
            image_ids: ids.view(),
            text_ids: ids.view(),
            smoothing: self.smoothing,
        }
    }

    /// From the first phase's output [rows, D].
    pub(super) fn forward(
        &self,
        b: &B,
        plan: &Plan,
        image_ids: &[u32],
        output: V<'_, B>,
        negatives: Negatives<'_, B>,
        acts: &mut ContrastiveActs<'_, B>,
    ) -> Result<HardNegatives> {
        let first: Vec<u32> = plan.texts.iter().map(|text| text.start as u32).collect();
        b.write_indices(&first, acts.cls_ids.reborrow())?;
        b.write_indices(image_ids, acts.image_ids.reborrow())?;
        let queries = output.row_range(0..plan.query_rows());
        acts.queries.forward(b, &self.heads.vision_projection, queries)?;
        let ids = acts.cls_ids.view();
        b.embedding_forward(EmbeddingForward {
            ids,
            table: output,
            positions: None,
            y: acts.cls.reborrow(),
        })?;
        acts.texts.forward(b, &self.heads.text_projection, acts.cls.view())?;
        b.contrastive_forward(ContrastiveForward {
            batch: self.batch(&acts.queries.unit, &acts.texts.unit, &acts.image_ids),
            negatives,
            image_statistics: acts.image_statistics.reborrow(),
            text_statistics: acts.text_statistics.reborrow(),
            winner: acts.winner.reborrow(),
            loss: acts.loss.reborrow(),
            recalled: acts.recalled.reborrow(),
            negative_texts: acts.negative_texts.reborrow(),
            negative_images: acts.negative_images.reborrow(),
            workspace: acts.workspace.reborrow(),
        })?;
        Ok(HardNegatives {
            texts: b.read_indices(acts.negative_texts.view())?,
            images: b.read_indices(acts.negative_images.view())?,
        })
    }

    /// The gradient of the first phase's output, into `doutput` [rows, D].
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(super) fn backward(
        &self,
        b: &B,
        plan: &Plan,
        output: V<'_, B>,
        weight: f64,
        acts: &mut ContrastiveActs<'_, B>,
        gradients: &mut RetrievalHeads<SM<'_, B>>,
        dtemperature: SM<'_, B>,
        doutput: M<'_, B>,
    ) -> Result<()> {
        let (mut dqueries, mut dtexts) = (acts.queries.dunit.reborrow(), acts.texts.dunit.reborrow());
        b.contrastive_backward(ContrastiveBackward {
            batch: self.batch(&acts.queries.unit, &acts.texts.unit, &acts.image_ids),
            gradient: self.gradient,
            weight,
            image_statistics: acts.image_statistics.view(),
            text_statistics: acts.text_statistics.view(),
            winner: acts.winner.view(),
            dqueries: dqueries.reborrow(),
            dtexts: dtexts.reborrow(),
            dtemperature,
            workspace: acts.workspace.reborrow(),
        })?;
        let (dquery_rows, dtext_rows) = doutput.split_rows(plan.query_rows());
        let (projection, gradient) = (&self.heads.vision_projection, &mut gradients.vision_projection);
        let queries = output.row_range(0..plan.query_rows());
        acts.queries.backward(b, projection, queries, gradient, dquery_rows)?;
        let texts = plan.texts.len();
        let (projection, gradient) = (&self.heads.text_projection, &mut gradients.text_projection);
        let (dcls, zeros) = acts.dcls.reborrow().split_rows(texts);
        b.clear(zeros)?;
        acts.texts.backward(b, projection, acts.cls.view(), gradient, dcls)?;
        // A row of text that is no text's first gets the row of zeros.
        let mut from = vec![texts as u32; plan.tokens.len()];
        for (text, span) in plan.texts.iter().enumerate() {
            from[span.start - plan.query_rows()] = text as u32;
        }
        b.write_indices(&from, acts.from_cls.reborrow())?;
        let (ids, table) = (acts.from_cls.view(), acts.dcls.view());
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: dtext_rows })
    }
}
