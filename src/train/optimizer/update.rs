//! A step of the optimiser.

use super::scalars::Scalars;
use super::weights::{ParamSlot, TrainedWeights};
use crate::device::S;
use crate::error::Result;
use crate::ops::Backend;
use crate::ops::adamw::{AdamW, AdamWStep};
use crate::ops::norm::Norm;
use crate::params::Tree;

/// The optimiser's step by all that its operations follow from: the constants, written out in full.
#[derive(PartialEq, Eq, Hash)]
struct UpdatePlan(String);

impl<D: Backend, P: Tree<ParamSlot>> TrainedWeights<D, P> {
    /// Lets the optimiser do step number `step`, counted from 1; returns the gradient's norm before it was clipped.
    ///
    /// # Errors
    /// Fails if the device does.
    pub(in crate::train) fn update(
        &mut self,
        device: &D,
        constants: AdamW,
        learning_rate: f64,
        step: usize,
    ) -> Result<f64> {
        let power = |beta: f64| 1.0 - beta.powf(step as f64);
        let schedule = [learning_rate, power(constants.beta1), power(constants.beta2)];
        let mut scalars = Scalars::carve(&mut self.scalars.cursor());
        device.write(&schedule.map(|x| x as f32), 0, scalars.schedule.reborrow())?;
        let len = self.len;
        let gradient: S<'_, D> = self.gradients.first(1, len);
        let work = || {
            device.norm(Norm {
                x: gradient,
                partial_sums: scalars.partial_sums,
                norm: scalars.norm.reborrow(),
            })?;
            let [first, second] = &mut self.moments;
            device.adamw_step(AdamWStep {
                constants,
                schedule: scalars.schedule.view(),
                gradient,
                norm: scalars.norm.view(),
                decayed: self.decayed,
                parameters: self.parameters.cursor().take(1, len),
                first_moment: first.cursor().take(1, len),
                second_moment: second.cursor().take(1, len),
                weights: self.weights.as_mut().map(|weights| weights.cursor().take(1, len)),
            })
        };
        // SAFETY: the work is over the vectors and scalars, which are as long here as what is recorded.
        unsafe { self.recorded.run(device, UpdatePlan(format!("{constants:?}")), work) }?;
        Ok(f64::from(device.read(scalars.norm.view())?[0]))
    }
}
