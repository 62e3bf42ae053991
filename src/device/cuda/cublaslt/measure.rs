//! Which of two ways to compute a product is the faster one.

use super::super::{Cuda, Out, failure};
use crate::arena::Arena;
use crate::error::{Kind, Result};
use crate::tensor::{Layout, Shape};
use cudarc::driver::{DriverError, sys};
use half::bf16;

/// A way to compute a product: writes it to where it is told.
pub(super) type Way<'a> = &'a dyn Fn(Out<'_, bf16>) -> Result<()>;

/// How often each way is timed; the shortest time counts.
const ROUNDS: usize = 3;
/// Products in a time: many, because the first of them may have to wait for the host.
const PRODUCTS: usize = 5;

impl Cuda {
    /// Whether the first way is faster. Both write a matrix of this shape and pitch that is allocated for it:
    /// the product's own place may be one of its operands. If there is no room for it, the answer is no.
    pub(super) fn is_faster(&self, ways: [Way<'_>; 2], shape: Shape, pitch: usize) -> Result<bool> {
        let planned = Arena::<Self>::planned(self, "a measurement", |cursor| {
            cursor.take_as::<bf16>(shape, Layout::Rows { pitch });
        });
        let mut memory = match planned {
            Err(error) if error.kind() == Kind::OutOfMemory => return Ok(false),
            planned => planned?,
        };
        let mut y = memory.cursor().take_as::<bf16>(shape, Layout::Rows { pitch });
        let mut shortest = [f32::INFINITY; 2];
        // The first time of each is of no account: it loads the kernels.
        for way in ways {
            self.seconds(|| way(Out::of(y.reborrow())))?;
        }
        for _ in 0..ROUNDS {
            for (shortest, way) in shortest.iter_mut().zip(ways) {
                *shortest = shortest.min(self.seconds(|| way(Out::of(y.reborrow())))?);
            }
        }
        Ok(shortest[0] < shortest[1])
    }

    /// Time that the GPU takes for products.
    fn seconds(&self, mut start: impl FnMut() -> Result<()>) -> Result<f32> {
        let driver = |error: DriverError| failure(error, "measure a product");
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let event = || self.0.context.new_event(flags).map_err(driver);
        let (first, last) = (event()?, event()?);
        first.record(&self.0.stream).map_err(driver)?;
        for _ in 0..PRODUCTS {
            start()?;
        }
        last.record(&self.0.stream).map_err(driver)?;
        Ok(first.elapsed_ms(&last).map_err(driver)? / 1e3)
    }
}
