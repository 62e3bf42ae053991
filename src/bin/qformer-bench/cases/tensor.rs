//! Operands.

use crate::random::random_values;
use qformer::Result;
use qformer::device::Device;
use qformer::memory::Arena;
use qformer::tensor::{Element, Number, NumberType, Packing, Shape, View, ViewMut, Weight, WeightMut};
use std::marker::PhantomData;

/// Values written at a time; they repeat after so many.
const BLOCK: usize = 1 << 20;

/// A tensor with an arena of its own.
pub(super) struct Tensor<B: Device, E = <B as Device>::Elem> {
    arena: Arena<B>,
    shape: Shape,
    element: PhantomData<E>,
}

impl<B: Device, E: Element> Tensor<B, E> {
    /// To be written.
    pub(super) fn zeros(device: &B, rows: usize, cols: usize) -> Result<Self> {
        let shape = Shape::new(rows, cols);
        let arena = Arena::planned(device, "an operation's operand", |cursor| {
            cursor.take::<E>(rows, cols);
        })?;
        Ok(Self { arena, shape, element: PhantomData })
    }

    pub(super) fn view_mut(&mut self) -> ViewMut<'_, B, E> {
        self.arena.cursor().take(self.shape.rows, self.shape.cols)
    }

    pub(super) fn view(&mut self) -> View<'_, B, E> {
        self.view_mut().into_view()
    }
}

impl<B: Device, E: Number> Tensor<B, E> {
    /// Numbers of no pattern in (-1, 1), row after row.
    pub(super) fn random(device: &B, rows: usize, cols: usize) -> Result<Self> {
        Self::random_with(device, rows, cols, |x| x)
    }

    /// Not numbers: what is read of it and was not written shows itself.
    pub(super) fn unwritten(device: &B, rows: usize, cols: usize) -> Result<Self> {
        Self::random_with(device, rows, cols, |_| f32::NAN)
    }

    /// The same as `random`, through `f`.
    pub(super) fn random_with(device: &B, rows: usize, cols: usize, f: fn(f32) -> f32) -> Result<Self> {
        let mut tensor = Self::zeros(device, rows, cols)?;
        each_block(tensor.shape, f, |values, first| device.write(values, first, tensor.view_mut()))?;
        Ok(tensor)
    }
}

/// What an operation writes, to be looked at before it is measured.
pub(super) trait Answer<B: Device> {
    /// Whether it can be an answer: finite numbers, and not nothing but zeros.
    fn is_written(&mut self, device: &B) -> Result<bool>;
}

impl<B: Device, E: Number> Answer<B> for Tensor<B, E> {
    fn is_written(&mut self, device: &B) -> Result<bool> {
        let values = device.read(self.view())?;
        Ok(values.iter().all(|x| x.is_finite()) && values.iter().any(|&x| x != 0.0))
    }
}

/// An answer that may well be nothing but zeros.
pub(super) struct Finite<B: Device, E = <B as Device>::Elem>(pub(super) Tensor<B, E>);

impl<B: Device, E: Number> Answer<B> for Finite<B, E> {
    fn is_written(&mut self, device: &B) -> Result<bool> {
        Ok(device.read(self.0.view())?.iter().all(|x| x.is_finite()))
    }
}

impl<B: Device> Answer<B> for [Tensor<B, u32>] {
    fn is_written(&mut self, device: &B) -> Result<bool> {
        for indices in self {
            if device.read_indices(indices.view())?.iter().any(|&index| index != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Calls `write` with numbers of no pattern, through `f`, and where they begin, until a matrix is full.
fn each_block(
    shape: Shape,
    f: fn(f32) -> f32,
    mut write: impl FnMut(&[f32], usize) -> Result<()>,
) -> Result<()> {
    let count = shape.len();
    let mut block = random_values("operands", count.min(BLOCK));
    block.iter_mut().for_each(|x| *x = f(*x));
    (0..count).step_by(BLOCK).try_for_each(|first| write(&block[..BLOCK.min(count - first)], first))
}

/// A frozen weight of numbers of no pattern, as the device likes to store it.
pub(super) struct FrozenWeight<B: Device> {
    arena: Arena<B>,
    shape: Shape,
    dtype: NumberType,
    packing: Packing,
}

impl<B: Device> FrozenWeight<B> {
    pub(super) fn random(device: &B, out: usize, inputs: usize) -> Result<Self> {
        Self::stored(device, Shape::new(out, inputs), B::Elem::TYPE, device.frozen_packing(inputs))
    }

    /// By rows, as numbers of type `dtype`.
    pub(super) fn random_as(device: &B, dtype: NumberType, out: usize, inputs: usize) -> Result<Self> {
        Self::stored(device, Shape::new(out, inputs), dtype, Packing::Rows { pitch: inputs })
    }

    fn stored(device: &B, shape: Shape, dtype: NumberType, packing: Packing) -> Result<Self> {
        let arena = Arena::planned(device, "an operation's weight", |cursor| {
            cursor.take_weight(shape, dtype, packing);
        })?;
        let mut weight = Self { arena, shape, dtype, packing };
        each_block(shape, |x| x, |values, first| device.write_weight(values, first, weight.weight_mut()))?;
        Ok(weight)
    }

    fn weight_mut(&mut self) -> WeightMut<'_, B> {
        self.arena.cursor().take_weight(self.shape, self.dtype, self.packing)
    }

    pub(super) fn weight(&mut self) -> Weight<'_, B> {
        self.weight_mut().into_view()
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
