//! One allocation, carved front to back into tensors.
//!
//! A function that takes its tensors from a [`Cursor`] is run twice: once on a cursor that only
//! counts, to learn the size, and once on the arena's own. So the shapes are written down once.

use crate::device::Device;
use crate::error::Result;
use crate::tensor::{Element, NumberType, Packing, Shape, View, ViewMut, WeightMut};
use std::marker::PhantomData;

/// Every tensor starts at a multiple of this many bytes: a cache line, and what TMA asks for.
pub const ALIGNMENT: usize = 64;

/// Memory of device `D` for one set of tensors.
pub struct Arena<D: Device> {
    buffer: D::Buffer,
}

/// Takes tensors from an arena, or counts what they would need.
pub struct Cursor<'a, D> {
    /// `None` while counting.
    base: Option<*mut u8>,
    used: usize,
    capacity: usize,
    borrow: PhantomData<&'a mut [u8]>,
    device: PhantomData<fn(D)>,
}

impl<D: Device> Arena<D> {
    /// An arena as large as what `carve` takes, zeroed; `purpose` is named if there is no room.
    pub fn planned(device: &D, purpose: &str, carve: impl FnOnce(&mut Cursor<'_, D>)) -> Result<Self> {
        Self::sized(device, purpose, Self::bytes(carve))
    }

    /// An arena of `bytes`, zeroed.
    pub fn sized(device: &D, purpose: &str, bytes: usize) -> Result<Self> {
        Ok(Self { buffer: device.allocate(bytes, purpose)? })
    }

    /// Bytes that `carve` takes.
    pub fn bytes(carve: impl FnOnce(&mut Cursor<'_, D>)) -> usize {
        let mut cursor =
            Cursor { base: None, used: 0, capacity: usize::MAX, borrow: PhantomData, device: PhantomData };
        carve(&mut cursor);
        cursor.used
    }

    /// Bytes that the arena holds.
    pub fn capacity(&self) -> usize {
        D::buffer_bytes(&self.buffer)
    }

    /// Starts carving from the front. Tensors keep what was last written to their place.
    pub fn cursor(&mut self) -> Cursor<'_, D> {
        Cursor {
            base: Some(D::buffer_address(&self.buffer)),
            used: 0,
            capacity: self.capacity(),
            borrow: PhantomData,
            device: PhantomData,
        }
    }

    /// The arena's first tensor, of shape `rows` by `cols`.
    ///
    /// # Panics
    /// Panics if the arena is not as large.
    pub fn first<E: Element>(&self, rows: usize, cols: usize) -> View<'_, D, E> {
        let shape = Shape::new(rows, cols);
        let bytes = shape.len().checked_mul(size_of::<E>());
        assert!(
            bytes.is_some_and(|bytes| bytes <= self.capacity()),
            "{shape:?} in {} bytes",
            self.capacity()
        );
        // SAFETY: within the buffer, which the arena's shared borrow keeps from being carved anew.
        unsafe { View::new(self.address(0).cast(), shape, cols) }
    }

    /// Address of the byte at `offset`, for views that share the arena.
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        assert!(offset <= self.capacity());
        // SAFETY: within the buffer, as asserted.
        unsafe { D::buffer_address(&self.buffer).add(offset) }
    }
}

impl<'a, D> Cursor<'a, D> {
    /// Bytes taken so far.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Bytes that can be taken in all.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// The next tensor, of shape `rows` by `cols`, stored row after row.
    pub fn take<E: Element>(&mut self, rows: usize, cols: usize) -> ViewMut<'a, D, E> {
        self.take_pitched(Shape::new(rows, cols), cols)
    }

    /// The next tensor, stored row after row, `pitch` elements from one to the next. A cursor that counts gives
    /// tensors without rows.
    ///
    /// # Panics
    /// Panics if rows would overlap, if there is no room, or if the bytes cannot be counted.
    pub fn take_pitched<E: Element>(&mut self, shape: Shape, pitch: usize) -> ViewMut<'a, D, E> {
        assert!(pitch >= shape.cols, "rows of {shape:?} overlap");
        let (pointer, shape) = self.take_bytes(shape, Packing::Rows { pitch }, size_of::<E>());
        // SAFETY: the bytes are exclusive for 'a. While counting, the view has no rows.
        unsafe { ViewMut::new(pointer.cast(), shape, pitch) }
    }

    /// The next parameter, of numbers of type `dtype`, stored as `packing` says.
    ///
    /// # Panics
    /// As [`Self::take_pitched`].
    pub fn take_weight(&mut self, shape: Shape, dtype: NumberType, packing: Packing) -> WeightMut<'a, D> {
        let overlap = matches!(packing, Packing::Rows { pitch } if pitch < shape.cols);
        assert!(!overlap, "rows of {shape:?} overlap");
        let (pointer, shape) = self.take_bytes(shape, packing, dtype.bytes());
        // SAFETY: the bytes are exclusive for 'a. While counting, the weight has no rows.
        unsafe { WeightMut::new(pointer, shape, dtype, packing) }
    }

    /// The next bytes, exclusive for 'a, as the cursor borrows the arena exclusively and hands every place out once;
    /// and the shape of what lies there, which has no rows while counting.
    fn take_bytes(&mut self, shape: Shape, packing: Packing, each: usize) -> (*mut u8, Shape) {
        let start = self.used;
        let bytes = packing.len(shape).checked_mul(each).expect("a tensor's size fits in memory");
        let end = bytes.checked_next_multiple_of(ALIGNMENT).and_then(|bytes| start.checked_add(bytes));
        self.used = end.expect("an arena's size fits in memory");
        assert!(self.used <= self.capacity, "the arena was planned for fewer tensors");
        match self.base {
            // SAFETY: `start..used` lies within the arena.
            Some(base) => (unsafe { base.add(start) }, shape),
            // Aligned for every number.
            None => (std::ptr::without_provenance_mut(ALIGNMENT), Shape::new(0, shape.cols)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Cpu;

    /// [2^62, 4] floats: in 64 bits, their number and their bytes come to 0.
    const HUGE: (usize, usize) = (1 << 62, 4);

    #[test]
    #[should_panic(expected = "more elements than can be counted")]
    fn a_tensor_too_large_to_count_is_not_found_in_an_arena() {
        Arena::sized(&Cpu::<f32>::new(), "a test", 64).unwrap().first::<f32>(HUGE.0, HUGE.1);
    }

    #[test]
    #[should_panic(expected = "in 64 bytes")]
    fn a_tensor_of_too_many_bytes_is_not_found_in_an_arena() {
        Arena::sized(&Cpu::<f32>::new(), "a test", 64).unwrap().first::<f32>(HUGE.0, 1);
    }

    #[test]
    #[should_panic(expected = "more elements than can be counted")]
    fn a_tensor_too_large_to_count_is_not_carved() {
        let mut arena = Arena::sized(&Cpu::<f32>::new(), "a test", 64).unwrap();
        arena.cursor().take::<f32>(HUGE.0, HUGE.1);
    }
}
