//! The passes of a step, forward and backward.

use super::acts::{Constants, FirstPhaseActs, SecondPhaseActs, WholeActs};
use super::place::{Done, FirstPhase, PairPassIndex};
use super::second::PairPass;
use crate::config::Config;
use crate::device::{M, S, SM, V, W, Write};
use crate::error::Result;
use crate::layers::dropout::PassDropout;
use crate::layers::linear::Linear;
use crate::models::qformer::RetrievalHeads;
use crate::models::qformer::stack::{Given, Image, Qkv, Stack, StackGradients};
use crate::ops::Backend;
use crate::ops::contrastive::Negatives;
use crate::ops::layer_norm::LayerNormForward;
use crate::ops::linear::LinearBackward;
use crate::ops::pairs::PairsStream;
use crate::train::stage1::batch::GlobalBatch;
use crate::train::stage1::objectives::itc::Contrastive;
use crate::train::stage1::objectives::itg::Captioning;
use crate::train::stage1::objectives::itm::{MatchingGradients, MatchingHead};
use crate::train::stage1::{Hardness, Losses, Stage1Options, Stage1Parameters, StepPart};

/// The site of the negatives' draw, which dropout does not use.
const NEGATIVES_SITE: u32 = u32::MAX;

/// One step.
pub(in crate::train::stage1) struct StepContext<'a, B: Backend> {
    pub(in crate::train::stage1) b: &'a B,
    pub(in crate::train::stage1) config: &'a Config,
    pub(in crate::train::stage1) options: &'a Stage1Options,
    /// What the graph reads.
    pub(in crate::train::stage1) parameters: &'a Stage1Parameters<W<'a, B>>,
    /// The numbers themselves.
    pub(in crate::train::stage1) exact: &'a Stage1Parameters<S<'a, B>>,
    pub(in crate::train::stage1) constants: Constants<'a, B>,
    pub(in crate::train::stage1) whole: &'a GlobalBatch<'a>,
}

impl<B: Backend> StepContext<'_, B> {
    fn heads(&self) -> &RetrievalHeads<W<'_, B>> {
        self.parameters.qformer.heads.as_ref().expect("stage 1 has heads")
    }

    fn contrastive(&self) -> Contrastive<'_, B> {
        Contrastive {
            heads: self.heads(),
            temperature: self.exact.temperature,
            smoothing: self.options.smoothing,
            gradient: self.options.contrastive_gradient,
        }
    }

    fn matching(&self) -> MatchingHead<'_, B> {
        MatchingHead { heads: self.heads(), logit: self.exact.similarity_logit.as_ref() }
    }

    fn captioning(&self) -> Captioning<'_, B> {
        Captioning {
            head: &self.parameters.language_head,
            words: self.parameters.qformer.text_embeddings.as_ref().expect("stage 1 reads text").words,
            activation: self.config.qformer.hidden_act,
            smoothing: self.options.smoothing,
        }
    }

    /// `number` is of this pass alone, but for its repetition.
    fn stack<'s>(
        &'s self,
        number: usize,
        projections: &'s Linear<W<'s, B>>,
        keys_values: V<'s, B>,
    ) -> Stack<'s, B> {
        let (p, key) = (self.options.dropout, self.constants.key.view());
        let pass = u32::try_from(number).expect("a step has few passes");
        Stack {
            config: &self.config.qformer,
            parameters: &self.parameters.qformer,
            blocks: &self.parameters.qformer.blocks,
            image_kv: projections,
            image: Some(Image::KeysValues(keys_values)),
            dropout: Some(PassDropout { probabilities: p, hidden: p, pass, key }),
        }
    }

    fn blocks(&self) -> usize {
        self.parameters.qformer.blocks.len()
    }

    /// The number of a pass of the second phase: after those of all first phases.
    fn number(&self, place: PairPassIndex) -> usize {
        self.whole.batches() + place.pass
    }

    /// What the host knows of a first phase, before all that the device does in it.
    pub(in crate::train::stage1) fn write_first(
        &self,
        first: FirstPhase<'_, B>,
        acts: &mut FirstPhaseActs<'_, B>,
    ) -> Result<()> {
        let b = self.b;
        first.vision_output.write(b, 0..first.plan().sets, acts.vision_output.reborrow())?;
        acts.stack.write(b, &first.alone.inputs(self.config.num_query_tokens))?;
        acts.contrastive.write(b, first.alone)
    }

    /// The stream of a pass of the second phase.
    fn lay_out(
        &self,
        second: &PairPass,
        place: PairPassIndex,
        whole: &mut WholeActs<'_, B>,
        acts: &mut SecondPhaseActs<'_, B>,
    ) -> Result<()> {
        let WholeActs { contrastive, texts, findings, .. } = whole;
        let SecondPhaseActs { stack, picked, matching, captioning, .. } = acts;
        let [matched, generated] = &mut stack.groups[..] else { unreachable!("pairs and captions") };
        self.b.pairs_stream(PairsStream {
            listed: contrastive.listed(second.pairs.clone()),
            texts: texts.view(),
            sizes: second.stream.clone(),
            query_ids: stack.query_ids.reborrow(),
            tokens: stack.tokens.reborrow(),
            positions: stack.positions.reborrow(),
            matched: matched.reborrow(),
            generated: generated.reborrow(),
            cross: stack.cross.as_mut().expect("pairs have queries").reborrow(),
            picked: picked.ids.reborrow(),
            places: picked.from.reborrow(),
            predicted: captioning.labels.reborrow(),
            labels: matching.labels.reborrow(),
            needed: findings.needed(place.pass),
        })
    }

    pub(in crate::train::stage1) fn first_forward(
        &self,
        first: FirstPhase<'_, B>,
        acts: &mut FirstPhaseActs<'_, B>,
        whole: &mut WholeActs<'_, B>,
        done: Done<'_>,
    ) -> Result<()> {
        let b = self.b;
        b.layer_norm_forward(LayerNormForward {
            x: acts.vision_output.view(),
            dropout: None,
            residual: None,
            weight: self.constants.ones.view(),
            bias: self.constants.zeros.view(),
            epsilon: self.parameters.qformer.image_norm.epsilon,
            sum: None,
            statistics: None,
            y: acts.features.reborrow(),
        })?;
        let projections = whole.fold.projections();
        projections.forward(b, acts.features.view(), acts.keys_values.reborrow())?;
        let stack = self.stack(first.index, &projections, acts.keys_values.view());
        stack.forward(b, first.plan(), &mut acts.stack, Given::nothing())?;
        let (images, output) = (self.whole.images_of(first.index), acts.stack.output(self.blocks()));
        let (features, all) = (&mut acts.contrastive, &mut whole.contrastive);
        self.contrastive().features(b, first.plan(), images, output, features, all)?;
        done(StepPart::FirstForward)
    }

    /// ITC of the features of all first phases, with the gradients of these and of the temperature, and the pairs
    /// that hard negatives make.
    pub(in crate::train::stage1) fn contrast(
        &self,
        whole: &mut WholeActs<'_, B>,
        dtemperature: SM<'_, B>,
        done: Done<'_>,
    ) -> Result<()> {
        let negatives = match self.options.hardness {
            Hardness::Hardest => Negatives::Hardest,
            Hardness::Sampled => Negatives::Sampled { key: self.constants.key.view(), site: NEGATIVES_SITE },
        };
        let (contrastive, acts) = (self.contrastive(), &mut whole.contrastive);
        contrastive.forward(self.b, negatives, acts)?;
        contrastive.backward(self.b, self.options.weights[0], acts, dtemperature)?;
        done(StepPart::Contrastive)
    }

    /// A pass of the second phase, there and back.
    #[expect(clippy::too_many_arguments, reason = "each is read or written by the one pass here")]
    pub(in crate::train::stage1) fn second(
        &self,
        second: &PairPass,
        place: PairPassIndex,
        first: &mut FirstPhaseActs<'_, B>,
        whole: &mut WholeActs<'_, B>,
        acts: &mut SecondPhaseActs<'_, B>,
        gradients: &mut Stage1Parameters<SM<'_, B>>,
        done: Done<'_>,
    ) -> Result<()> {
        self.lay_out(second, place, whole, acts)?;
        self.second_forward(second, place, first, whole, acts)?;
        done(StepPart::SecondForward)?;
        self.second_backward(second, place, first, whole, acts, gradients)?;
        done(StepPart::SecondBackward)
    }

    fn second_forward(
        &self,
        second: &PairPass,
        place: PairPassIndex,
        first: &FirstPhaseActs<'_, B>,
        whole: &mut WholeActs<'_, B>,
        acts: &mut SecondPhaseActs<'_, B>,
    ) -> Result<()> {
        let b = self.b;
        let projections = whole.fold.projections();
        let stack = self.stack(self.number(place), &projections, first.keys_values.view());
        let given = Given { earlier: Some(first.stack.qkv(self.blocks())), ..Given::nothing() };
        stack.forward(b, &second.plan, &mut acts.stack, given)?;
        let output = acts.stack.output(self.blocks());
        acts.picked.take(b, output)?;
        let [queries, hidden, cls] = read_by_heads(second, output, &acts.picked.rows);
        let (findings, matching) = (&mut whole.findings, &mut acts.matching);
        self.matching().forward(b, queries, cls, matching, findings.told(place.pass))?;
        if second.predicting == 0 {
            return Ok(());
        }
        let loss = findings.captioning(place.batch);
        self.captioning().forward(b, hidden, &mut acts.captioning, loss)
    }

    fn second_backward(
        &self,
        second: &PairPass,
        place: PairPassIndex,
        first: &mut FirstPhaseActs<'_, B>,
        whole: &WholeActs<'_, B>,
        acts: &mut SecondPhaseActs<'_, B>,
        gradients: &mut Stage1Parameters<SM<'_, B>>,
    ) -> Result<()> {
        let (b, plan) = (self.b, &second.plan);
        let [_, of_matching, of_captioning] = self.options.weights;
        let [dy, dx] = &mut acts.d;
        let (dqueries, dtext) = dy.reborrow().split_rows(plan.query_rows());
        let [queries, hidden, cls] =
            read_by_heads(second, acts.stack.output(self.blocks()), &acts.picked.rows);
        let (dhidden, drest) = acts.picked.drows.reborrow().split_rows(second.predicting);
        let matching = MatchingGradients {
            heads: gradients.qformer.heads.as_mut().expect("stage 1 has heads"),
            logit: gradients.similarity_logit.as_mut(),
        };
        self.matching().backward(
            b,
            of_matching * place.share_of_pairs,
            whole.findings.correct(place.pass),
            [queries, cls],
            &mut acts.matching,
            matching,
            dqueries,
            drest.split_rows(cls.rows()).0,
        )?;
        if second.predicting > 0 {
            let words = gradients.qformer.text_embeddings.as_mut().expect("stage 1 reads text");
            self.captioning().backward(
                b,
                of_captioning * self.whole.share_of_predicted(place.batch),
                hidden,
                &mut acts.captioning,
                &mut gradients.language_head,
                words.words.reborrow(),
                &mut acts.scratch.layers.partials,
                dhidden,
            )?;
        }
        acts.picked.put_back(b, dtext)?;
        if place.write == Write::Replace {
            for dqkv in &mut first.dqkv {
                b.clear(dqkv.reborrow())?;
            }
            if place.passes > 1 {
                b.clear(first.dkeys_values.reborrow())?;
            }
        }
        let projections = whole.fold.projections();
        let stack = self.stack(self.number(place), &projections, first.keys_values.view());
        let to = StackGradients {
            // Of several passes none names every image, and what is not named is not written.
            keys_values: (
                if place.passes > 1 { Write::Add } else { Write::Replace },
                first.dkeys_values.reborrow(),
            ),
            qkv: Qkv::One(acts.dqkv.reborrow()),
            earlier: Some(first.dqkv.iter_mut().map(M::<B>::reborrow).collect()),
        };
        let d = [dy.reborrow(), dx.reborrow()];
        let (earlier, gradients) = (first.stack.qkv(self.blocks()), &mut gradients.qformer);
        stack.backward(b, plan, &mut acts.stack, Some(&earlier), gradients, to, d, &mut acts.scratch)
    }

    /// The way back through a first phase, and, after that of the first micro-batch, which comes last, through the
    /// projections of all images.
    pub(in crate::train::stage1) fn first_backward(
        &self,
        first: FirstPhase<'_, B>,
        acts: &mut FirstPhaseActs<'_, B>,
        whole: &mut WholeActs<'_, B>,
        gradients: &mut Stage1Parameters<SM<'_, B>>,
        done: Done<'_>,
    ) -> Result<()> {
        let (b, plan) = (self.b, first.plan());
        let [dy, dx] = &mut acts.d;
        self.contrastive().features_backward(
            b,
            plan,
            self.whole.images_of(first.index),
            acts.stack.output(self.blocks()),
            &mut acts.contrastive,
            &whole.contrastive,
            gradients.qformer.heads.as_mut().expect("stage 1 has heads"),
            dy.reborrow(),
        )?;
        let projections =
            Linear { weight: whole.fold.weight.view().into(), bias: Some(whole.fold.bias.view().into()) };
        let stack = self.stack(first.index, &projections, acts.keys_values.view());
        let to = StackGradients {
            keys_values: (Write::Add, acts.dkeys_values.reborrow()),
            qkv: Qkv::Each(acts.dqkv.iter_mut().map(M::<B>::reborrow).collect()),
            earlier: None,
        };
        let d = [dy.reborrow(), dx.reborrow()];
        stack.backward(b, plan, &mut acts.stack, None, &mut gradients.qformer, to, d, &mut acts.scratch)?;
        b.linear_backward(LinearBackward {
            x: acts.features.view(),
            weight: projections.weight,
            dy: acts.dkeys_values.view(),
            activation: None,
            dx: None,
            dweight: whole.fold.dweight.reborrow(),
            dbias: Some(whole.fold.dbias.reborrow()),
        })?;
        if first.index == 0 {
            self.fold_backward(&whole.fold, gradients)?;
        }
        done(StepPart::FirstBackward)
    }

    /// The step's losses; `shares` are those of the passes' pairs. Waits for the device.
    pub(in crate::train::stage1) fn losses(
        &self,
        whole: &WholeActs<'_, B>,
        shares: &[f64],
    ) -> Result<Losses> {
        let (contrastive, recall) = whole.contrastive.read(self.b)?;
        let (of_passes, correct, of_batches) = whole.findings.read(self.b, shares.len())?;
        let matching = of_passes.iter().zip(shares).map(|(&loss, share)| f64::from(loss) * share).sum();
        let shares = (0..self.whole.batches()).map(|batch| self.whole.share_of_predicted(batch));
        let captioning = of_batches.iter().zip(shares).map(|(&loss, share)| f64::from(loss) * share).sum();
        let count = |which: usize| correct.iter().skip(which).step_by(2).map(|&n| f64::from(n)).sum::<f64>();
        let [of_contrastive, of_matching, of_captioning] = self.options.weights;
        let total = of_contrastive * contrastive + of_matching * matching + of_captioning * captioning;
        let matching_accuracy = count(0) / count(1);
        Ok(Losses { total, contrastive, matching, captioning, matching_accuracy, recall })
    }
}

/// What heads read of a pass's output [rows, D] and the rows picked of it: the query outputs [P·Q, D],
/// the outputs that predict [R, D], and the first ones of the pairs' texts [P, D], if ITM reads them.
fn read_by_heads<'s, B: Backend>(second: &PairPass, output: V<'s, B>, picked: &'s M<'_, B>) -> [V<'s, B>; 3] {
    let predicting = second.predicting;
    let picked = picked.view();
    [
        output.row_range(0..second.plan.query_rows()),
        picked.row_range(0..predicting),
        picked.row_range(predicting..picked.rows()),
    ]
}
