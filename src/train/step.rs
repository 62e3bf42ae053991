//! One step of stage 1: three losses and the gradients of all parameters.

use super::acts::{Constants, FirstPhaseActs, SecondPhaseActs};
use super::captioning::{Captioning, Predictions};
use super::contrastive::{Contrastive, HardNegatives};
use super::matching;
use super::plan::{Pair, Plan, pairs};
use super::trunk::{Qkv, Trunk, TrunkGradients};
use super::weights::{Place, Training};
use super::{Batch, Stage1Parameters, TrainedWeights};
use crate::arena::Arena;
use crate::config::Config;
use crate::device::{M, S, SM, V, Write};
use crate::error::Result;
use crate::layers::dropout::PassDropout;
use crate::layers::linear::Linear;
use crate::ops::Backend;
use crate::ops::adamw::AdamW;
use crate::ops::contrastive::{ContrastiveGradient, Negatives};
use crate::ops::fold::{FoldBackward, FoldForward};
use crate::ops::gemm::GemmBackward;
use crate::ops::layer_norm::LayerNormForward;
use crate::params::TensorSource;
use crate::workspace::Workspace;

/// The first site of dropout that passes do not use: that of the negatives' draw.
const NEGATIVES_SITE: u32 = u32::MAX;

/// How stage 1 is trained.
#[derive(Clone, Debug)]
pub struct Stage1Options {
    /// Weights of ITC, ITM and ITG in the whole loss.
    pub weights: [f64; 3],
    /// Label smoothing of ITC and ITG.
    pub smoothing: f64,
    /// p of all dropout.
    pub dropout: f64,
    /// Whether hard negatives are drawn, or the hardest.
    pub hardness: Hardness,
    /// What the contrastive loss is differentiated by.
    pub contrastive_gradient: ContrastiveGradient,
    /// The token that starts a text to be generated: `[DEC]`.
    pub start_token: u32,
    /// Of dropout and the negatives' draw.
    pub seed: u32,
}

/// Which of the others in a batch is a hard negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hardness {
    /// One drawn in proportion to the softmax of the similarities.
    Sampled,
    /// The most similar.
    Hardest,
}

/// What a step found out.
#[derive(Clone, Copy, Debug)]
pub struct Losses {
    /// The weighted sum of the three.
    pub total: f64,
    /// ITC
    pub contrastive: f64,
    /// ITM
    pub matching: f64,
    /// ITG
    pub captioning: f64,
    /// Share of pairs that ITM tells right.
    pub matching_accuracy: f64,
    /// Share of images, and of texts, whose most similar partner is theirs.
    pub recall: [f64; 2],
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepPart {
    /// Images and texts, each alone.
    FirstForward,
    /// The contrastive loss, and the negatives read.
    Contrastive,
    /// Pairs to be matched and texts to be generated, with their losses.
    SecondForward,
    /// Their gradients.
    SecondBackward,
    /// Those of the first phase.
    FirstBackward,
}

/// A Q-Former in training.
pub struct Stage1<B: Backend> {
    device: B,
    config: Config,
    options: Stage1Options,
    weights: TrainedWeights<B, Stage1Parameters<Place>>,
    /// What is the same in every step of a batch's size.
    constants: Arena<B>,
    first_phase: Workspace<B>,
    second_phase: Workspace<B>,
}

impl<B: Backend> Stage1<B> {
    /// Reads the parameters.
    ///
    /// # Errors
    /// Fails as the source does, and if there is not enough memory.
    pub fn new(device: B, config: Config, options: Stage1Options, source: &dyn TensorSource) -> Result<Self> {
        let weights = TrainedWeights::load(&device, &Stage1Parameters::spec(&config), source)?;
        let width = config.vision.hidden_size;
        let mut constants = Arena::planned(&device, "constants", |c| {
            Constants::carve(c, width);
        })?;
        let mut carved = Constants::carve(&mut constants.cursor(), width);
        device.write(&vec![1.0; width], 0, carved.ones.reborrow())?;
        device.clear(carved.zeros)?;
        let (first_phase, second_phase) = (Workspace::default(), Workspace::default());
        Ok(Self { device, config, options, weights, constants, first_phase, second_phase })
    }

    /// The parameters, with their gradients.
    pub fn weights(&self) -> &TrainedWeights<B, Stage1Parameters<Place>> {
        &self.weights
    }

    /// The device.
    pub fn device(&self) -> &B {
        &self.device
    }

    /// The losses of a batch and the gradients of all parameters, of step number `step`, counted from 1.
    ///
    /// # Errors
    /// Fails if there is not enough memory, and if the device does.
    pub fn differentiate(&mut self, batch: &Batch, step: usize) -> Result<Losses> {
        self.differentiate_observed(batch, step, &mut |_| Ok(()))
    }

    /// The same; `done` is called whenever the device has been asked for a part.
    ///
    /// # Errors
    /// As [`Self::differentiate`], and if `done` does.
    pub fn differentiate_observed(
        &mut self,
        batch: &Batch,
        step: usize,
        done: &mut dyn FnMut(StepPart) -> Result<()>,
    ) -> Result<Losses> {
        self.weights.clear_gradients(&self.device)?;
        let Self { device: b, config, options, weights, constants, first_phase, second_phase } = self;
        let width = config.vision.hidden_size;
        let mut constants = Constants::carve(&mut constants.cursor(), width);
        b.write_indices(&[options.seed, step as u32], constants.key.reborrow())?;
        let Training { weights: parameters, parameters: exact, mut gradients } = weights.training();
        let pass = Pass {
            b: &*b,
            config,
            options,
            parameters: &parameters,
            temperature: exact.temperature,
            constants,
        };
        let plan = Plan::alone(batch, config.num_query_tokens);
        let mut lease = first_phase.lease(b, (batch.images(), "images"), |c| {
            FirstPhaseActs::carve(c, b, &plan, batch, config);
        })?;
        let mut first = FirstPhaseActs::carve(&mut lease.cursor(), b, &plan, batch, config);
        pass.first_forward(batch, &plan, &mut first)?;
        done(StepPart::FirstForward)?;
        let negatives = pass.negatives(batch, &plan, &mut first)?;
        done(StepPart::Contrastive)?;

        let matched = pairs(&negatives.images, &negatives.texts);
        let together = Plan::together(batch, &matched, config.num_query_tokens, options.start_token);
        let predictions = Predictions::of(&together, batch.images());
        let mut lease = second_phase.lease(b, (batch.images(), "images"), |c| {
            SecondPhaseActs::carve(c, b, &together, &predictions, config);
        })?;
        let mut second = SecondPhaseActs::carve(&mut lease.cursor(), b, &together, &predictions, config);
        let phase = Second { plan: &together, pairs: &matched, predictions: &predictions };
        pass.second_forward(&phase, &first, &mut second)?;
        done(StepPart::SecondForward)?;
        pass.second_backward(&phase, &mut first, &mut second, &mut gradients)?;
        done(StepPart::SecondBackward)?;
        pass.first_backward(&plan, &mut first, &mut gradients)?;
        done(StepPart::FirstBackward)?;
        // Last, because reading waits for the device.
        pass.losses(&first, &second)
    }

    /// Lets the optimiser follow the gradients; returns their norm before it was clipped.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn update(&mut self, constants: AdamW, learning_rate: f64, step: usize) -> Result<f64> {
        self.weights.update(&self.device, constants, learning_rate, step)
    }
}

/// What the second phase is about.
struct Second<'a> {
    plan: &'a Plan,
    pairs: &'a [Pair],
    predictions: &'a Predictions,
}

/// One step.
struct Pass<'a, B: Backend> {
    b: &'a B,
    config: &'a Config,
    options: &'a Stage1Options,
    parameters: &'a Stage1Parameters<V<'a, B>>,
    /// [1, 1]
    temperature: S<'a, B>,
    constants: Constants<'a, B>,
}

impl<B: Backend> Pass<'_, B> {
    fn dropout(&self, pass: u32) -> PassDropout<'_, B> {
        let p = self.options.dropout;
        PassDropout { probabilities: p, hidden: p, pass, key: self.constants.key.view() }
    }

    fn contrastive(&self) -> Contrastive<'_, B> {
        Contrastive {
            heads: self.parameters.qformer.heads.as_ref().expect("stage 1 has heads"),
            temperature: self.temperature,
            smoothing: self.options.smoothing,
            gradient: self.options.contrastive_gradient,
        }
    }

    fn captioning(&self) -> Captioning<'_, B> {
        Captioning {
            head: &self.parameters.language_head,
            words: self.parameters.qformer.text_embeddings.as_ref().expect("stage 1 reads text").words,
            activation: self.config.qformer.hidden_act,
            smoothing: self.options.smoothing,
        }
    }

    fn first_forward(&self, batch: &Batch, plan: &Plan, acts: &mut FirstPhaseActs<'_, B>) -> Result<()> {
        let (b, parameters) = (self.b, &self.parameters.qformer);
        b.write(&batch.vision_output.values, 0, acts.vision_output.reborrow())?;
        b.layer_norm_forward(LayerNormForward {
            x: acts.vision_output.view(),
            dropout: None,
            residual: None,
            weight: self.constants.ones.view(),
            bias: self.constants.zeros.view(),
            epsilon: parameters.image_norm.epsilon,
            sum: None,
            statistics: None,
            y: acts.features.reborrow(),
        })?;
        b.fold_forward(FoldForward {
            weight: parameters.image_kv.weight,
            bias: parameters.image_kv.bias,
            norm_weight: parameters.image_norm.weight,
            norm_bias: parameters.image_norm.bias,
            folded_weight: acts.folded_weight.reborrow(),
            folded_bias: acts.folded_bias.reborrow(),
        })?;
        let folded = Linear { weight: acts.folded_weight.view(), bias: acts.folded_bias.view() };
        folded.forward(b, acts.features.view(), acts.keys_values.reborrow())?;
        let trunk = self.trunk(0, &folded, acts.keys_values.view());
        trunk.forward(b, plan, &mut acts.trunk, None)
    }

    fn negatives(
        &self,
        batch: &Batch,
        plan: &Plan,
        acts: &mut FirstPhaseActs<'_, B>,
    ) -> Result<HardNegatives> {
        let negatives = match self.options.hardness {
            Hardness::Hardest => Negatives::Hardest,
            Hardness::Sampled => Negatives::Sampled { key: self.constants.key.view(), site: NEGATIVES_SITE },
        };
        let (output, contrastive) = (acts.trunk.output(), &mut acts.contrastive);
        self.contrastive().forward(self.b, plan, &batch.image_ids, output, negatives, contrastive)
    }

    fn second_forward(
        &self,
        phase: &Second<'_>,
        first: &FirstPhaseActs<'_, B>,
        acts: &mut SecondPhaseActs<'_, B>,
    ) -> Result<()> {
        let (b, heads) = (self.b, self.contrastive().heads);
        let folded = Linear { weight: first.folded_weight.view(), bias: first.folded_bias.view() };
        let trunk = self.trunk(1, &folded, first.keys_values.view());
        trunk.forward(b, phase.plan, &mut acts.trunk, Some(&first.trunk))?;
        let output = acts.trunk.output();
        matching::forward(b, &heads.matching, phase.plan, phase.pairs, output, &mut acts.matching)?;
        self.captioning().forward(b, phase.predictions, output, &mut acts.captioning)
    }

    fn losses(&self, first: &FirstPhaseActs<'_, B>, second: &SecondPhaseActs<'_, B>) -> Result<Losses> {
        let (contrastive, recall) = first.contrastive.read(self.b)?;
        let (matching, matching_accuracy) = second.matching.read(self.b)?;
        let captioning = second.captioning.read(self.b)?;
        let [of_contrastive, of_matching, of_captioning] = self.options.weights;
        let total = of_contrastive * contrastive + of_matching * matching + of_captioning * captioning;
        Ok(Losses { total, contrastive, matching, captioning, matching_accuracy, recall })
    }

    fn second_backward(
        &self,
        phase: &Second<'_>,
        first: &mut FirstPhaseActs<'_, B>,
        acts: &mut SecondPhaseActs<'_, B>,
        gradients: &mut Stage1Parameters<SM<'_, B>>,
    ) -> Result<()> {
        let (b, heads) = (self.b, self.contrastive().heads);
        let [_, of_matching, of_captioning] = self.options.weights;
        let [dy, dx] = &mut acts.d;
        let (dqueries, dtext) = dy.reborrow().split_rows(phase.plan.query_rows());
        let matching = &mut gradients.qformer.heads.as_mut().expect("stage 1 has heads").matching;
        matching::backward(b, &heads.matching, of_matching, &mut acts.matching, matching, dqueries)?;
        let words = gradients.qformer.text_embeddings.as_mut().expect("stage 1 reads text");
        let (head, words) = (&mut gradients.language_head, words.words.reborrow());
        let (captioning, partials) = (&mut acts.captioning, &mut acts.scratch.layers.partials);
        let (plan, predictions) = (phase.plan, phase.predictions);
        self.captioning().backward(
            b,
            plan,
            predictions,
            of_captioning,
            captioning,
            head,
            words,
            partials,
            dtext,
        )?;
        for dqkv in &mut first.dqkv {
            b.clear(dqkv.reborrow())?;
        }
        let folded = Linear { weight: first.folded_weight.view(), bias: first.folded_bias.view() };
        let trunk = self.trunk(1, &folded, first.keys_values.view());
        let to = TrunkGradients {
            keys_values: (Write::Replace, first.dkeys_values.reborrow()),
            qkv: Qkv::One(acts.dqkv.reborrow()),
            earlier: Some(first.dqkv.iter_mut().map(M::<B>::reborrow).collect()),
        };
        let d = [dy.reborrow(), dx.reborrow()];
        let (earlier, gradients) = (Some(&first.trunk), &mut gradients.qformer);
        trunk.backward(b, plan, &acts.trunk, earlier, gradients, to, d, &mut acts.scratch)
    }

    fn first_backward(
        &self,
        plan: &Plan,
        acts: &mut FirstPhaseActs<'_, B>,
        gradients: &mut Stage1Parameters<SM<'_, B>>,
    ) -> Result<()> {
        let (b, parameters) = (self.b, &self.parameters.qformer);
        let [dy, dx] = &mut acts.d;
        let heads = gradients.qformer.heads.as_mut().expect("stage 1 has heads");
        let dtemperature = gradients.temperature.reborrow();
        let (output, weight) = (acts.trunk.output(), self.options.weights[0]);
        let contrastive = &mut acts.contrastive;
        self.contrastive().backward(
            b,
            plan,
            output,
            weight,
            contrastive,
            heads,
            dtemperature,
            dy.reborrow(),
        )?;
        let folded = Linear { weight: acts.folded_weight.view(), bias: acts.folded_bias.view() };
        let trunk = self.trunk(0, &folded, acts.keys_values.view());
        let to = TrunkGradients {
            keys_values: (Write::Add, acts.dkeys_values.reborrow()),
            qkv: Qkv::Each(acts.dqkv.iter_mut().map(M::<B>::reborrow).collect()),
            earlier: None,
        };
        let d = [dy.reborrow(), dx.reborrow()];
        trunk.backward(b, plan, &acts.trunk, None, &mut gradients.qformer, to, d, &mut acts.scratch)?;

        b.clear(acts.dfolded_weight.reborrow())?;
        b.clear(acts.dfolded_bias.reborrow())?;
        b.gemm_backward(GemmBackward {
            x: acts.features.view(),
            weight: acts.folded_weight.view(),
            dy: acts.dkeys_values.view(),
            dx: None,
            dweight: acts.dfolded_weight.reborrow(),
            dbias: Some(acts.dfolded_bias.reborrow()),
        })?;
        let gradients = &mut gradients.qformer;
        b.fold_backward(FoldBackward {
            weight: parameters.image_kv.weight,
            norm_weight: parameters.image_norm.weight,
            norm_bias: parameters.image_norm.bias,
            dfolded_weight: acts.dfolded_weight.view(),
            dfolded_bias: acts.dfolded_bias.view(),
            dweight: gradients.image_kv.weight.reborrow(),
            dbias: gradients.image_kv.bias.reborrow(),
            dnorm_weight: gradients.image_norm.weight.reborrow(),
            dnorm_bias: gradients.image_norm.bias.reborrow(),
        })
    }

    fn trunk<'s>(&'s self, pass: u32, folded: &'s Linear<V<'s, B>>, keys_values: V<'s, B>) -> Trunk<'s, B> {
        Trunk {
            config: &self.config.qformer,
            parameters: &self.parameters.qformer,
            image_kv: folded,
            keys_values,
            dropout: self.dropout(pass),
        }
    }
}
