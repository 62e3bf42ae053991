//! Where tensors live and operations run.

mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;

pub(crate) use cpu::tile::TILE;
pub(crate) use cpu::{Columns, Factor, Operand, Rows, maximum, prefetch, product, sum, vectorised};
pub use cpu::{Cpu, CpuBuffer, Lanes, Real};
#[cfg(feature = "cuda")]
pub use cuda::Cuda;

use crate::error::Result;
use crate::tensor::{Element, Number, NumberType, Packing, View, ViewMut, Weight, WeightMut};
use std::ops::Range;

/// Unsafe code relies on what a device and a CPU's number say of themselves, so both are this crate's own.
pub(crate) mod sealed {
    /// Implemented by this crate alone.
    pub trait Sealed {}
}

/// A place that holds tensors: its memory and its number types. No other crate implements it.
///
/// The graph is generic in the device and in nothing else.
pub trait Device: Sized + Send + Sync + sealed::Sealed + 'static {
    /// Weights and activations: `f32` on [`Cpu`], `f64` on `Cpu<f64>` in gradient checks, bf16 on
    /// [`Cuda`].
    type Elem: Number;
    /// What must not be narrower than `f32`: statistics that outlive a kernel, such as log-sum-exps,
    /// and gradients of parameters, which are sums of many.
    type Stat: Number;
    /// An owned piece of memory.
    type Buffer: Send + Sync;
    /// What is kept of work that is done again and again on the same memory.
    type Replay: Default + Send + 'static;

    /// Images that a pass takes at a time, enough to keep the device busy.
    const IMAGES_PER_PASS: usize;
    /// Pairs of an image and a text that a pass takes at a time.
    const PAIRS_PER_PASS: usize = 4 * Self::IMAGES_PER_PASS;

    /// Whether the device computes while the host goes on, which has to wait to know a result. Then as much as possible is
    /// decided without it.
    const ASYNCHRONOUS: bool;

    /// So many rows of text are filled up to a multiple of this, with rows that are not read, so that the numbers
    /// of rows, and with them what was recorded for [`Self::replay`], come again; 1 where nothing is recorded.
    fn row_granularity(rows: usize) -> usize;

    /// The type in which this device keeps a matrix of a frozen model that is wanted as `dtype`: that one if its
    /// products read it, else [`Self::Elem`].
    fn frozen_type(&self, dtype: NumberType) -> NumberType;

    /// How this device stores a frozen weight of [`Self::Elem`] and of so many input channels that it is to multiply by fast.
    fn frozen_packing(&self, inputs: usize) -> Packing;

    /// `bytes` of zeroed memory; an error that names `purpose` if there is no room.
    fn allocate(&self, bytes: usize, purpose: &str) -> Result<Self::Buffer>;
    /// Bytes that could still be allocated, if that can be told.
    fn free_memory(&self) -> Option<usize>;
    /// Address of a buffer's first byte, aligned to [`crate::memory::ALIGNMENT`].
    fn buffer_address(buffer: &Self::Buffer) -> *mut u8;
    /// Size of a buffer.
    fn buffer_bytes(buffer: &Self::Buffer) -> usize;

    /// The GPU's name, of a device that is one.
    fn gpu_name(&self) -> Option<&str>;

    /// Runs a whole pass, from where operations start with the least delay.
    fn enter<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R;
    /// Does work that is the same at every call with this `replay`: a device may record it and start it at once.
    /// It must neither read nor write from the host.
    ///
    /// # Safety
    /// At every call with this `replay` the work is the same operations on the same memory, all of which is there.
    unsafe fn replay(&self, replay: &mut Self::Replay, work: impl FnOnce() -> Result<()>) -> Result<()>;

    /// Writes `values` as the elements of `to` from the `first` on, counted row by row.
    fn write<E: Number>(&self, values: &[f32], first: usize, to: ViewMut<'_, Self, E>) -> Result<()>;
    /// Writes `values` as the numbers of a parameter from the `first` on, counted row by row.
    fn write_weight(&self, values: &[f32], first: usize, to: WeightMut<'_, Self>) -> Result<()>;
    /// Where the host itself may write the numbers in `range` of a parameter, counted row by row: without gaps, in the
    /// parameter's own type. None on a device that has memory of its own or another order.
    fn host_bytes<'a>(&self, range: Range<usize>, to: WeightMut<'a, Self>) -> Option<&'a mut [u8]>;
    /// Writes indices, row by row, to a matrix without gaps between its rows.
    fn write_indices(&self, values: &[u32], to: ViewMut<'_, Self, u32>) -> Result<()>;
    /// Copies a matrix to another of the same shape, both without gaps between their rows.
    fn copy<E: Element>(&self, from: View<'_, Self, E>, to: ViewMut<'_, Self, E>) -> Result<()>;
    /// Fills a matrix without gaps between its rows with zeros.
    fn clear<E: Element>(&self, to: ViewMut<'_, Self, E>) -> Result<()>;
    /// The elements of `from`, row by row.
    fn read<E: Number>(&self, from: View<'_, Self, E>) -> Result<Vec<f32>>;
    /// The indices in `from`, row by row, which has no gaps between its rows.
    fn read_indices(&self, from: View<'_, Self, u32>) -> Result<Vec<u32>>;
}

/// Whether a result replaces what stands in its place or is added to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// The result replaces what was there.
    Replace,
    /// The result is added to what was there.
    Add,
}

/// A parameter that the graph reads.
pub type W<'a, B> = Weight<'a, B>;
/// Shared view of elements.
pub type V<'a, B> = View<'a, B, <B as Device>::Elem>;
/// Exclusive view of elements.
pub type M<'a, B> = ViewMut<'a, B, <B as Device>::Elem>;
/// Shared view of statistics.
pub type S<'a, B> = View<'a, B, <B as Device>::Stat>;
/// Exclusive view of statistics.
pub type SM<'a, B> = ViewMut<'a, B, <B as Device>::Stat>;
