//! Every operation, forward and backward, at the sizes that it has in the model: its operands, what it costs by
//! formula, and a look at its answer. A [`FrontEnd`] measures them: `qformer-bench kernels` and `cargo bench`.
//!
//! The bytes of a case are those of its operands, each read or written once.

mod attention;
mod language;
mod losses;
mod pairs;
mod parameters;
mod products;
mod rows;
mod tensor;

use qformer::config::Config;
use qformer::ops::Backend;
use qformer::{Error, Result};
use tensor::Answer;

/// Tokens of a caption. All but the first are predicted: 2816 rows of logits for 256 captions.
const CAPTION: usize = 12;

/// What a case costs.
#[derive(Clone, Copy)]
pub(crate) struct Cost {
    /// Operations; 0 where only bytes count.
    pub(crate) flops: f64,
    /// Bytes of operands.
    pub(crate) bytes: f64,
}

impl Cost {
    /// Of an operation that does little with its operands.
    fn bytes(bytes: usize) -> Self {
        Self { flops: 0.0, bytes: bytes as f64 }
    }
}

/// An operation at one size.
pub(crate) struct Case<'a> {
    pub(crate) operation: &'a str,
    pub(crate) shape: &'a str,
    pub(crate) cost: Cost,
}

/// Who measures the cases.
pub(crate) trait FrontEnd {
    /// Measures one; `launch` computes it once more.
    fn measure(&mut self, case: &Case<'_>, launch: &mut (dyn FnMut() -> Result<()> + Send)) -> Result<()>;
}

/// Makes the cases one after the other.
pub(crate) struct Cases<'a, B: Backend> {
    pub(crate) device: &'a B,
    pub(crate) config: &'a Config,
    /// B
    pub(crate) batch: usize,
    pub(crate) front_end: &'a mut dyn FrontEnd,
}

impl<B: Backend> Cases<'_, B> {
    /// All cases.
    pub(crate) fn run(mut self) -> Result<()> {
        products::measure(&mut self)?;
        attention::measure(&mut self)?;
        rows::measure(&mut self)?;
        language::measure(&mut self)?;
        losses::measure(&mut self)?;
        pairs::measure(&mut self)?;
        parameters::measure(&mut self)
    }

    /// Has one case measured: what `launch` writes to `answer`, after a look at it.
    fn case<A: Answer<B> + Send + ?Sized>(
        &mut self,
        operation: &str,
        shape: &str,
        cost: Cost,
        answer: &mut A,
        mut launch: impl FnMut(&mut A) -> Result<()> + Send,
    ) -> Result<()> {
        launch(answer)?;
        if !answer.is_written(self.device)? {
            return Err(Error::device(format!(
                "{operation}, {shape}: the answer is not finite, or nothing but zeros; it was not measured"
            )));
        }
        self.front_end.measure(&Case { operation, shape, cost }, &mut || launch(answer))
    }

    /// Bytes of so many weights or activations.
    fn elements(&self, count: usize) -> usize {
        count * size_of::<B::Elem>()
    }

    /// Bytes of so many statistics or gradients of parameters.
    fn statistics(&self, count: usize) -> usize {
        count * size_of::<B::Stat>()
    }
}
