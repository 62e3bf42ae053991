//! ITM: whether a pair's text belongs to its image, in either form of [`Matching`].

use crate::config::Config;
use crate::device::{M, S, SM, V, W, Write};
use crate::error::Result;
use crate::layers::Keep;
use crate::memory::Cursor;
use crate::models::qformer::projection::ProjectionActs;
use crate::models::qformer::stack::StreamPlan;
use crate::models::qformer::{Matching, RetrievalHeads};
use crate::ops::Backend;
use crate::ops::matching::{MatchingBackward, MatchingForm, MatchingForward, MatchingGradient};
use crate::ops::pool::{PoolBackward, PoolForward};
use crate::ops::similarity::{Pairing, SimilarityBackward, SimilarityForward};
use crate::tensor::{View, ViewMut};
use crate::train::stage1::parameters::SimilarityLogit;

/// What ITM of P pairs works in.
pub(in crate::train::stage1) struct MatchingActs<'a, B: Backend> {
    /// [1, P]
    pub(in crate::train::stage1) labels: ViewMut<'a, B, u32>,
    form: FormActs<'a, B>,
}

/// What its two forms work in.
enum FormActs<'a, B: Backend> {
    Classifier(ClassifierActs<'a, B>),
    MaxSimilarity(Box<SimilarityActs<'a, B>>),
}

/// What the classifier works in.
struct ClassifierActs<'a, B: Backend> {
    /// [P, D]: the mean of a pair's query outputs
    pooled: M<'a, B>,
    /// [P, 2]
    logits: M<'a, B>,
    /// [P, 2]
    dlogits: M<'a, B>,
    /// [P, D]
    dpooled: M<'a, B>,
}

/// What the largest similarity works in.
struct SimilarityActs<'a, B: Backend> {
    projected_queries: ProjectionActs<'a, B>,
    projected_texts: ProjectionActs<'a, B>,
    /// [P·Q, E], of unit length
    queries: M<'a, B>,
    /// [P, E], of unit length
    texts: M<'a, B>,
    /// [P, 1]
    similarity: M<'a, B>,
    /// [P, 1]
    winner: ViewMut<'a, B, u32>,
    /// [P·Q, E]
    dqueries: M<'a, B>,
    /// [P, E]
    dtexts: M<'a, B>,
    /// [P, 1]
    dsimilarity: M<'a, B>,
}

impl<'a, B: Backend> MatchingActs<'a, B> {
    pub(in crate::train::stage1) fn carve(
        cursor: &mut Cursor<'a, B>,
        plan: &StreamPlan,
        matching: Matching,
        config: &Config,
    ) -> Self {
        let (pairs, rows) = (plan.sets, plan.query_rows());
        let (hidden, width) = (config.qformer.hidden_size, config.image_text_hidden_size);
        Self {
            labels: cursor.take(1, pairs),
            form: match matching {
                Matching::Classifier => FormActs::Classifier(ClassifierActs {
                    pooled: cursor.take(pairs, hidden),
                    logits: cursor.take(pairs, 2),
                    dlogits: cursor.take(pairs, 2),
                    dpooled: cursor.take(pairs, hidden),
                }),
                Matching::MaxSimilarity => FormActs::MaxSimilarity(Box::new(SimilarityActs {
                    projected_queries: ProjectionActs::carve(cursor, rows, width, Keep::ForBackward),
                    projected_texts: ProjectionActs::carve(cursor, pairs, width, Keep::ForBackward),
                    queries: cursor.take(rows, width),
                    texts: cursor.take(pairs, width),
                    similarity: cursor.take(pairs, 1),
                    winner: cursor.take(pairs, 1),
                    dqueries: cursor.take(rows, width),
                    dtexts: cursor.take(pairs, width),
                    dsimilarity: cursor.take(pairs, 1),
                })),
            },
        }
    }
}

/// The parameters of the matching head, in either form.
pub(in crate::train::stage1) struct MatchingHead<'a, B: Backend> {
    pub(in crate::train::stage1) heads: &'a RetrievalHeads<W<'a, B>>,
    /// Of the largest similarity.
    pub(in crate::train::stage1) logit: Option<&'a SimilarityLogit<S<'a, B>>>,
}

/// Where its gradients go.
pub(in crate::train::stage1) struct MatchingGradients<'g, 'a, B: Backend> {
    pub(in crate::train::stage1) heads: &'g mut RetrievalHeads<SM<'a, B>>,
    pub(in crate::train::stage1) logit: Option<&'g mut SimilarityLogit<SM<'a, B>>>,
}

/// The results of ITM over a pass's pairs.
pub(in crate::train::stage1) struct MatchingOutputs<'a, B: Backend> {
    /// [1, 1]
    pub(in crate::train::stage1) loss: SM<'a, B>,
    /// [1, 2]: pairs classified correctly, and pairs counted
    pub(in crate::train::stage1) correct: ViewMut<'a, B, u32>,
}

impl<B: Backend> MatchingHead<'_, B> {
    /// From the pairs' query outputs [P·Q, D] and, of the largest similarity, their texts' first outputs
    /// `cls` [P, D].
    pub(in crate::train::stage1) fn forward(
        &self,
        b: &B,
        queries: V<'_, B>,
        cls: V<'_, B>,
        acts: &mut MatchingActs<'_, B>,
        told: MatchingOutputs<'_, B>,
    ) -> Result<()> {
        let form = match &mut acts.form {
            FormActs::Classifier(acts) => {
                b.pool_forward(PoolForward { x: queries, y: acts.pooled.reborrow() })?;
                self.heads.matching.forward(b, acts.pooled.view(), acts.logits.reborrow())?;
                MatchingForm::Classifier { logits: acts.logits.view() }
            }
            FormActs::MaxSimilarity(acts) => {
                let (of_queries, of_texts) = (&self.heads.vision_projection, &self.heads.text_projection);
                acts.projected_queries.forward(b, of_queries, queries, acts.queries.reborrow())?;
                acts.projected_texts.forward(b, of_texts, cls, acts.texts.reborrow())?;
                b.similarity_forward(SimilarityForward {
                    pairing: Pairing::Matched,
                    queries: acts.queries.view(),
                    texts: acts.texts.view(),
                    similarity: acts.similarity.reborrow(),
                    winner: Some(acts.winner.reborrow()),
                })?;
                self.similarity_form(&acts.similarity)
            }
        };
        let labels = acts.labels.view();
        b.matching_forward(MatchingForward { form, labels, loss: told.loss, correct: told.correct })
    }

    /// The gradients of the query outputs, into `dqueries` [P·Q, D], and, of the largest similarity, of
    /// the texts' first outputs, into `dcls` [P, D].
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(in crate::train::stage1) fn backward(
        &self,
        b: &B,
        weight: f64,
        correct: View<'_, B, u32>,
        [queries, cls]: [V<'_, B>; 2],
        acts: &mut MatchingActs<'_, B>,
        gradients: MatchingGradients<'_, '_, B>,
        dqueries: M<'_, B>,
        dcls: M<'_, B>,
    ) -> Result<()> {
        let labels = acts.labels.view();
        let MatchingGradients { heads, logit } = gradients;
        match &mut acts.form {
            FormActs::Classifier(acts) => {
                b.matching_backward(MatchingBackward {
                    form: MatchingForm::Classifier { logits: acts.logits.view() },
                    labels,
                    correct,
                    weight,
                    gradient: MatchingGradient::Classifier { dlogits: acts.dlogits.reborrow() },
                })?;
                let to = Some((Write::Replace, acts.dpooled.reborrow()));
                let (x, dy) = (acts.pooled.view(), acts.dlogits.view());
                self.heads.matching.backward(b, x, dy, &mut heads.matching, to)?;
                b.pool_backward(PoolBackward { dy: acts.dpooled.view(), dx: dqueries })
            }
            FormActs::MaxSimilarity(acts) => {
                let acts = &mut **acts;
                let logit = logit.expect("as the parameters");
                b.matching_backward(MatchingBackward {
                    form: self.similarity_form(&acts.similarity),
                    labels,
                    correct,
                    weight,
                    gradient: MatchingGradient::MaxSimilarity {
                        dsimilarity: acts.dsimilarity.reborrow(),
                        dscale: logit.scale.reborrow(),
                        dbias: logit.bias.reborrow(),
                    },
                })?;
                b.similarity_backward(SimilarityBackward {
                    pairing: Pairing::Matched,
                    queries: acts.queries.view(),
                    texts: acts.texts.view(),
                    winner: acts.winner.view(),
                    dsimilarity: acts.dsimilarity.view(),
                    dqueries: acts.dqueries.reborrow(),
                    dtexts: acts.dtexts.reborrow(),
                })?;
                let (projection, gradient) = (&self.heads.vision_projection, &mut heads.vision_projection);
                let dunit = acts.dqueries.view();
                acts.projected_queries.backward(b, projection, queries, dunit, gradient, dqueries)?;
                let (projection, gradient) = (&self.heads.text_projection, &mut heads.text_projection);
                let dunit = acts.dtexts.view();
                acts.projected_texts.backward(b, projection, cls, dunit, gradient, dcls)
            }
        }
    }

    fn similarity_form<'s>(&'s self, similarity: &'s M<'_, B>) -> MatchingForm<'s, B> {
        let logit = self.logit.expect("a model with this form has its parameters");
        MatchingForm::MaxSimilarity { similarity: similarity.view(), scale: logit.scale, bias: logit.bias }
    }
}
