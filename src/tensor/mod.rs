//! Views of device memory: an address, a shape and a lifetime.
//!
//! Everything in the graph is a matrix: rows of tokens by columns of channels. A view knows which
//! device its memory belongs to (`D`), so host and device views cannot be mixed, and it borrows the
//! memory it points into (`'a`). [`View`] is shared and copies freely; [`ViewMut`] is exclusive.

mod host;
mod weight;

pub use host::HostTensor;
pub use weight::{PANEL, Packing, SPLIT_PANEL, Weight, WeightMut};

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;

/// A number that tensors hold.
pub trait Element: bytemuck::Pod + Default + Send + Sync + fmt::Debug {}
impl Element for f32 {}
impl Element for f64 {}
impl Element for u8 {}
impl Element for u32 {}
impl Element for half::bf16 {}
impl Element for half::f16 {}

/// A type of numbers, where it is known at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumberType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of a [`NumberType::F32`].
    Bf16,
}

impl NumberType {
    /// Bytes of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A number with a fraction: what devices compute in.
pub trait Number: Element {
    /// Its type.
    const TYPE: NumberType;
    /// The nearest number to `x`.
    fn of_f32(x: f32) -> Self;
    /// The nearest `f32`.
    fn to_f32(self) -> f32;
}

impl Number for f32 {
    const TYPE: NumberType = NumberType::F32;

    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}

impl Number for f64 {
    const TYPE: NumberType = NumberType::F64;

    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        x.into()
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self as f32
    }
}

impl Number for half::bf16 {
    const TYPE: NumberType = NumberType::Bf16;

    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

impl Number for half::f16 {
    const TYPE: NumberType = NumberType::F16;

    #[inline(always)]
    fn of_f32(x: f32) -> Self {
        Self::from_f32(x)
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self.to_f32()
    }
}

/// Rows by columns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
}

impl Shape {
    /// `rows` by `cols`.
    pub const fn new(rows: usize, cols: usize) -> Self {
        Self { rows, cols }
    }

    /// Number of elements.
    ///
    /// # Panics
    /// Panics if they cannot be counted.
    pub const fn len(self) -> usize {
        counted(self.rows.checked_mul(self.cols))
    }

    /// Whether there is no element.
    pub const fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}]", self.rows, self.cols)
    }
}

/// Elements of a matrix of this shape, `pitch` of them from the start of one row to the next.
const fn len_by_rows(Shape { rows, cols }: Shape, pitch: usize) -> usize {
    if rows == 0 {
        return 0;
    }
    counted(counted(pitch.checked_mul(rows - 1)).checked_add(cols))
}

/// A number of elements, whether or not the build checks sums: memory is read and written by it.
const fn counted(elements: Option<usize>) -> usize {
    elements.expect("a matrix has more elements than can be counted")
}

/// A shared borrow of elements on device `D`.
type Shared<'a, D, E> = PhantomData<(&'a [E], fn(D))>;
/// An exclusive borrow of elements on device `D`.
type Exclusive<'a, D, E> = PhantomData<(&'a mut [E], fn(D))>;

/// Shared view of a matrix on device `D`: row after row, `pitch` elements from the start of one to the next.
pub struct View<'a, D, E> {
    pointer: *const E,
    shape: Shape,
    pitch: usize,
    borrow: Shared<'a, D, E>,
}

/// Exclusive view of a matrix on device `D`.
pub struct ViewMut<'a, D, E> {
    pointer: *mut E,
    shape: Shape,
    pitch: usize,
    borrow: Exclusive<'a, D, E>,
}

impl<D, E> Clone for View<'_, D, E> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D, E> Copy for View<'_, D, E> {}

// SAFETY: a view is a borrow of elements that are Send and Sync; what it points to is only reached
// through the device's own methods.
unsafe impl<D, E: Element> Send for View<'_, D, E> {}
// SAFETY: as above; a shared view allows reading only.
unsafe impl<D, E: Element> Sync for View<'_, D, E> {}
// SAFETY: as above; an exclusive view is neither Clone nor Copy.
unsafe impl<D, E: Element> Send for ViewMut<'_, D, E> {}
// SAFETY: `&ViewMut` allows reading only.
unsafe impl<D, E: Element> Sync for ViewMut<'_, D, E> {}

impl<'a, D, E: Element> View<'a, D, E> {
    /// # Safety
    /// The elements from `pointer` on, as far as the last of the last row, must be readable memory of device `D`
    /// for `'a`, and not be written in that time.
    pub(crate) unsafe fn new(pointer: *const E, shape: Shape, pitch: usize) -> Self {
        Self { pointer, shape, pitch, borrow: PhantomData }
    }

    /// Rows by columns.
    pub fn shape(self) -> Shape {
        self.shape
    }

    /// Number of rows.
    pub fn rows(self) -> usize {
        self.shape.rows
    }

    /// Number of columns.
    pub fn cols(self) -> usize {
        self.shape.cols
    }

    /// Elements from the start of one row to the next.
    pub(crate) fn pitch(self) -> usize {
        self.pitch
    }

    pub(crate) fn pointer(self) -> *const E {
        self.pointer
    }

    /// Columns `range` of every row.
    pub fn columns(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.cols(),
            "columns {range:?} of {:?}",
            self.shape
        );
        self.sub(range.start, Shape::new(self.rows(), range.len()))
    }

    /// Rows `range`.
    pub fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows(), "rows {range:?} of {:?}", self.shape);
        self.sub(range.start * self.pitch, Shape::new(range.len(), self.cols()))
    }

    fn sub(self, offset: usize, shape: Shape) -> Self {
        // An empty view may sit at the very end; it must not point past it.
        let offset = if shape.is_empty() { 0 } else { offset };
        // SAFETY: the caller checked that the part lies within this view.
        Self { pointer: unsafe { self.pointer.add(offset) }, shape, ..self }
    }
}

impl<'a, D, E: Element> ViewMut<'a, D, E> {
    /// # Safety
    /// As [`View::new`], and nothing else may read or write the elements for `'a`.
    pub(crate) unsafe fn new(pointer: *mut E, shape: Shape, pitch: usize) -> Self {
        Self { pointer, shape, pitch, borrow: PhantomData }
    }

    /// Rows by columns.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.shape.cols
    }

    /// Elements from the start of one row to the next.
    pub(crate) fn pitch(&self) -> usize {
        self.pitch
    }

    pub(crate) fn pointer(&mut self) -> *mut E {
        self.pointer
    }

    /// The same elements, for reading.
    pub fn view(&self) -> View<'_, D, E> {
        View { pointer: self.pointer, shape: self.shape, pitch: self.pitch, borrow: PhantomData }
    }

    /// The same elements, for reading as long as they were borrowed for.
    pub fn into_view(self) -> View<'a, D, E> {
        View { pointer: self.pointer, shape: self.shape, pitch: self.pitch, borrow: PhantomData }
    }

    /// The same elements, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, D, E> {
        ViewMut { pointer: self.pointer, shape: self.shape, pitch: self.pitch, borrow: PhantomData }
    }

    /// Columns up to `at`, and the rest.
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        let Shape { rows, cols } = self.shape;
        assert!(at <= cols, "column {at} of {:?}", self.shape);
        let offset = if at == cols { 0 } else { at };
        // SAFETY: the two parts share no element, and the second starts within the first row.
        let right = unsafe { self.pointer.add(offset) };
        (
            Self { shape: Shape::new(rows, at), ..self },
            Self { pointer: right, shape: Shape::new(rows, cols - at), ..self },
        )
    }

    /// Rows up to `at`, and the rest.
    pub fn split_rows(self, at: usize) -> (Self, Self) {
        let Shape { rows, cols } = self.shape;
        assert!(at <= rows, "row {at} of {:?}", self.shape);
        let offset = if at == rows { 0 } else { at * self.pitch };
        // SAFETY: the two parts share no element, and the second starts at one of this view's rows.
        let below = unsafe { self.pointer.add(offset) };
        (
            Self { shape: Shape::new(at, cols), ..self },
            Self { pointer: below, shape: Shape::new(rows - at, cols), ..self },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::{Packing, Shape};
    use std::panic::catch_unwind;

    #[test]
    fn a_matrix_whose_elements_cannot_be_counted_has_no_length() {
        // Counted in 64 bits these would come to a few elements.
        let huge = Shape::new(1 << 62, 4);
        let by_rows = Packing::Rows { pitch: huge.cols };
        for packing in [None, Some(by_rows), Some(Packing::Panels), Some(Packing::SplitPanels)] {
            let length = || packing.map_or_else(|| huge.len(), |packing| packing.len(huge));
            let panic = catch_unwind(length).unwrap_err();
            let text = panic.downcast_ref::<&str>().copied();
            let message = text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
            assert!(message.contains("more elements than can be counted"), "{packing:?}: {message}");
        }
        assert_eq!(Packing::Rows { pitch: 8 }.len(Shape::new(3, 4)), 20);
        assert_eq!(Packing::SplitPanels.len(Shape::new(33, 33)), 64 * 64);
    }
}
