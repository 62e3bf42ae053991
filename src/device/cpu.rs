//! The CPU: all cores through rayon, matrix products through the `gemm` crate or on AMX.

use super::amx::Amx;
use super::sealed::Sealed;
use super::split::TILE;
use super::{Device, Real, Write, split};
use crate::error::{Error, Result};
use crate::tensor::{Element, Layout, Number, PANEL, SPLIT_PANEL, View, ViewMut};
use memmap2::{MmapMut, MmapOptions};
use rayon::prelude::*;
use std::any::TypeId;
use std::marker::PhantomData;
use std::ops::Range;

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

/// Zeroed memory straight from the system, aligned to its pages.
pub struct CpuBuffer {
    address: *mut u8,
    map: MmapMut,
}

// SAFETY: the buffer owns its memory; who may touch it is decided by the views' borrows.
unsafe impl Send for CpuBuffer {}
// SAFETY: as above.
unsafe impl Sync for CpuBuffer {}

impl CpuBuffer {
    pub(super) fn new(bytes: usize, purpose: &str) -> Result<Self> {
        // An empty mapping is refused by some systems; one page is always to be had.
        let map = MmapOptions::new().len(bytes.max(1)).map_anon();
        let mut map = map.map_err(|_| Error::out_of_memory(bytes, purpose))?;
        // Weights are streamed from end to end in every pass: with large pages, address translation
        // costs nothing. Where the system has none, small ones serve as well.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { address: map.as_mut_ptr(), map })
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}

impl<E: Real> Sealed for Cpu<E> {}

impl<E: Real> Device for Cpu<E> {
    type Elem = E;
    type Stat = E;
    type Buffer = CpuBuffer;
    type Replay = ();
    const IMAGES_PER_PASS: usize = 8;
    const HOST_WAITS: bool = false;

    fn row_unit(_: usize) -> usize {
        1
    }

    fn frozen_layout(&self) -> Layout {
        if self.has_amx() { Layout::SplitPanels } else { Layout::Panels }
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

    fn enter<R: Send>(&self, pass: impl FnOnce() -> R + Send) -> R {
        // On a thread of the pool: from outside, every operation would hand its work over and sleep.
        rayon::scope(|_| pass())
    }

    unsafe fn replay(&self, (): &mut (), work: impl FnOnce() -> Result<()>) -> Result<()> {
        work()
    }

    fn write<N: Number>(&self, values: &[f32], first: usize, mut to: ViewMut<'_, Self, N>) -> Result<()> {
        let shape = to.shape();
        assert!(first + values.len() <= shape.len(), "{} values from {first} of {shape:?}", values.len());
        let layout = to.layout();
        let base = to.pointer();
        if layout == Layout::SplitPanels {
            let steps = shape.rows.div_ceil(SPLIT_PANEL) * split::steps(shape.cols);
            // SAFETY: the view's elements are its alone, and hold so many steps.
            let weight = unsafe { std::slice::from_raw_parts_mut(base.cast(), steps) };
            split::write(values, first, shape, weight);
            return Ok(());
        }
        let mut at = first;
        let mut rest = values;
        while !rest.is_empty() {
            let (row, col) = (at / shape.cols, at % shape.cols);
            let (part, after) = rest.split_at(rest.len().min(shape.cols - col));
            match layout {
                Layout::Rows { pitch } => {
                    let to = base.wrapping_add(row * pitch + col);
                    // SAFETY: row < rows and col + part.len() <= cols, so the part lies within the row.
                    let to = unsafe { std::slice::from_raw_parts_mut(to, part.len()) };
                    to.iter_mut().zip(part).for_each(|(to, &x)| *to = N::of_f32(x));
                }
                Layout::SplitPanels => unreachable!("written above"),
                Layout::Panels => {
                    let offset = row / PANEL * PANEL * shape.cols + col * PANEL + row % PANEL;
                    for (i, &x) in part.iter().enumerate() {
                        // SAFETY: row < rows and col + i < cols, so the element lies within the view.
                        unsafe { base.add(offset + i * PANEL).write(N::of_f32(x)) }
                    }
                }
            }
            at += part.len();
            rest = after;
        }
        Ok(())
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

impl<'a, C, E: Element> View<'a, Cpu<C>, E> {
    /// One row of a matrix that is stored by rows.
    #[inline(always)]
    pub fn row(self, index: usize) -> &'a [E] {
        assert!(index < self.rows());
        // SAFETY: the row lies within memory that the view borrows for 'a.
        unsafe { std::slice::from_raw_parts(self.pointer().add(index * self.pitch()), self.cols()) }
    }
}

/// The rows of an exclusive view, to be handed out to many threads.
pub(crate) struct Rows<'a, E> {
    pointer: *mut E,
    pitch: usize,
    rows: usize,
    cols: usize,
    borrow: PhantomData<&'a mut [E]>,
}

// SAFETY: a row is reached only through `row`, whose caller promises to be alone on it.
unsafe impl<E: Send> Sync for Rows<'_, E> {}

impl<'a, C, E: Element> ViewMut<'a, Cpu<C>, E> {
    /// One row of a matrix that is stored by rows.
    pub fn row_mut(&mut self, index: usize) -> &mut [E] {
        assert!(index < self.rows());
        let (offset, cols) = (index * self.pitch(), self.cols());
        // SAFETY: the row lies within memory that is this view's alone.
        unsafe { std::slice::from_raw_parts_mut(self.pointer().add(offset), cols) }
    }

    /// Hands the rows out one by one.
    pub(crate) fn into_rows(mut self) -> Rows<'a, E> {
        let (pitch, shape) = (self.pitch(), self.shape());
        Rows { pointer: self.pointer(), pitch, rows: shape.rows, cols: shape.cols, borrow: PhantomData }
    }
}

impl<E> Rows<'_, E> {
    /// # Safety
    /// No other slice of the same row may be alive.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "rows are disjoint; the caller keeps each to one task")]
    pub(crate) unsafe fn row(&self, index: usize) -> &mut [E] {
        assert!(index < self.rows);
        // SAFETY: within the view; alone on it as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.pointer.add(index * self.pitch), self.cols) }
    }

    /// Address of an element, for matrix products on a block of rows and columns.
    #[inline(always)]
    pub(crate) fn at(&self, row: usize, col: usize) -> *mut E {
        assert!(row < self.rows && col < self.cols);
        // SAFETY: within the view.
        unsafe { self.pointer.add(row * self.pitch + col) }
    }

    pub(crate) fn pitch(&self) -> usize {
        self.pitch
    }

    /// Columns `range` of every row.
    pub(crate) fn columns(&self, range: Range<usize>) -> Rows<'_, E> {
        assert!(range.start <= range.end && range.end <= self.cols);
        let pointer = self.pointer.wrapping_add(range.start);
        Rows { pointer, pitch: self.pitch, rows: self.rows, cols: range.len(), borrow: PhantomData }
    }
}

/// Elements of a row that a task clears: the gradients of all parameters are one row.
const CLEARED_TOGETHER: usize = 1 << 18;

/// A factor of [`product`]: its first element, and the steps to the next row and column.
#[derive(Clone, Copy)]
pub(crate) struct Factor<E> {
    pub pointer: *const E,
    pub row_step: usize,
    pub col_step: usize,
}

impl<E: Real> Factor<E> {
    /// The rows of `view` from `row` on and its columns from `col` on.
    pub(crate) fn of(view: View<'_, Cpu<E>, E>, row: usize, col: usize) -> Self {
        let pitch = view.pitch();
        assert!(row <= view.rows() && col <= view.cols());
        // Wrapping: an empty part of the view may start past the last element.
        let pointer = view.pointer().wrapping_add(row * pitch + col);
        Self { pointer, row_step: pitch, col_step: 1 }
    }

    /// A matrix in a slice, row after row.
    pub(crate) fn rows(values: &[E], cols: usize) -> Self {
        Self { pointer: values.as_ptr(), row_step: cols, col_step: 1 }
    }

    /// The transposed matrix.
    pub(crate) fn transposed(self) -> Self {
        Self { row_step: self.col_step, col_step: self.row_step, ..self }
    }
}

/// Asks for memory that is about to be read from end to end. The product's own loop, with its few
/// loads in flight, would draw it in at two thirds of the speed.
pub(crate) fn prefetch<E>(memory: &[E]) {
    #[cfg(target_arch = "x86_64")]
    for line in memory.chunks(64 / size_of::<E>()) {
        // SAFETY: a prefetch reads nothing and is allowed on any address.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}

/// c (m×n) = a (m×k) · b (k×n), or c += a · b, on the calling thread alone.
///
/// # Safety
/// The three matrices must lie in memory that may be read (a, b) and written (c) meanwhile.
pub(crate) unsafe fn product<E: Real>(
    [m, n, k]: [usize; 3],
    a: Factor<E>,
    b: Factor<E>,
    write: Write,
    (c, c_row_step, c_col_step): (*mut E, usize, usize),
) {
    let step = |s: usize| isize::try_from(s).expect("a matrix is smaller than the address space");
    // SAFETY: as this function's caller promises.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            step(c_col_step),
            step(c_row_step),
            write == Write::Add,
            a.pointer,
            step(a.col_step),
            step(a.row_step),
            b.pointer,
            step(b.col_step),
            step(b.row_step),
            E::ONE,
            E::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
