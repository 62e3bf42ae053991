//! The devices that operations are tested on, and tensors on them.

use crate::common::{Matrix, assert_close, distance, largest_error};
use crate::cuda::cuda;
use half::bf16;
use qformer::device::{Cpu, Cuda, Device, Real};
use qformer::memory::Arena;
use qformer::tensor::{Element, Number, NumberType, Packing, Shape, View, ViewMut, Weight};
use std::marker::PhantomData;

/// A device under test. One body tests an operation on all of them.
pub(crate) trait TestDevice: Device + 'static {
    /// Columns on either side of a pitched tensor that are not part of it.
    const MARGIN: usize;
    /// The device.
    fn get() -> &'static Self;
    /// The nearest number that the device's tensors hold.
    fn round(x: f64) -> f64;
    /// The ways in which a weight can be stored for it.
    fn weight_stores() -> Vec<fn(&Matrix) -> Tensor<Self>>;
    /// Writes row by row, as precisely as `E` is.
    fn put<E: Number>(values: &[f64], to: ViewMut<'_, Self, E>);
    /// Reads row by row, as precisely as `E` is.
    fn take<E: Number>(from: View<'_, Self, E>) -> Vec<f64>;
    /// Asserts that `got` is as close to `want` as the device ought to be, where `reference` is what a
    /// plain implementation in the device's numbers gives, one that rounds whatever it stores.
    fn assert_near(what: &str, got: &Matrix, want: &Matrix, reference: &Matrix);
}

/// The nearest numbers that `D` holds: what is given to an operation and to its plain twin.
pub(crate) fn rounded<D: TestDevice>(matrix: &Matrix) -> Matrix {
    Matrix::from_fn(matrix.rows, matrix.cols, |r, c| D::round(matrix.at(r, c)))
}

/// The nearest numbers of type `N`.
pub(crate) fn rounded_to<N: Number>(matrix: &Matrix) -> Matrix {
    Matrix::from_fn(matrix.rows, matrix.cols, |r, c| N::of_f32(matrix.at(r, c) as f32).to_f32().into())
}

/// Asserts that `got` is `want` but for the rounding of the result.
pub(crate) fn assert_rounded<D: TestDevice>(what: &str, got: &Matrix, want: &Matrix) {
    D::assert_near(what, got, want, &rounded::<D>(want));
}

/// Largest relative distance to a plain computation in double precision. What is summed here has
/// at most 1408 terms, whose roundings add up like a random walk: √1408 units of 2⁻⁵³ or 2⁻²⁴ are
/// 4e-15 and 2e-6, and a few such sums follow one another. `f64` is allowed 200 times that, because
/// nothing that is wrong is as little wrong as 1e-12; `f32` five times.
pub(crate) fn tolerance<E: Real>() -> f64 {
    if size_of::<E>() == size_of::<f64>() { 1e-12 } else { 1e-5 }
}

macro_rules! cpu {
    ($real:ty) => {
        impl TestDevice for Cpu<$real> {
            const MARGIN: usize = 3;
            fn get() -> &'static Self {
                static CPU: std::sync::OnceLock<Cpu<$real>> = std::sync::OnceLock::new();
                CPU.get_or_init(Cpu::new)
            }
            fn round(x: f64) -> f64 {
                f64::from(x as $real)
            }
            fn weight_stores() -> Vec<fn(&Matrix) -> Tensor<Self>> {
                vec![Tensor::rows, Tensor::pitched, Tensor::panels]
            }
            fn put<E: Number>(values: &[f64], mut to: ViewMut<'_, Self, E>) {
                if matches!(E::TYPE, NumberType::F16 | NumberType::Bf16) {
                    let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
                    return Self::get().write(&values, 0, to).unwrap();
                }
                let cols = to.cols();
                for (r, values) in values.chunks(cols.max(1)).enumerate() {
                    let row: &mut [$real] = bytemuck::cast_slice_mut(to.row_mut(r));
                    row.iter_mut().zip(values).for_each(|(to, &x)| *to = x as $real);
                }
            }
            fn take<E: Number>(from: View<'_, Self, E>) -> Vec<f64> {
                let row = |r| bytemuck::cast_slice::<E, $real>(from.row(r)).iter().map(|&x| f64::from(x));
                (0..from.rows()).flat_map(row).collect()
            }
            fn assert_near(what: &str, got: &Matrix, want: &Matrix, _: &Matrix) {
                assert_close(what, got, want, tolerance::<$real>());
            }
        }
    };
}
cpu!(f32);
cpu!(f64);

impl TestDevice for Cuda {
    /// A vector: tensors whose width is a multiple of it start at multiples of 16 bytes, others do not.
    const MARGIN: usize = 8;
    fn get() -> &'static Self {
        cuda()
    }
    fn round(x: f64) -> f64 {
        // Not from `f64` at once, of which `half` drops the low bits instead of rounding.
        bf16::from_f32(x as f32).to_f64()
    }
    fn weight_stores() -> Vec<fn(&Matrix) -> Tensor<Self>> {
        vec![Tensor::rows, Tensor::pitched]
    }
    fn put<E: Number>(values: &[f64], to: ViewMut<'_, Self, E>) {
        let values: Vec<f32> = values.iter().map(|&x| x as f32).collect();
        Self::get().write(&values, 0, to).unwrap();
    }
    fn take<E: Number>(from: View<'_, Self, E>) -> Vec<f64> {
        Self::get().read(from).unwrap().into_iter().map(f64::from).collect()
    }
    /// At most twice as far off as the plain implementation, on the whole and at the worst element: the
    /// rule by which FlashAttention is tested. What is not rounded at all, such as sums of whole numbers,
    /// has to be exact.
    fn assert_near(what: &str, got: &Matrix, want: &Matrix, reference: &Matrix) {
        let (off, allowed) = (distance(got, want), 2.0 * distance(reference, want));
        assert!(off <= allowed, "{what}: relative distance {off:e}, not below {allowed:e}");
        let (off, allowed) = (largest_error(got, want), 2.0 * largest_error(reference, want));
        assert!(off <= allowed, "{what}: largest error {off:e}, not below {allowed:e}");
    }
}

/// A tensor of `E` on `D` with an arena of its own.
pub(crate) struct Tensor<D: TestDevice, E: Element = <D as Device>::Elem> {
    arena: Arena<D>,
    shape: Shape,
    /// By rows where it is absent.
    panels: Option<Packing>,
    margin: usize,
    element: PhantomData<E>,
}

impl<D: TestDevice, E: Element> Tensor<D, E> {
    fn zeros(rows: usize, cols: usize, margin: usize) -> Self {
        let shape = Shape::new(rows, cols);
        let arena = Arena::planned(D::get(), "a test", |cursor| {
            cursor.take::<E>(rows, cols + 2 * margin);
        });
        Self { arena: arena.unwrap(), shape, panels: None, margin, element: PhantomData }
    }

    /// The tensor with its margins.
    fn whole(&mut self) -> ViewMut<'_, D, E> {
        assert_eq!(self.panels, None, "a weight in panels has no rows");
        self.arena.cursor().take(self.shape.rows, self.shape.cols + 2 * self.margin)
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut<'_, D, E> {
        let (margin, cols) = (self.margin, self.shape.cols);
        if margin == 0 {
            return self.whole();
        }
        let (_, right) = self.whole().split_columns(margin);
        right.split_columns(cols).0
    }

    pub(crate) fn view(&mut self) -> View<'_, D, E> {
        self.view_mut().into_view()
    }
}

impl<D: TestDevice> Tensor<D> {
    /// As products read it.
    pub(crate) fn weight(&mut self) -> Weight<'_, D> {
        match self.panels {
            None => self.view().into(),
            // Only read from here on.
            Some(panels) => {
                let weight = self.arena.cursor().take_weight(self.shape, D::Elem::TYPE, panels);
                weight.into_view()
            }
        }
    }
}

impl<D: TestDevice, E: Number> Tensor<D, E> {
    /// Row after row without gaps.
    pub(crate) fn rows(matrix: &Matrix) -> Self {
        Self::stored(matrix, 0)
    }

    /// Columns of a wider buffer that is NaN elsewhere: who reads beyond the tensor shows it.
    pub(crate) fn pitched(matrix: &Matrix) -> Self {
        Self::stored(matrix, D::MARGIN)
    }

    fn stored(matrix: &Matrix, margin: usize) -> Self {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let width = cols + 2 * margin;
        let mut tensor = Self::zeros(rows, cols, margin);
        let whole = Matrix::from_fn(rows, width, |r, c| match c.checked_sub(margin) {
            Some(c) if c < cols => matrix.at(r, c),
            _ => f64::NAN,
        });
        D::put(&whole.values, tensor.whole());
        tensor
    }

    /// A pitched tensor of NaN, for an operation to write: who reads it shows it.
    pub(crate) fn output(rows: usize, cols: usize) -> Self {
        Self::pitched(&Matrix::filled(rows, cols, f64::NAN))
    }

    /// The elements; asserts that the margins were left alone.
    pub(crate) fn read(&mut self) -> Matrix {
        let (margin, Shape { rows, cols }) = (self.margin, self.shape);
        let width = cols + 2 * margin;
        let whole = Matrix { rows, cols: width, values: D::take(self.whole().into_view()) };
        for r in 0..rows {
            let (left, right) = (&whole.row(r)[..margin], &whole.row(r)[margin + cols..]);
            let alone = left.iter().chain(right).all(|x| x.is_nan());
            assert!(alone, "row {r} was written outside of its columns");
        }
        Matrix::from_fn(rows, cols, |r, c| whole.at(r, margin + c))
    }
}

impl<C: Real> Tensor<Cpu<C>>
where
    Cpu<C>: TestDevice<Elem = C>,
{
    /// In panels, as a frozen weight; written in two parts that meet within a row.
    pub(crate) fn panels(matrix: &Matrix) -> Self {
        Self::frozen(matrix, Packing::Panels, matrix.values.len().div_ceil(2))
    }

    /// In split panels, as a frozen weight; written in two parts that meet within a row.
    pub(crate) fn split_panels(matrix: &Matrix) -> Self {
        Self::frozen(matrix, Packing::SplitPanels, matrix.values.len().div_ceil(2))
    }

    /// In a layout of frozen weights, written in parts of `part` values, the last one first.
    pub(crate) fn frozen(matrix: &Matrix, panels: Packing, part: usize) -> Self {
        let shape = Shape::new(matrix.rows, matrix.cols);
        let arena = Arena::planned(Cpu::<C>::get(), "a test", |cursor| {
            cursor.take_weight(shape, C::TYPE, panels);
        });
        let (arena, packing) = (arena.unwrap(), Some(panels));
        let mut tensor = Self { arena, shape, panels: packing, margin: 0, element: PhantomData };
        let values: Vec<f32> = matrix.values.iter().map(|&x| x as f32).collect();
        for (i, values) in values.chunks(part).enumerate().rev() {
            let to = tensor.arena.cursor().take_weight(shape, C::TYPE, panels);
            Cpu::<C>::get().write_weight(values, i * part, to).unwrap();
        }
        tensor
    }
}

impl<D: TestDevice> Tensor<D, u32> {
    pub(crate) fn indices(rows: usize, cols: usize, values: &[u32]) -> Self {
        let mut tensor = Self::zeros(rows, cols, 0);
        D::get().write_indices(values, tensor.view_mut()).unwrap();
        tensor
    }

    pub(crate) fn read_indices(&mut self) -> Vec<u32> {
        D::get().read_indices(self.view()).unwrap()
    }
}

impl<D: TestDevice> Tensor<D, u8> {
    /// A pitched tensor of 255s, for an operation to write.
    pub(crate) fn bytes(rows: usize, cols: usize) -> Self {
        let mut tensor = Self::zeros(rows, cols, D::MARGIN);
        let words = tensor.words();
        D::get().write_indices(&vec![u32::MAX; words.cols()], words).unwrap();
        tensor
    }

    /// All of the arena.
    fn words(&mut self) -> ViewMut<'_, D, u32> {
        let words = self.arena.capacity() / size_of::<u32>();
        self.arena.cursor().take(1, words)
    }

    /// The elements; asserts that the margins were left alone.
    pub(crate) fn read_bytes(&mut self) -> Vec<u8> {
        let words = D::get().read_indices(self.words().into_view()).unwrap();
        let (margin, Shape { rows, cols }) = (self.margin, self.shape);
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        let mut elements = Vec::new();
        for (r, row) in bytes.chunks(cols + 2 * margin).take(rows).enumerate() {
            let alone = row[..margin].iter().chain(&row[margin + cols..]).all(|&x| x == u8::MAX);
            assert!(alone, "row {r} was written outside of its columns");
            elements.extend(&row[margin..margin + cols]);
        }
        elements
    }
}
