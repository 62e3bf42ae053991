//! Parameters as a device stores them: what their numbers are, and how they lie, is known at run time.

use super::{Exclusive, Number, NumberType, Shape, Shared, View, ViewMut, counted};
use std::marker::PhantomData;
use std::ops::Range;

/// How the numbers of a weight [out, in] lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packing {
    /// Row after row, `pitch` numbers from one to the next.
    Rows {
        /// Numbers between the starts of two rows.
        pitch: usize,
    },
    /// Panels of [`PANEL`] output channels, each stored input channel by input channel, so that a product streams
    /// them without packing them anew.
    Panels,
    /// Where the processor has matrix tiles: panels of [`SPLIT_PANEL`] output channels by 32 input channels, of
    /// numbers split in two bf16. The inputs are filled up with zeros, and the outputs with anything.
    SplitPanels,
}

/// Output channels in a panel of [`Packing::Panels`]: one or two vector registers of `f32`.
pub const PANEL: usize = 16;

/// Output channels in a panel of [`Packing::SplitPanels`]: two tiles of columns.
pub const SPLIT_PANEL: usize = 32;

impl Packing {
    /// Numbers that a matrix of this shape takes.
    ///
    /// # Panics
    /// Panics if they cannot be counted.
    pub const fn len(self, shape: Shape) -> usize {
        let Shape { rows, cols } = shape;
        match self {
            Packing::Rows { pitch } => super::len_by_rows(shape, pitch),
            Packing::Panels => counted(counted(rows.checked_next_multiple_of(PANEL)).checked_mul(cols)),
            Packing::SplitPanels => {
                let rows = counted(rows.checked_next_multiple_of(SPLIT_PANEL));
                counted(rows.checked_mul(counted(cols.checked_next_multiple_of(32))))
            }
        }
    }

    /// Output channels of a panel; none where the numbers lie by rows.
    const fn panel(self) -> Option<usize> {
        match self {
            Packing::Rows { .. } => None,
            Packing::Panels => Some(PANEL),
            Packing::SplitPanels => Some(SPLIT_PANEL),
        }
    }
}

/// A parameter on device `D`, read by products as it is stored, and by all else through [`Weight::matrix`].
pub struct Weight<'a, D> {
    pointer: *const u8,
    shape: Shape,
    dtype: NumberType,
    packing: Packing,
    borrow: Shared<'a, D, u8>,
}

/// The same, to be written.
pub struct WeightMut<'a, D> {
    pointer: *mut u8,
    shape: Shape,
    dtype: NumberType,
    packing: Packing,
    borrow: Exclusive<'a, D, u8>,
}

impl<D> Clone for Weight<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D> Copy for Weight<'_, D> {}

// SAFETY: a borrow of numbers, which are reached through the device's own methods.
unsafe impl<D> Send for Weight<'_, D> {}
// SAFETY: as above; it allows reading only.
unsafe impl<D> Sync for Weight<'_, D> {}

impl<'a, D, E: Number> From<View<'a, D, E>> for Weight<'a, D> {
    fn from(view: View<'a, D, E>) -> Self {
        let packing = Packing::Rows { pitch: view.pitch() };
        let (pointer, shape) = (view.pointer().cast(), view.shape());
        Self { pointer, shape, dtype: E::TYPE, packing, borrow: PhantomData }
    }
}

impl<'a, D> Weight<'a, D> {
    /// # Safety
    /// `packing.len(shape)` numbers of type `dtype` from `pointer` must be readable memory of device `D` for `'a`,
    /// and not be written in that time.
    pub(crate) unsafe fn new(pointer: *const u8, shape: Shape, dtype: NumberType, packing: Packing) -> Self {
        Self { pointer, shape, dtype, packing, borrow: PhantomData }
    }

    /// Output by input channels.
    pub fn shape(self) -> Shape {
        self.shape
    }

    /// Output channels.
    pub fn rows(self) -> usize {
        self.shape.rows
    }

    /// Input channels.
    pub fn cols(self) -> usize {
        self.shape.cols
    }

    /// What its numbers are.
    pub fn dtype(self) -> NumberType {
        self.dtype
    }

    /// How its numbers lie.
    pub fn packing(self) -> Packing {
        self.packing
    }

    pub(crate) fn pointer(self) -> *const u8 {
        self.pointer
    }

    /// The matrix, whose numbers are `E` by rows.
    ///
    /// # Panics
    /// Panics if they are of another type or in panels.
    pub fn matrix<E: Number>(self) -> View<'a, D, E> {
        let Packing::Rows { pitch } = self.packing else {
            panic!("a parameter of {:?} is in panels, which only products read", self.shape);
        };
        assert_eq!(self.dtype, E::TYPE, "a parameter is read as another type");
        // SAFETY: borrowed for 'a, by rows, and of this type.
        unsafe { View::new(self.pointer.cast(), self.shape, pitch) }
    }

    /// Input channels `range`, of numbers that lie by rows.
    ///
    /// # Panics
    /// Panics if they are in panels.
    pub(crate) fn columns(self, range: Range<usize>) -> Self {
        let Packing::Rows { .. } = self.packing else { panic!("panels have all input channels") };
        assert!(
            range.start <= range.end && range.end <= self.cols(),
            "columns {range:?} of {:?}",
            self.shape
        );
        self.part(range.start, Shape::new(self.rows(), range.len()))
    }

    /// Output channels `range`.
    pub fn row_range(self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.rows(), "rows {range:?} of {:?}", self.shape);
        let offset = match (self.packing, self.packing.panel()) {
            (Packing::Rows { pitch }, _) => range.start * pitch,
            (_, panel) => {
                assert!(panel.is_some_and(|p| range.start.is_multiple_of(p)), "{range:?} starts in a panel");
                self.packing.len(Shape::new(range.start, self.cols()))
            }
        };
        self.part(offset, Shape::new(range.len(), self.cols()))
    }

    /// The part of this shape that begins so many numbers after the first one, within this weight.
    fn part(self, offset: usize, shape: Shape) -> Self {
        // An empty part may sit at the very end; it must not point past it.
        let offset = if shape.is_empty() { 0 } else { offset * self.dtype.bytes() };
        // SAFETY: the part lies within this weight.
        Self { pointer: unsafe { self.pointer.add(offset) }, shape, ..self }
    }
}

impl<'a, D> WeightMut<'a, D> {
    /// # Safety
    /// As [`Weight::new`], and nothing else may read or write the numbers for `'a`.
    pub(crate) unsafe fn new(pointer: *mut u8, shape: Shape, dtype: NumberType, packing: Packing) -> Self {
        Self { pointer, shape, dtype, packing, borrow: PhantomData }
    }

    /// Output by input channels.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// What its numbers are.
    pub fn dtype(&self) -> NumberType {
        self.dtype
    }

    /// How its numbers lie.
    pub fn packing(&self) -> Packing {
        self.packing
    }

    pub(crate) fn pointer(&mut self) -> *mut u8 {
        self.pointer
    }

    /// The same, for a shorter time.
    pub fn reborrow(&mut self) -> WeightMut<'_, D> {
        WeightMut { borrow: PhantomData, ..*self }
    }

    /// The same, for reading as long as it was borrowed for.
    pub fn into_view(self) -> Weight<'a, D> {
        let Self { pointer, shape, dtype, packing, .. } = self;
        Weight { pointer, shape, dtype, packing, borrow: PhantomData }
    }

    /// The matrix, whose numbers are `E` by rows.
    ///
    /// # Panics
    /// As [`Weight::matrix`].
    pub fn into_matrix<E: Number>(self) -> ViewMut<'a, D, E> {
        let (pointer, shape) = (self.pointer.cast(), self.shape);
        let pitch = self.into_view().matrix::<E>().pitch();
        // SAFETY: borrowed exclusively for 'a; by rows, and of this type, as just asserted.
        unsafe { ViewMut::new(pointer, shape, pitch) }
    }
}
