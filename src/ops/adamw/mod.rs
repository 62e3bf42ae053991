//! AdamW as `torch.optim.AdamW` computes it, over all parameters at once, with the gradient clipped as by
//! `torch.nn.utils.clip_grad_norm_`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, S, SM};
use crate::error::Result;

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// β1
    pub beta1: f64,
    /// β2
    pub beta2: f64,
    /// ε
    pub epsilon: f64,
    /// λ
    pub weight_decay: f64,
    /// The gradient's norm beyond which it is scaled down.
    pub max_norm: Option<f64>,
}

/// Operands of [`AdamWOp::adamw_step`].
pub struct AdamWStep<'a, D: Device> {
    /// The constants.
    pub constants: AdamW,
    /// [1, 3]: the learning rate η, 1 − β1ᵗ and 1 − β2ᵗ of the step t = 1, 2, …, in the device's memory
    /// because they change from step to step
    pub schedule: S<'a, D>,
    /// g [1, n]
    pub gradient: S<'a, D>,
    /// ‖g‖ [1, 1]
    pub norm: S<'a, D>,
    /// How many of the parameters decay: the first.
    pub decayed: usize,
    /// p [1, n], updated
    pub parameters: SM<'a, D>,
    /// m [1, n], updated
    pub first_moment: SM<'a, D>,
    /// v [1, n], updated
    pub second_moment: SM<'a, D>,
    /// [1, n], written: the parameters as the graph reads them, where it does not read p itself
    pub weights: Option<M<'a, D>>,
}

/// The optimiser's step.
pub trait AdamWOp: Device {
    /// With g' = g·min(1, max_norm / (‖g‖ + 1e-6)):
    ///
    /// - p ← p − η·λ·p, where it decays
    /// - m ← β1·m + (1 − β1)·g'
    /// - v ← β2·v + (1 − β2)·g'²
    /// - p ← p − η·m̂ / (√v̂ + ε) with m̂ = m / (1 − β1ᵗ), v̂ = v / (1 − β2ᵗ)
    ///
    /// If ‖g‖ is not finite, nothing is changed.
    fn adamw_step(&self, args: AdamWStep<'_, Self>) -> Result<()>;
}

/// What keeps the factor of a clipped gradient finite.
const CLIP_EPSILON: f64 = 1e-6;

impl<D: Device> AdamWStep<'_, D> {
    /// Asserts the shapes.
    fn check(&self) {
        let shape = self.gradient.shape();
        assert_eq!(shape.rows, 1, "gradient [1, n]");
        for vector in [&self.parameters, &self.first_moment, &self.second_moment] {
            assert_eq!(vector.shape(), shape, "parameters and moments [1, n]");
        }
        assert!(self.weights.as_ref().is_none_or(|w| w.shape() == shape), "weights [1, n]");
        assert!(self.decayed <= shape.cols, "{} of {} parameters decay", self.decayed, shape.cols);
        assert_eq!((self.schedule.rows(), self.schedule.cols()), (1, 3), "schedule [1, 3]");
        assert_eq!((self.norm.rows(), self.norm.cols()), (1, 1), "norm [1, 1]");
    }
}
