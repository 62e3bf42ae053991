//! ITC: projected queries against projected texts.
//!
//! The features of every micro-batch are made in its own first phase; the loss is that of all of them,
//! and of its way back the first phases need no more than the gradients of their own features.

use super::picked::PickedActs;
use crate::config::Config;
use crate::device::{M, S, SM, V, W};
use crate::error::Result;
use crate::layers::Keep;
use crate::memory::Cursor;
use crate::models::qformer::RetrievalHeads;
use crate::models::qformer::projection::ProjectionActs;
use crate::models::qformer::stack::StreamPlan;
use crate::ops::Backend;
use crate::ops::contrastive::{
    ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, Negatives,
    workspace_words,
};
use crate::ops::pairs::{ListedPairs, PAIRS_OF_IMAGE, PairsList};
use crate::tensor::ViewMut;
use crate::train::stage1::step::plan::FirstPhaseInputs;
use crate::train::stage1::step::second::HostPairs;
use std::ops::Range;

/// What the features of a micro-batch of b images are made in.
pub(in crate::train::stage1) struct FeatureActs<'a, B: Backend> {
    /// Of the queries [b·Q, E]
    queries: ProjectionActs<'a, B>,
    /// Of the texts [b, E]
    texts: ProjectionActs<'a, B>,
    /// The texts' first rows [b, D]
    cls: PickedActs<'a, B>,
}

impl<'a, B: Backend> FeatureActs<'a, B> {
    pub(in crate::train::stage1) fn carve(
        cursor: &mut Cursor<'a, B>,
        plan: &StreamPlan,
        config: &Config,
    ) -> Self {
        let (hidden, width) = (config.qformer.hidden_size, config.image_text_hidden_size);
        Self {
            queries: ProjectionActs::carve(cursor, plan.query_rows(), width, Keep::ForBackward),
            texts: ProjectionActs::carve(cursor, plan.sets, width, Keep::ForBackward),
            cls: PickedActs::carve(cursor, plan.sets, plan.text_rows, hidden),
        }
    }
}

impl<B: Backend> FeatureActs<'_, B> {
    pub(in crate::train::stage1) fn write(&mut self, b: &B, alone: &FirstPhaseInputs) -> Result<()> {
        self.cls.write(b, &alone.cls, alone.plan.query_rows())
    }
}

/// What ITC works in.
pub(in crate::train::stage1) struct ContrastiveActs<'a, B: Backend> {
    /// [B·Q, E], of unit length
    queries: M<'a, B>,
    /// [B, E], of unit length
    texts: M<'a, B>,
    /// [B·Q, E]
    dqueries: M<'a, B>,
    /// [B, E]
    dtexts: M<'a, B>,
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
    /// [2, 3·B]: the pairs that these make, image and text
    pairs: ViewMut<'a, B, u32>,
    /// [1, B + 1]: the first pair of each image, and where those of the last end
    bounds: ViewMut<'a, B, u32>,
    /// [1, words]
    workspace: ViewMut<'a, B, u32>,
}

/// How ITC is computed.
#[derive(Clone, Copy)]
pub(in crate::train::stage1) struct Contrastive<'a, B: Backend> {
    pub(in crate::train::stage1) heads: &'a RetrievalHeads<W<'a, B>>,
    /// [1, 1]
    pub(in crate::train::stage1) temperature: S<'a, B>,
    pub(in crate::train::stage1) smoothing: f64,
    pub(in crate::train::stage1) gradient: ContrastiveGradient,
}

impl<'a, B: Backend> ContrastiveActs<'a, B> {
    /// For B `images`.
    pub(in crate::train::stage1) fn carve(
        cursor: &mut Cursor<'a, B>,
        images: usize,
        config: &Config,
    ) -> Self {
        let (queries, width) = (config.num_query_tokens, config.image_text_hidden_size);
        Self {
            queries: cursor.take(images * queries, width),
            texts: cursor.take(images, width),
            dqueries: cursor.take(images * queries, width),
            dtexts: cursor.take(images, width),
            image_ids: cursor.take(1, images),
            image_statistics: cursor.take(2, images),
            text_statistics: cursor.take(2, images),
            winner: cursor.take(images, images),
            loss: cursor.take(1, 1),
            recalled: cursor.take(1, 2),
            negative_texts: cursor.take(1, images),
            negative_images: cursor.take(1, images),
            pairs: cursor.take(2, PAIRS_OF_IMAGE * images),
            bounds: cursor.take(1, images + 1),
            workspace: cursor.take(1, workspace_words(images, images, [queries, width])),
        }
    }
}

impl<B: Backend> ContrastiveActs<'_, B> {
    pub(in crate::train::stage1) fn write(&mut self, b: &B, image_ids: &[u32]) -> Result<()> {
        b.write_indices(image_ids, self.image_ids.reborrow())
    }

    /// These ones of the pairs that [`Contrastive::forward`] found.
    pub(in crate::train::stage1) fn listed(&self, pairs: Range<usize>) -> ListedPairs<'_, B> {
        let first = pairs.start;
        ListedPairs { pairs: self.pairs.view().columns(pairs), first, bounds: self.bounds.view() }
    }

    /// All of them; waits for the device.
    pub(in crate::train::stage1) fn read_listed(&self, b: &B) -> Result<HostPairs> {
        Ok(HostPairs {
            texts: b.read_indices(self.pairs.view().row_range(1..2))?,
            bounds: b.read_indices(self.bounds.view())?,
        })
    }

    /// The loss, and the share of images, and of texts, whose most similar partner is theirs.
    pub(in crate::train::stage1) fn read(&self, b: &B) -> Result<(f64, [f64; 2])> {
        let items = f64::from(self.image_ids.cols() as u32);
        let recalled = b.read_indices(self.recalled.view())?;
        let recall = [recalled[0], recalled[1]].map(|right| f64::from(right) / items);
        Ok((b.read(self.loss.view())?[0].into(), recall))
    }
}

impl<B: Backend> Contrastive<'_, B> {
    /// The features of the micro-batch of `images` from its first phase's output [rows, D].
    pub(in crate::train::stage1) fn features(
        &self,
        b: &B,
        plan: &StreamPlan,
        images: Range<usize>,
        output: V<'_, B>,
        acts: &mut FeatureActs<'_, B>,
        all: &mut ContrastiveActs<'_, B>,
    ) -> Result<()> {
        let rows = query_rows(&images, plan);
        let queries = output.row_range(0..plan.query_rows());
        let unit = all.queries.reborrow().split_rows(rows.start).1.split_rows(rows.len()).0;
        acts.queries.forward(b, &self.heads.vision_projection, queries, unit)?;
        acts.cls.take(b, output)?;
        let unit = all.texts.reborrow().split_rows(images.start).1.split_rows(images.len()).0;
        acts.texts.forward(b, &self.heads.text_projection, acts.cls.rows.view(), unit)
    }

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

    /// The loss of all features, and the pairs that their hard negatives make.
    pub(in crate::train::stage1) fn forward(
        &self,
        b: &B,
        negatives: Negatives<'_, B>,
        acts: &mut ContrastiveActs<'_, B>,
    ) -> Result<()> {
        b.contrastive_forward(ContrastiveForward {
            batch: self.batch(&acts.queries, &acts.texts, &acts.image_ids),
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
        b.pairs_list(PairsList {
            negative_texts: acts.negative_texts.view(),
            negative_images: acts.negative_images.view(),
            pairs: acts.pairs.reborrow(),
            bounds: acts.bounds.reborrow(),
        })
    }

    /// The gradients of all features.
    pub(in crate::train::stage1) fn backward(
        &self,
        b: &B,
        weight: f64,
        acts: &mut ContrastiveActs<'_, B>,
        dtemperature: SM<'_, B>,
    ) -> Result<()> {
        b.contrastive_backward(ContrastiveBackward {
            batch: self.batch(&acts.queries, &acts.texts, &acts.image_ids),
            gradient: self.gradient,
            weight,
            image_statistics: acts.image_statistics.view(),
            text_statistics: acts.text_statistics.view(),
            winner: acts.winner.view(),
            dqueries: acts.dqueries.reborrow(),
            dtexts: acts.dtexts.reborrow(),
            dtemperature,
            workspace: acts.workspace.reborrow(),
        })
    }

    /// From the gradients of its features that of a first phase's output, into `doutput` [rows, D].
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(in crate::train::stage1) fn features_backward(
        &self,
        b: &B,
        plan: &StreamPlan,
        images: Range<usize>,
        output: V<'_, B>,
        acts: &mut FeatureActs<'_, B>,
        all: &ContrastiveActs<'_, B>,
        gradients: &mut RetrievalHeads<SM<'_, B>>,
        doutput: M<'_, B>,
    ) -> Result<()> {
        let (dquery_rows, dtext_rows) = doutput.split_rows(plan.query_rows());
        let (projection, gradient) = (&self.heads.vision_projection, &mut gradients.vision_projection);
        let queries = output.row_range(0..plan.query_rows());
        let dunit = all.dqueries.view().row_range(query_rows(&images, plan));
        acts.queries.backward(b, projection, queries, dunit, gradient, dquery_rows)?;
        let (projection, gradient) = (&self.heads.text_projection, &mut gradients.text_projection);
        let (cls, dunit) = (acts.cls.rows.view(), all.dtexts.view().row_range(images.clone()));
        let dcls = acts.cls.drows.reborrow().split_rows(images.len()).0;
        acts.texts.backward(b, projection, cls, dunit, gradient, dcls)?;
        acts.cls.put_back(b, dtext_rows)
    }
}

/// Rows of the queries of a micro-batch among those of all.
fn query_rows(images: &Range<usize>, plan: &StreamPlan) -> Range<usize> {
    let queries = plan.query_rows() / images.len();
    images.start * queries..images.end * queries
}
