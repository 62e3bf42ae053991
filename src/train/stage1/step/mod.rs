//! One step of stage 1: three losses and the gradients of all parameters.

pub(super) mod acts;
mod fold;
mod pass;
mod place;
pub(super) mod plan;
pub(super) mod second;

use super::batch::GlobalBatch;
use super::memory::MemoryPlan;
use super::{Batch, Losses, Stage1Options, Stage1Parameters, StepPart};
use crate::config::Config;
use crate::device::Write;
use crate::error::Result;
use crate::memory::{Address, Arena, Recorded, Shaped, TensorInput, Workspace};
use crate::models::qformer::stack::StreamPlan;
use crate::ops::Backend;
use crate::ops::adamw::AdamW;
use crate::ops::attention::check_heads;
use crate::params::TensorSource;
use crate::train::StepSize;
use crate::train::optimizer::{ParamSlot, TrainedWeights, Training};
use acts::{Constants, SecondPhaseActs, WholeActs};
use pass::StepContext;
use place::{Done, FirstPhase, PairPassIndex};
use plan::{FirstPhaseInputs, filled_up};
use second::{PairPass, most_pairs};

/// A Q-Former in training.
pub struct Stage1<B: Backend> {
    device: B,
    config: Config,
    options: Stage1Options,
    weights: TrainedWeights<B, Stage1Parameters<ParamSlot>>,
    /// Of steps, whole or in parts.
    recorded: Recorded<B>,
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
        config.validate()?;
        options.check(&config)?;
        check_heads::<B>("the Q-Former", config.qformer.head_dim())?;
        let spec = Stage1Parameters::spec(&config, options.matching);
        let weights = TrainedWeights::load(&device, &spec, source)?;
        let width = config.vision.width();
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
            recorded: Recorded::default(),
            constants,
            whole,
            first_phase,
            second_phase,
        })
    }

    /// The parameters, with their gradients.
    pub fn weights(&self) -> &TrainedWeights<B, Stage1Parameters<ParamSlot>> {
        &self.weights
    }

    /// The same, to go on from what was saved of them.
    pub(super) fn weights_mut(&mut self) -> &mut TrainedWeights<B, Stage1Parameters<ParamSlot>> {
        &mut self.weights
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    pub(super) fn options(&self) -> &Stage1Options {
        &self.options
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
    /// With one, all of it is one piece of work that a device replays for batches of as many images and, rounded up,
    /// as much text (`Device::replay`). How much text is matched follows from which
    /// negatives are hard, which the host does not wait for: there is room for somewhat more than is likely, and the
    /// rare step that needs more is done again. With more, or with more pairs than a pass takes, the host reads which
    /// pairs there are, and what is replayed are the first phases, there and back.
    ///
    /// # Errors
    /// Fails if there is no micro-batch or more than 2048, if there is not enough memory, and if the
    /// device does.
    pub fn differentiate<V: Shaped>(&mut self, batches: &[Batch<V>], step: usize) -> Result<Losses>
    where
        for<'v> TensorInput<'v, B>: From<&'v V>,
    {
        self.run(batches, step, None)
    }

    /// The same, part by part; `done` is called whenever the device has been asked for one, each as often as
    /// it is done.
    ///
    /// # Errors
    /// As [`Self::differentiate`], and if `done` does.
    pub fn differentiate_observed<V: Shaped>(
        &mut self,
        batches: &[Batch<V>],
        step: usize,
        done: &mut dyn FnMut(StepPart) -> Result<()>,
    ) -> Result<Losses>
    where
        for<'v> TensorInput<'v, B>: From<&'v V>,
    {
        self.run(batches, step, Some(done))
    }

    fn run<V: Shaped>(
        &mut self,
        batches: &[Batch<V>],
        step: usize,
        mut observer: Option<Done<'_>>,
    ) -> Result<Losses>
    where
        for<'v> TensorInput<'v, B>: From<&'v V>,
    {
        let whole = GlobalBatch::of(batches)?;
        let inputs: Vec<FirstPhaseInputs> = batches
            .iter()
            .map(|batch| FirstPhaseInputs::of::<B>(&batch.texts, batch.rows(&self.config)))
            .collect();
        let first = |(index, (batch, alone))| -> FirstPhase<'_, B> {
            let batch: &Batch<V> = batch;
            let (vision_output, rows) = ((&batch.vision_output).into(), batch.rows(&self.config));
            FirstPhase { index, vision_output, rows, alone }
        };
        let firsts: Vec<FirstPhase<'_, B>> = batches.iter().zip(&inputs).enumerate().map(first).collect();
        let is_recorded = observer.is_none();
        let mut done = |part| observer.as_mut().map_or(Ok(()), |done| done(part));
        let mut room = None;
        loop {
            match self.try_step(&whole, &firsts, step, (is_recorded, &mut done), room)? {
                StepOutcome::Losses(losses) => return Ok(losses),
                StepOutcome::Needs(rows) => {
                    assert_eq!(room, None, "the same step needs {rows} rows, then more");
                    room = Some(rows);
                }
            }
        }
    }

    /// A step, with so much `room` for rows of text in its second phase, where that is known.
    fn try_step(
        &mut self,
        whole: &GlobalBatch<'_>,
        firsts: &[FirstPhase<'_, B>],
        step: usize,
        (is_recorded, done): (bool, Done<'_>),
        room: Option<usize>,
    ) -> Result<StepOutcome> {
        self.weights.clear_gradients(&self.device)?;
        let Self { device: b, config, options, weights, constants, recorded, .. } = self;
        let b: &B = b;
        let mut constants = Constants::carve(&mut constants.cursor(), config.vision.width());
        b.write_indices(&[options.seed, step as u32], constants.key.reborrow())?;
        let Training { weights: parameters, parameters: exact, mut gradients } = weights.training();
        let (parameters, exact) = (&parameters, &exact);
        let pass = StepContext { b, config, options, parameters, exact, constants, whole };

        let (sizes, tokens) = ([whole.images(), firsts.len()], whole.tokens());
        let mut whole_lease = self.whole.lease(b, (whole.images(), "images"), |c| {
            WholeActs::carve(c, sizes, tokens, config);
        })?;
        let address = whole_lease.address();
        let mut all = WholeActs::carve(&mut whole_lease.cursor(), sizes, tokens, config);
        let bytes = firsts.iter().map(|first| {
            Arena::<B>::bytes(|c| {
                first.carve(c, b, config, options.recompute);
            })
        });
        let bytes = bytes.max().expect("one at least");
        let mut first_lease = self.first_phase.lease_bytes(b, (whole.largest(), "images"), bytes)?;
        let lease_second = |second: &PairPass| {
            self.second_phase.lease(b, (second.stream.images.len(), "images"), |c| {
                SecondPhaseActs::carve(c, b, second, config, options);
            })
        };

        let memory = [address, first_lease.address()];
        let plan_of = |work| StepPlan { memory, sizes, text_rows: filled_up::<B>(tokens), work };
        let mut replayed = |plan: StepPlan, work: &mut dyn FnMut() -> Result<()>| {
            // SAFETY: beside the memory that is leased, whose addresses are in the plan, a step works in that of the
            // weights and constants, which are of the owner of what is recorded.
            if is_recorded { unsafe { recorded.run(b, plan, work) } } else { work() }
        };
        all.contrastive.write(b, &whole.image_ids)?;
        all.texts.write(b, &whole.texts)?;
        if let Some(second) = PairPass::only::<B>(whole, room, firsts[0].rows, options) {
            let first = firsts[0];
            let mut acts = first.carve(&mut first_lease.cursor(), b, config, options.recompute);
            pass.write_first(first, &mut acts)?;
            let mut second_lease = lease_second(&second)?;
            let plan = plan_of(StepWork::OneMicroBatch {
                first: first.plan().clone(),
                second: second.clone(),
                memory: second_lease.address(),
            });
            let mut second_acts =
                SecondPhaseActs::carve(&mut second_lease.cursor(), b, &second, config, options);
            let mut work = || {
                pass.fold_forward(&mut all.fold)?;
                pass.first_forward(first, &mut acts, &mut all, done)?;
                pass.contrast(&mut all, gradients.temperature.reborrow(), done)?;
                let (only, second_acts) = (PairPassIndex::ONLY, &mut second_acts);
                pass.second(&second, only, &mut acts, &mut all, second_acts, &mut gradients, done)?;
                pass.first_backward(first, &mut acts, &mut all, &mut gradients, done)
            };
            replayed(plan, &mut work)?;
            // Reading waits for the device.
            let needed = all.findings.read_needed(b)?;
            if needed > second.plan.text_rows {
                return Ok(StepOutcome::Needs(needed));
            }
            return pass.losses(&all, &[PairPassIndex::ONLY.share_of_pairs]).map(StepOutcome::Losses);
        }

        // The first phases come again; the pairs of a micro-batch are other ones, and others in number, every time.
        let plan_of_first = |first: FirstPhase<'_, B>, direction| {
            let plan = first.plan().clone();
            let first_image = whole.images_of(first.index).start;
            plan_of(StepWork::FirstPhase { direction, index: first.index, first_image, plan })
        };
        pass.fold_forward(&mut all.fold)?;
        for &first in firsts {
            let mut acts = first.carve(&mut first_lease.cursor(), b, config, options.recompute);
            pass.write_first(first, &mut acts)?;
            let mut work = || pass.first_forward(first, &mut acts, &mut all, done);
            replayed(plan_of_first(first, Direction::Forward), &mut work)?;
        }
        let mut work = || pass.contrast(&mut all, gradients.temperature.reborrow(), done);
        replayed(plan_of(StepWork::Contrast), &mut work)?;
        let listed = all.contrastive.read_listed(b)?;
        let (pairs, most) = (listed.count() as f64, most_pairs::<B>(whole.largest()));
        let mut shares = Vec::new();
        for &first in firsts.iter().rev() {
            let mut acts = first.carve(&mut first_lease.cursor(), b, config, options.recompute);
            // What the last one worked out is still in its place.
            if first.index + 1 < firsts.len() {
                pass.write_first(first, &mut acts)?;
                let mut work = || pass.first_forward(first, &mut acts, &mut all, done);
                replayed(plan_of_first(first, Direction::Forward), &mut work)?;
            }
            let (images, rows) = (whole.images_of(first.index), first.rows);
            let passes = listed.passes::<B>(whole, images, most, rows, options);
            for (index, second) in passes.iter().enumerate() {
                let place = PairPassIndex {
                    batch: first.index,
                    pass: shares.len(),
                    write: if index == 0 { Write::Replace } else { Write::Add },
                    passes: passes.len(),
                    share_of_pairs: second.pairs.len() as f64 / pairs,
                };
                shares.push(place.share_of_pairs);
                let mut lease = lease_second(second)?;
                let mut second_acts = SecondPhaseActs::carve(&mut lease.cursor(), b, second, config, options);
                pass.second(second, place, &mut acts, &mut all, &mut second_acts, &mut gradients, done)?;
            }
            let mut work = || pass.first_backward(first, &mut acts, &mut all, &mut gradients, done);
            replayed(plan_of_first(first, Direction::Backward), &mut work)?;
        }
        // Last, because reading waits for the device.
        pass.losses(&all, &shares).map(StepOutcome::Losses)
    }

    /// Lets the optimiser follow the gradients; returns their norm before it was clipped.
    ///
    /// # Errors
    /// Fails if the device does.
    pub fn update(&mut self, constants: AdamW, learning_rate: f64, step: usize) -> Result<f64> {
        self.weights.update(&self.device, constants, learning_rate, step)
    }
}

/// Recorded work of a step, by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct StepPlan {
    /// Where what spans the micro-batches begins, and what a first phase works in.
    memory: [Address; 2],
    /// Images, and micro-batches.
    sizes: [usize; 2],
    /// Rows of text of all micro-batches.
    text_rows: usize,
    work: StepWork,
}

#[derive(Clone, PartialEq, Eq, Hash)]
enum StepWork {
    /// All of a step of one micro-batch.
    OneMicroBatch { first: StreamPlan, second: PairPass, memory: Address },
    /// The first phase of a micro-batch.
    FirstPhase { direction: Direction, index: usize, first_image: usize, plan: StreamPlan },
    /// ITC of all micro-batches.
    Contrast,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Direction {
    Forward,
    Backward,
}

/// What became of a step.
enum StepOutcome {
    Losses(Losses),
    /// There was room for fewer rows of text in the second phase than these.
    Needs(usize),
}
