//! One step of stage 1: three losses and the gradients of all parameters.

use super::acts::{Constants, SecondPhaseActs, WholeActs};
use super::batch::Whole;
use super::memory::{MemoryPlan, StepSize};
use super::pass::{First, Pass, Place};
use super::plan::Plan;
use super::second::{Second, most_pairs, passes};
use super::weights::{self, Training};
use super::{Batch, Losses, Stage1Options, Stage1Parameters, StepPart, TrainedWeights};
use crate::arena::Arena;
use crate::config::Config;
use crate::device::Write;
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::adamw::AdamW;
use crate::ops::attention::check_heads;
use crate::params::TensorSource;
use crate::replays::Replays;
use crate::workspace::Workspace;

/// A Q-Former in training.
pub struct Stage1<B: Backend> {
    device: B,
    config: Config,
    options: Stage1Options,
    weights: TrainedWeights<B, Stage1Parameters<weights::Place>>,
    /// Of the two phases of steps of one micro-batch.
    replays: Replays<B>,
    /// Of the optimiser's step with these constants.
    update: Option<(AdamW, B::Replay)>,
    /// What is the same in every step.
    constants: Arena<B>,
    whole: Workspace<B>,
    first_phase: Workspace<B>,
    second_phase: Workspace<B>,
}

impl<B: Backend> Stage1<B> {
    /// Reads the parameters.
    ///
    /// # Errors
    /// Fails if the model cannot be trained with these options or on this device, as the source does, and if
    /// there is not enough memory.
    pub fn new(device: B, config: Config, options: Stage1Options, source: &dyn TensorSource) -> Result<Self> {
        options.check(&config)?;
        check_heads::<B>("the Q-Former", config.qformer.head_dim())?;
        let spec = Stage1Parameters::spec(&config, options.matching);
        let weights = TrainedWeights::load(&device, &spec, source)?;
        let width = config.vision.hidden_size;
        let mut constants = Arena::planned(&device, "constants", |c| {
            Constants::carve(c, width);
        })?;
        let mut carved = Constants::carve(&mut constants.cursor(), width);
        device.write(&vec![1.0; width], 0, carved.ones.reborrow())?;
        device.clear(carved.zeros)?;
        let [whole, first_phase, second_phase] = [(); 3].map(|()| Workspace::default());
        Ok(Self {
            device,
            config,
            options,
            weights,
            replays: Replays::default(),
            update: None,
            constants,
            whole,
            first_phase,
            second_phase,
        })
    }

    /// The parameters, with their gradients.
    pub fn weights(&self) -> &TrainedWeights<B, Stage1Parameters<weights::Place>> {
        &self.weights
    }

    /// The same, to go on from what was saved of them.
    pub(super) fn weights_mut(&mut self) -> &mut TrainedWeights<B, Stage1Parameters<weights::Place>> {
        &mut self.weights
    }

    /// The device.
    pub fn device(&self) -> &B {
        &self.device
    }

    /// Takes all memory that steps of this size need, so that none of them takes any.
    ///
    /// # Errors
    /// Fails as [`MemoryPlan::of`], and if there is not enough.
    pub fn reserve(&mut self, size: StepSize) -> Result<MemoryPlan> {
        let plan = MemoryPlan::of(&self.device, &self.config, &self.options, size)?;
        let items = (size.images, "images");
        self.whole.lease_bytes(&self.device, (size.images * size.batches, "images"), plan.whole_batch)?;
        self.first_phase.lease_bytes(&self.device, items, plan.first_phase)?;
        self.second_phase.lease_bytes(&self.device, items, plan.second_phase)?;
        Ok(plan)
    }

    /// The memory that is held.
    pub fn memory(&self) -> MemoryPlan {
        let vectors = self.weights.bytes();
        MemoryPlan {
            parameters: vectors.parameters,
            gradients: vectors.gradients,
            moments: vectors.moments,
            weights: vectors.weights,
            whole_batch: self.whole.bytes(),
            first_phase: self.first_phase.bytes(),
            second_phase: self.second_phase.bytes(),
            other: vectors.scalars + self.constants.capacity(),
        }
    }

    /// The losses of a batch and the gradients of all parameters, of step number `step`, counted from 1.
    ///
    /// The batch comes in one or more micro-batches, which need memory for one of them at a time. The
    /// losses and gradients are those of the whole: negatives are taken from all of it. For that the
    /// first phase of each micro-batch but one runs twice; with one, nothing does.
    ///
    /// With one, the device replays all that comes again for batches of as many images and, rounded up, as much
    /// text ([`Device::replay`](crate::device::Device::replay)): from the images to their hard negatives, which the
    /// host must know to say who is matched with whom, and from there to the gradients.
    ///
    /// # Errors
    /// Fails if there is no micro-batch or more than 2048, if there is not enough memory, and if the
    /// device does.
    pub fn differentiate(&mut self, batches: &[Batch], step: usize) -> Result<Losses> {
        self.run(batches, step, None)
    }

    /// The same, part by part; `done` is called whenever the device has been asked for one, each as often as
    /// it is done.
    ///
    /// # Errors
    /// As [`Self::differentiate`], and if `done` does.
    pub fn differentiate_observed(
        &mut self,
        batches: &[Batch],
        step: usize,
        done: &mut dyn FnMut(StepPart) -> Result<()>,
    ) -> Result<Losses> {
        self.run(batches, step, Some(done))
    }

    fn run(
        &mut self,
        batches: &[Batch],
        step: usize,
        mut observer: Option<&mut dyn FnMut(StepPart) -> Result<()>>,
    ) -> Result<Losses> {
        let whole = Whole::of(batches)?;
        self.weights.clear_gradients(&self.device)?;
        let Self { device: b, config, options, weights, constants, replays, .. } = self;
        let b: &B = b;
        // Several micro-batches share memory, to which the host writes in between.
        let mut replays = (batches.len() == 1 && observer.is_none()).then_some(replays);
        let mut done = |part| observer.as_mut().map_or(Ok(()), |done| done(part));
        let mut constants = Constants::carve(&mut constants.cursor(), config.vision.hidden_size);
        b.write_indices(&[options.seed, step as u32], constants.key.reborrow())?;
        let Training { weights: parameters, parameters: exact, mut gradients } = weights.training();
        let (parameters, exact) = (&parameters, &exact);
        let pass = Pass { b, config, options, parameters, exact, constants, whole: &whole };

        let sizes = [whole.images(), batches.len()];
        let mut lease = self.whole.lease(b, (whole.images(), "images"), |c| {
            WholeActs::carve(c, sizes, config);
        })?;
        let of_whole = lease.address();
        let mut all = WholeActs::carve(&mut lease.cursor(), sizes, config);
        let plans: Vec<Plan> =
            batches.iter().map(|batch| Plan::alone::<B>(&batch.texts, batch.rows(config))).collect();
        let firsts = || {
            let parts = batches.iter().zip(&plans).enumerate();
            parts.map(|(index, (batch, plan))| First { index, batch, plan })
        };
        let bytes = firsts().map(|first| {
            Arena::<B>::bytes(|c| {
                first.carve(c, b, config, options.recompute);
            })
        });
        let bytes = bytes.max().expect("one at least");
        let mut lease = self.first_phase.lease_bytes(b, (whole.largest(), "images"), bytes)?;
        let addresses = [of_whole, lease.address()];

        all.contrastive.write(b, &whole.image_ids)?;
        for first in firsts() {
            let mut acts = first.carve(&mut lease.cursor(), b, config, options.recompute);
            pass.write_first(first, &mut acts)?;
            let sizes = || [&addresses[..], &first.plan.sizes()].concat();
            replayed(b, replays.as_deref_mut(), "first phase", sizes, || {
                if first.index == 0 {
                    pass.fold_forward(&mut all.fold)?;
                }
                pass.first_forward(first, &mut acts, &mut all)?;
                done(StepPart::FirstForward)?;
                if first.index + 1 == batches.len() {
                    pass.contrast(&mut all, gradients.temperature.reborrow())?;
                }
                Ok(())
            })?;
        }
        let negatives = all.contrastive.hard_negatives(b)?;
        done(StepPart::Contrastive)?;

        let pairs = whole.images() + negatives.count();
        let mut shares = Vec::new();
        for first in firsts().rev() {
            let mut acts = first.carve(&mut lease.cursor(), b, config, options.recompute);
            // What the last one worked out is still in its place.
            if first.index + 1 < batches.len() {
                pass.write_first(first, &mut acts)?;
                pass.first_forward(first, &mut acts, &mut all)?;
                done(StepPart::FirstForward)?;
            }
            let most = most_pairs::<B>(whole.largest());
            let passes = passes(&negatives, whole.images_of(first.index), most);
            for (index, pairs_of_pass) in passes.iter().enumerate() {
                let captions = if index == 0 { &first.batch.texts[..] } else { &[] };
                let rows = first.batch.rows(config);
                let second = Second::new::<B>(pairs_of_pass, &whole.texts, captions, rows, options);
                let place = Place {
                    batch: first.index,
                    pass: shares.len(),
                    write: if index == 0 { Write::Replace } else { Write::Add },
                    share_of_pairs: pairs_of_pass.len() as f64 / pairs as f64,
                };
                shares.push(place.share_of_pairs);
                let mut lease = self.second_phase.lease(b, (first.batch.images(), "images"), |c| {
                    SecondPhaseActs::carve(c, b, &second, config, options);
                })?;
                let address = lease.address();
                let mut second_acts =
                    SecondPhaseActs::carve(&mut lease.cursor(), b, &second, config, options);
                pass.write_second(&second, &mut second_acts)?;
                let last_of_batch = index + 1 == passes.len();
                // Where a pass writes follows from which one it is, and what its pairs count for from all.
                let of_pass = [address, index, passes.len(), pairs];
                let sizes = || [&addresses[..], &of_pass, &first.plan.sizes(), &second.sizes()].concat();
                replayed(b, replays.as_deref_mut(), "second phase", sizes, || {
                    pass.second_forward(&second, place, &acts, &mut all, &mut second_acts)?;
                    done(StepPart::SecondForward)?;
                    pass.second_backward(&second, place, &mut acts, &all, &mut second_acts, &mut gradients)?;
                    done(StepPart::SecondBackward)?;
                    if last_of_batch {
                        pass.first_backward(first, &mut acts, &mut all, &mut gradients)?;
                        done(StepPart::FirstBackward)?;
                    }
                    if last_of_batch && first.index == 0 {
                        pass.fold_backward(&all.fold, &mut gradients)?;
                        done(StepPart::FirstBackward)?;
                    }
                    Ok(())
                })?;
            }
        }
        // Last, because reading waits for the device.
        pass.losses(&all, &shares)
    }

    /// Lets the optimiser follow the gradients; returns their norm before it was clipped.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn update(&mut self, constants: AdamW, learning_rate: f64, step: usize) -> Result<f64> {
        let replay = match &mut self.update {
            Some((recorded, replay)) if *recorded == constants => replay,
            other => &mut other.insert((constants, B::Replay::default())).1,
        };
        self.weights.update(&self.device, constants, learning_rate, step, replay)
    }
}

/// Does work of these `sizes`, replayed where there is something to keep of it.
fn replayed<B: Backend>(
    b: &B,
    replays: Option<&mut Replays<B>>,
    what: &'static str,
    sizes: impl FnOnce() -> Vec<usize>,
    work: impl FnOnce() -> Result<()>,
) -> Result<()> {
    match replays {
        Some(replays) => b.replay(replays.of(what, sizes()), work),
        None => work(),
    }
}
