//! Which of two ways to compute a product is the faster one.

use super::super::{Cuda, Out, failure};
use super::{ProductElement, Results};
use crate::error::{Kind, Result};
use crate::memory::{Arena, Cursor};
use crate::tensor::{Shape, ViewMut};
use cudarc::driver::{DriverError, sys};

/// A way to compute a product, or what follows it: writes or adds to where it is told.
pub(super) type Way<'a, T> = &'a dyn Fn(Results<'_, T>) -> Result<()>;

/// How often each way is timed; the shortest time counts.
const ROUNDS: usize = 3;
/// Products in a time: many, because the first of them may have to wait for the host.
const PRODUCTS: usize = 5;

/// y of a shape and pitch, and db for its rows.
fn carve<'a, T: ProductElement>(
    cursor: &mut Cursor<'a, Cuda>,
    shape: Shape,
    pitch: usize,
    has_dbias: bool,
) -> (ViewMut<'a, Cuda, T>, Option<ViewMut<'a, Cuda, f32>>) {
    let y = cursor.take_pitched(shape, pitch);
    (y, has_dbias.then(|| cursor.take(1, shape.rows)))
}

impl Cuda {
    /// Whether the first way is faster. Both write, or add to, a matrix of this shape and pitch, and its db, that are
    /// allocated for it: the product's own place may be one of its operands. If there is no room for it, the
    /// answer is no.
    pub(super) fn is_faster<T: ProductElement>(
        &self,
        ways: [Way<'_, T>; 2],
        shape: Shape,
        pitch: usize,
        has_dbias: bool,
    ) -> Result<bool> {
        let planned = Arena::<Self>::planned(self, "a measurement", |cursor| {
            carve::<T>(cursor, shape, pitch, has_dbias);
        });
        let mut memory = match planned {
            Err(error) if error.kind() == Kind::OutOfMemory => return Ok(false),
            planned => planned?,
        };
        let (mut y, mut dbias) = carve(&mut memory.cursor(), shape, pitch, has_dbias);
        let mut compute = |way: Way<'_, T>| {
            let dbias = Out::optional(dbias.as_mut().map(|dbias| dbias.reborrow()));
            way(Results { y: Out::of(y.reborrow()), dbias })
        };
        let mut shortest = [f32::INFINITY; 2];
        // The first time of each does not matter: it loads the kernels.
        for way in ways {
            self.seconds(|| compute(way))?;
        }
        for _ in 0..ROUNDS {
            for (shortest, way) in shortest.iter_mut().zip(ways) {
                *shortest = shortest.min(self.seconds(|| compute(way))?);
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
