//! The CPU: all cores through rayon, matrix products through the `gemm` crate or on AMX.

pub(crate) mod amx;
mod buffer;
mod factors;
mod lanes;
mod operand;
mod packed;
mod product;
mod real;
mod rows;
mod single;
mod split;
mod stream;
pub(crate) mod tile;

pub use buffer::CpuBuffer;
pub use lanes::Lanes;
pub(crate) use operand::{Columns, Operand};
pub use real::Real;
pub(crate) use real::{maximum, sum, vectorised};
pub(crate) use rows::Rows;
pub(crate) use single::{Factor, prefetch, product};

use super::Device;
use super::sealed::Sealed;
use crate::error::Result;
use crate::tensor::{
    Element, Number, NumberType, PANEL, Packing, SPLIT_PANEL, Shape, View, ViewMut, WeightMut,
};
use amx::Amx;
use half::{bf16, f16};
use rayon::prelude::*;
use std::any::TypeId;
use std::marker::PhantomData;
use std::ops::Range;
use tile::TILE;

/// The CPU backend, computing in `E`: the default without a GPU and the specification with one.
#[derive(Clone, Copy, Debug)]
pub struct Cpu<E = f32> {
    amx: Option<Amx>,
    element: PhantomData<E>,
}

impl<E: 'static> Default for Cpu<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: 'static> Cpu<E> {
    /// The machine's processors, in `f32` with AMX if they have it. Work runs in rayon's current
    /// thread pool.
    pub fn new() -> Self {
        let amx = if TypeId::of::<E>() == TypeId::of::<f32>() { Amx::detect() } else { None };
        Self { amx, element: PhantomData }
    }

    /// The same without AMX, on which a product of random numbers is off by 4e-6 instead of 2e-7.
    pub fn without_amx() -> Self {
        Self { amx: None, element: PhantomData }
    }

    /// Whether AMX is there and used.
    pub fn has_amx(&self) -> bool {
        self.amx.is_some()
    }

    pub(crate) fn amx(&self) -> Option<Amx> {
        self.amx
    }
}

impl<E: Real> Cpu<E> {
    /// Exchanges rows and columns.
    pub(crate) fn transpose(&self, tile: &mut [[E; TILE]; TILE]) {
        match self.amx {
            Some(amx) => amx.transpose(bytemuck::cast_mut(tile)),
            None => {
                for row in 1..TILE {
                    let (above, below) = tile.split_at_mut(row);
                    for (other, x) in above.iter_mut().zip(&mut below[0]) {
                        std::mem::swap(&mut other[row], x);
                    }
                }
            }
        }
    }
}

impl<E: Real> Sealed for Cpu<E> {}

impl<E: Real> Device for Cpu<E> {
    type Elem = E;
    type Stat = E;
    type Buffer = CpuBuffer;
    type Replay = ();
    const IMAGES_PER_PASS: usize = 8;
    const ASYNCHRONOUS: bool = false;

    fn row_granularity(_: usize) -> usize {
        1
    }

    fn frozen_type(&self, dtype: NumberType) -> NumberType {
        match dtype {
            NumberType::F16 | NumberType::Bf16 => dtype,
            NumberType::F32 | NumberType::F64 => E::TYPE,
        }
    }

    fn frozen_packing(&self, _: usize) -> Packing {
        if self.has_amx() { Packing::SplitPanels } else { Packing::Panels }
    }

    fn allocate(&self, bytes: usize, purpose: &str) -> Result<CpuBuffer> {
        CpuBuffer::new(bytes, purpose)
    }

    fn free_memory(&self) -> Option<usize> {
        // The system promises more than it has.
        None
    }

    fn buffer_address(buffer: &CpuBuffer) -> *mut u8 {
        buffer.address
    }

    fn buffer_bytes(buffer: &CpuBuffer) -> usize {
        buffer.map.len()
    }

    fn gpu_name(&self) -> Option<&str> {
        None
    }

    fn enter<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        // On a thread of the pool: from outside, every operation would hand its work over and sleep.
        rayon::scope(|_| pass())
    }

    unsafe fn replay(&self, (): &mut (), work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }

    fn write<N: Number>(&self, values: &[f32], first: usize, mut to: ViewMut<'_, Self, N>) -> Result<()> {
        let (shape, pitch, base) = (to.shape(), to.pitch(), to.pointer());
        for_each_part(values, first, shape, |[row, col], part| {
            let to = base.wrapping_add(row * pitch + col);
            // SAFETY: row < rows and col + part.len() <= cols, so the part lies within the row.
            let to = unsafe { std::slice::from_raw_parts_mut(to, part.len()) };
            to.iter_mut().zip(part).for_each(|(to, &x)| *to = N::of_f32(x));
        });
        Ok(())
    }

    fn write_weight(&self, values: &[f32], first: usize, mut to: WeightMut<'_, Self>) -> Result<()> {
        let (shape, base) = (to.shape(), to.pointer());
        match to.packing() {
            Packing::Rows { .. } => {
                return match to.dtype() {
                    NumberType::F16 => self.write(values, first, to.into_matrix::<f16>()),
                    NumberType::Bf16 => self.write(values, first, to.into_matrix::<bf16>()),
                    NumberType::F32 | NumberType::F64 => self.write(values, first, to.into_matrix::<E>()),
                };
            }
            Packing::SplitPanels => {
                let steps = shape.rows.div_ceil(SPLIT_PANEL) * tile::steps(shape.cols);
                // SAFETY: the weight's numbers are its alone, and hold so many steps.
                let weight = unsafe { std::slice::from_raw_parts_mut(base.cast(), steps) };
                assert!(first + values.len() <= shape.len(), "{} values from {first}", values.len());
                split::write(values, first, shape, weight);
            }
            Packing::Panels => for_each_part(values, first, shape, |[row, col], part| {
                let offset = row / PANEL * PANEL * shape.cols + col * PANEL + row % PANEL;
                for (i, &x) in part.iter().enumerate() {
                    // SAFETY: row < rows and col + i < cols, so the number lies within the weight, which is of `E`.
                    unsafe { base.cast::<E>().add(offset + i * PANEL).write(E::of_f32(x)) }
                }
            }),
        }
        Ok(())
    }

    fn host_bytes<'a>(&self, range: Range<usize>, mut to: WeightMut<'a, Self>) -> Option<&'a mut [u8]> {
        let (shape, each) = (to.shape(), to.dtype().bytes());
        assert!(range.start <= range.end && range.end <= shape.len(), "numbers {range:?} of {shape:?}");
        // SAFETY: the numbers are among those of the parameter, which is borrowed for 'a and lies without gaps.
        (to.packing() == Packing::Rows { pitch: shape.cols }).then(|| unsafe {
            std::slice::from_raw_parts_mut(to.pointer().add(range.start * each), range.len() * each)
        })
    }

    fn write_indices(&self, values: &[u32], to: ViewMut<'_, Self, u32>) -> Result<()> {
        assert_eq!(to.shape().len(), values.len());
        let (cols, rows) = (to.cols(), to.into_rows());
        for (r, values) in values.chunks(cols.max(1)).enumerate() {
            // SAFETY: the only slice of this row.
            unsafe { rows.row(r) }.copy_from_slice(values);
        }
        Ok(())
    }

    fn copy<T: Element>(&self, from: View<'_, Self, T>, to: ViewMut<'_, Self, T>) -> Result<()> {
        assert_eq!(from.shape(), to.shape());
        let rows = to.into_rows();
        for r in 0..from.rows() {
            // SAFETY: the only slice of this row.
            unsafe { rows.row(r) }.copy_from_slice(from.row(r));
        }
        Ok(())
    }

    fn clear<T: Element>(&self, to: ViewMut<'_, Self, T>) -> Result<()> {
        let (count, rows) = (to.rows(), to.into_rows());
        (0..count).into_par_iter().for_each(|r| {
            // SAFETY: one task a row.
            let row = unsafe { rows.row(r) };
            row.par_chunks_mut(CLEARED_TOGETHER).for_each(|part| part.fill(T::default()));
        });
        Ok(())
    }

    fn read<N: Number>(&self, from: View<'_, Self, N>) -> Result<Vec<f32>> {
        let mut values = Vec::with_capacity(from.shape().len());
        for row in 0..from.rows() {
            values.extend(from.row(row).iter().map(|x| x.to_f32()));
        }
        Ok(values)
    }

    fn read_indices(&self, from: View<'_, Self, u32>) -> Result<Vec<u32>> {
        Ok((0..from.rows()).flat_map(|r| from.row(r)).copied().collect())
    }
}

/// Calls `write([row, column], values)` for each row's part of `values`, which are elements from the `first` on of
/// a matrix of this shape.
fn for_each_part(values: &[f32], first: usize, shape: Shape, mut write: impl FnMut([usize; 2], &[f32])) {
    assert!(first + values.len() <= shape.len(), "{} values from {first} of {shape:?}", values.len());
    let (mut at, mut rest) = (first, values);
    while !rest.is_empty() {
        let (row, col) = (at / shape.cols, at % shape.cols);
        let (part, after) = rest.split_at(rest.len().min(shape.cols - col));
        write([row, col], part);
        at += part.len();
        rest = after;
    }
}

/// Elements of a row that a task clears: the gradients of all parameters are one row.
const CLEARED_TOGETHER: usize = 1 << 18;
