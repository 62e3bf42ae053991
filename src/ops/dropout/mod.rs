//! Dropout: y = x·m/(1 − p), where an element of the mask m is 0 with probability p, else 1.
//!
//! The mask is drawn anew from its place wherever it is needed ([`crate::random`]), never stored:
//! other operations with dropout inside them take a [`Dropout`] too.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

pub(crate) use cpu::RUN;
#[cfg(feature = "cuda")]
pub(crate) use cuda::DropoutArgs;

use crate::device::{Device, M, V};
use crate::error::Result;
use crate::tensor::View;

/// Dropout at one place of the graph.
pub struct Dropout<'a, D: Device> {
    /// p, in [0, 1)
    pub probability: f64,
    /// Which place of the graph: no two places of a step have the same.
    pub site: u32,
    /// [1, 2]: seed and step, in the device's memory because they change from step to step.
    pub key: View<'a, D, u32>,
}

impl<D: Device> Clone for Dropout<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for Dropout<'_, D> {}

impl<D: Device> Dropout<'_, D> {
    /// Random words below this drop their element.
    pub(crate) fn threshold(&self) -> u32 {
        assert!((0.0..1.0).contains(&self.probability), "a probability of {}", self.probability);
        (self.probability * f64::from(u32::MAX)) as u32
    }

    /// Factor of what is kept.
    pub(crate) fn scale(&self) -> f64 {
        1.0 / (1.0 - self.probability)
    }
}

/// Operands of [`DropoutOp::dropout_forward`].
pub struct DropoutForward<'a, D: Device> {
    /// Which mask.
    pub dropout: Dropout<'a, D>,
    /// [rows, width]
    pub x: V<'a, D>,
    /// [rows, width]
    pub y: M<'a, D>,
}

/// Operands of [`DropoutOp::dropout_backward`].
pub struct DropoutBackward<'a, D: Device> {
    /// The forward's.
    pub dropout: Dropout<'a, D>,
    /// [rows, width]
    pub dy: V<'a, D>,
    /// [rows, width], written
    pub dx: M<'a, D>,
}

/// Dropout alone; element (row, col) has word `col % 4` of counter [col / 4, row, site, 0].
pub trait DropoutOp: Device {
    /// y = x·m/(1 − p)
    fn dropout_forward(&self, args: DropoutForward<'_, Self>) -> Result<()>;
    /// dx = dy·m/(1 − p)
    fn dropout_backward(&self, args: DropoutBackward<'_, Self>) -> Result<()>;
}
