//! Views of device memory: an address, a shape and a lifetime.
//!
//! Everything in the graph is a matrix: rows of tokens by columns of channels. A view knows which
//! device its memory belongs to (`D`), so host and device views cannot be mixed, and it borrows the
//! memory it points into (`'a`). [`View`] is shared and copies freely; [`ViewMut`] is exclusive.

mod host;

pub use host::HostTensor;

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

/// A number with a fraction: what devices compute in.
pub trait Number: Element {
    /// The nearest number to `x`.
    fn of_f32(x: f32) -> Self;
    /// The nearest `f32`.
    fn to_f32(self) -> f32;
}

impl Number for f32 {
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

/// How the elements of a matrix lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row, `pitch` elements from one to the next.
    Rows {
        /// Elements between the starts of two rows.
        pitch: usize,
    },
    /// A weight [out, in] that only `gemm` reads: panels of [`PANEL`] output channels, each stored
    /// input channel by input channel, so that a product streams it without packing it anew.
    Panels,
    /// A weight [out, in] that only `gemm` reads, where the processor has matrix tiles: panels of
    /// [`SPLIT_PANEL`] output channels by 32 input channels, of numbers split in two bf16. The
    /// inputs are filled up with zeros, and the outputs with anything.
    SplitPanels,
}

/// Output channels in a panel of [`Layout::Panels`]: one or two vector registers of `f32`.
pub const PANEL: usize = 16;

/// Output channels in a panel of [`Layout::SplitPanels`]: two tiles of columns.
pub const SPLIT_PANEL: usize = 32;

impl Layout {
    /// Elements that a matrix of this shape takes in this layout.
    ///
    /// # Panics
    /// Panics if they cannot be counted.
    pub const fn len(self, shape: Shape) -> usize {
        let Shape { rows, cols } = shape;
        match self {
            Layout::Rows { .. } if rows == 0 => 0,
            Layout::Rows { pitch } => {
                let before_the_last = counted(pitch.checked_mul(rows - 1));
                counted(before_the_last.checked_add(cols))
            }
            Layout::Panels => counted(counted(rows.checked_next_multiple_of(PANEL)).checked_mul(cols)),
            Layout::SplitPanels => {
                let rows = counted(rows.checked_next_multiple_of(SPLIT_PANEL));
                counted(rows.checked_mul(counted(cols.checked_next_multiple_of(32))))
            }
        }
    }

    /// Rows of a panel, if the matrix is stored in panels.
    const fn panel(self) -> Option<usize> {
        match self {
            Layout::Rows { .. } => None,
            Layout::Panels => Some(PANEL),
            Layout::SplitPanels => Some(SPLIT_PANEL),
        }
    }
}

/// A number of elements, whether or not the build checks sums: memory is read and written by it.
const fn counted(elements: Option<usize>) -> usize {
    elements.expect("a matrix has more elements than can be counted")
}

/// A shared borrow of elements on device `D`.
type Shared<'a, D, E> = PhantomData<(&'a [E], fn(D))>;
/// An exclusive borrow of elements on device `D`.
type Exclusive<'a, D, E> = PhantomData<(&'a mut [E], fn(D))>;

/// Shared view of a matrix on device `D`.
pub struct View<'a, D, E> {
    pointer: *const E,
    shape: Shape,
    layout: Layout,
    borrow: Shared<'a, D, E>,
}

/// Exclusive view of a matrix on device `D`.
pub struct ViewMut<'a, D, E> {
    pointer: *mut E,
    shape: Shape,
    layout: Layout,
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
    /// `layout.len(shape)` elements from `pointer` must be readable memory of device `D` for `'a`,
    /// and not be written in that time.
    pub(crate) unsafe fn new(pointer: *const E, shape: Shape, layout: Layout) -> Self {
        Self { pointer, shape, layout, borrow: PhantomData }
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

    /// How the elements lie.
    pub fn layout(self) -> Layout {
        self.layout
    }

    /// Elements from one row to the next; the matrix must be stored by rows.
    pub(crate) fn pitch(self) -> usize {
        match self.layout {
            Layout::Rows { pitch } => pitch,
            Layout::Panels | Layout::SplitPanels => panic!("only gemm reads a matrix stored in panels"),
        }
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
        let offset = match self.layout.panel() {
            Some(panel) => {
                assert!(range.start.is_multiple_of(panel), "rows {range:?} do not start at a panel");
                self.layout.len(Shape::new(range.start, self.cols()))
            }
            None => range.start * self.pitch(),
        };
        self.sub(offset, Shape::new(range.len(), self.cols()))
    }

    fn sub(self, offset: usize, shape: Shape) -> Self {
        if self.layout.panel().is_some() {
            assert_eq!(shape.cols, self.cols(), "a panel is not cut by columns");
        }
        // An empty view may sit at the very end; it must not point past it.
        let offset = if shape.is_empty() { 0 } else { offset };
        // SAFETY: the caller checked that the part lies within this view.
        Self { pointer: unsafe { self.pointer.add(offset) }, shape, ..self }
    }
}

impl<'a, D, E: Element> ViewMut<'a, D, E> {
    /// # Safety
    /// As [`View::new`], and nothing else may read or write the elements for `'a`.
    pub(crate) unsafe fn new(pointer: *mut E, shape: Shape, layout: Layout) -> Self {
        Self { pointer, shape, layout, borrow: PhantomData }
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

    /// How the elements lie.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Elements from one row to the next; the matrix must be stored by rows.
    pub(crate) fn pitch(&self) -> usize {
        self.view().pitch()
    }

    pub(crate) fn pointer(&mut self) -> *mut E {
        self.pointer
    }

    /// The same elements, for reading.
    pub fn view(&self) -> View<'_, D, E> {
        View { pointer: self.pointer, shape: self.shape, layout: self.layout, borrow: PhantomData }
    }

    /// The same elements, for reading as long as they were borrowed for.
    pub fn into_view(self) -> View<'a, D, E> {
        View { pointer: self.pointer, shape: self.shape, layout: self.layout, borrow: PhantomData }
    }

    /// The same elements, for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, D, E> {
        ViewMut { pointer: self.pointer, shape: self.shape, layout: self.layout, borrow: PhantomData }
    }

    /// Columns up to `at`, and the rest.
    pub fn split_columns(self, at: usize) -> (Self, Self) {
        let Shape { rows, cols } = self.shape;
        assert!(at <= cols, "column {at} of {:?}", self.shape);
        assert!(self.layout.panel().is_none(), "a panel is not cut by columns");
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
        let offset = if at == rows { 0 } else { at * self.pitch() };
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
    use super::{Layout, Shape};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    #[test]
    fn a_matrix_whose_elements_cannot_be_counted_has_no_length() {
        // Counted in 64 bits these would come to a few elements.
        let huge = Shape::new(1 << 62, 4);
        let is_refused = |length: &dyn Fn() -> usize| {
            let panic = catch_unwind(AssertUnwindSafe(length)).unwrap_err();
            let text = panic.downcast_ref::<&str>().copied();
            let message = text.or(panic.downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
            assert!(message.contains("more elements than can be counted"), "{message}");
        };
        is_refused(&|| huge.len());
        for layout in [Layout::Rows { pitch: 4 }, Layout::Panels, Layout::SplitPanels] {
            is_refused(&|| layout.len(huge));
        }
        assert_eq!(Layout::Rows { pitch: 8 }.len(Shape::new(3, 4)), 20);
        assert_eq!(Layout::SplitPanels.len(Shape::new(33, 33)), 64 * 64);
    }
}
