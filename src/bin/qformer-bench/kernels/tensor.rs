//! Operands.

use crate::work::random_values;
use qformer::Result;
use qformer::device::Device;
use qformer::memory::Arena;
use qformer::tensor::{Element, Layout, Number, Shape, View, ViewMut};
use std::marker::PhantomData;

/// Values written at a time; they repeat after so many.
const BLOCK: usize = 1 << 20;

/// A tensor with an arena of its own.
pub(super) struct Tensor<B: Device, E = <B as Device>::Elem> {
    arena: Arena<B>,
    shape: Shape,
    layout: Layout,
    element: PhantomData<E>,
}

impl<B: Device, E: Element> Tensor<B, E> {
    /// To be written.
    pub(super) fn zeros(device: &B, rows: usize, cols: usize) -> Result<Self> {
        Self::stored(device, rows, cols, Layout::Rows { pitch: cols })
    }

    fn stored(device: &B, rows: usize, cols: usize, layout: Layout) -> Result<Self> {
        let shape = Shape::new(rows, cols);
        let arena = Arena::planned(device, "an operation's operand", |cursor| {
            cursor.take_as::<E>(shape, layout);
        })?;
        Ok(Self { arena, shape, layout, element: PhantomData })
    }

    pub(super) fn view_mut(&mut self) -> ViewMut<'_, B, E> {
        self.arena.cursor().take_as(self.shape, self.layout)
    }

    pub(super) fn view(&mut self) -> View<'_, B, E> {
        self.view_mut().into_view()
    }
}

impl<B: Device, E: Number> Tensor<B, E> {
    /// Numbers of no pattern in (-1, 1), row after row.
    pub(super) fn random(device: &B, rows: usize, cols: usize) -> Result<Self> {
        Self::filled(device, rows, cols, Layout::Rows { pitch: cols }, |x| x)
    }

    /// The same, stored as a frozen weight.
    pub(super) fn weight(device: &B, out: usize, inputs: usize) -> Result<Self> {
        let layout = match device.frozen_layout() {
            Layout::Rows { .. } => Layout::Rows { pitch: inputs },
            panels => panels,
        };
        Self::filled(device, out, inputs, layout, |x| x)
    }

    /// The same by rows, through `f`.
    pub(super) fn random_with(device: &B, rows: usize, cols: usize, f: fn(f32) -> f32) -> Result<Self> {
        Self::filled(device, rows, cols, Layout::Rows { pitch: cols }, f)
    }

    fn filled(device: &B, rows: usize, cols: usize, layout: Layout, f: fn(f32) -> f32) -> Result<Self> {
        let mut tensor = Self::stored(device, rows, cols, layout)?;
        let count = tensor.shape.len();
        let mut block = random_values("operands", count.min(BLOCK));
        block.iter_mut().for_each(|x| *x = f(*x));
        for first in (0..count).step_by(BLOCK) {
            device.write(&block[..BLOCK.min(count - first)], first, tensor.view_mut())?;
        }
        Ok(tensor)
    }
}

impl<B: Device> Tensor<B, u32> {
    /// One row of indices.
    pub(super) fn indices(device: &B, indices: &[u32]) -> Result<Self> {
        let mut tensor = Self::zeros(device, 1, indices.len())?;
        device.write_indices(indices, tensor.view_mut())?;
        Ok(tensor)
    }
}
