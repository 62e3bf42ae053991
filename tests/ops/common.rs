//! What the tests of all operations share: matrices of exact random numbers, tensors made from
//! them, comparison, finite differences, and thread pools.

use qformer::arena::Arena;
use qformer::device::{Cpu, Device, Real};
use qformer::tensor::{Element, Layout, Shape, View, ViewMut};
use std::marker::PhantomData;

/// A matrix on the host, in double precision whatever the device computes in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) values: Vec<f64>,
}

impl Matrix {
    pub(crate) fn filled(rows: usize, cols: usize, value: f64) -> Self {
        Self { rows, cols, values: vec![value; rows * cols] }
    }

    /// Calls `value(row, col)` for every element, row by row.
    pub(crate) fn from_fn(rows: usize, cols: usize, mut value: impl FnMut(usize, usize) -> f64) -> Self {
        let values = (0..rows * cols).map(|i| value(i / cols, i % cols)).collect();
        Self { rows, cols, values }
    }

    pub(crate) fn at(&self, row: usize, col: usize) -> f64 {
        assert!(row < self.rows && col < self.cols);
        self.values[row * self.cols + col]
    }

    pub(crate) fn set(&mut self, row: usize, col: usize, value: f64) {
        assert!(row < self.rows && col < self.cols);
        self.values[row * self.cols + col] = value;
    }

    pub(crate) fn row(&self, row: usize) -> &[f64] {
        &self.values[row * self.cols..(row + 1) * self.cols]
    }

    /// The sum of products of corresponding elements: a loss whose gradient is `other`.
    pub(crate) fn dot(&self, other: &Self) -> f64 {
        assert_eq!((self.rows, self.cols), (other.rows, other.cols));
        self.values.iter().zip(&other.values).map(|(a, b)| a * b).sum()
    }

    pub(crate) fn minus(&self, other: &Self) -> Self {
        Self::from_fn(self.rows, self.cols, |i, j| self.at(i, j) - other.at(i, j))
    }

    pub(crate) fn bits(&self) -> Vec<u64> {
        self.values.iter().map(|x| x.to_bits()).collect()
    }
}

/// A generator (SplitMix64) of the same numbers in every run.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A whole number below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Multiples of 2⁻²⁰ in [-1, 1): exact in `f32`, so that all precisions see the same numbers.
    pub(crate) fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        let unit = f64::from(1 << 20);
        Matrix::from_fn(rows, cols, |_, _| (self.next() >> 43) as f64 / unit - 1.0)
    }
}

/// Columns on either side of a pitched tensor that are not part of it.
const MARGIN: usize = 3;

/// A tensor of `E` on `Cpu<C>` with an arena of its own.
pub(crate) struct Tensor<C: Real, E: Element = C> {
    arena: Arena<Cpu<C>>,
    shape: Shape,
    layout: Layout,
    margin: usize,
    element: PhantomData<E>,
}

impl<C: Real, E: Element> Tensor<C, E> {
    fn zeros(rows: usize, cols: usize, layout: Layout, margin: usize) -> Self {
        let shape = Shape::new(rows, cols);
        let arena = Arena::planned(&Cpu::new(), "a test", |cursor| {
            cursor.take_as::<E>(Shape::new(rows, cols + 2 * margin), layout);
        });
        Self { arena: arena.unwrap(), shape, layout, margin, element: PhantomData }
    }

    /// The tensor with its margins.
    fn whole(&mut self) -> ViewMut<'_, Cpu<C>, E> {
        let shape = Shape::new(self.shape.rows, self.shape.cols + 2 * self.margin);
        self.arena.cursor().take_as(shape, self.layout)
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut<'_, Cpu<C>, E> {
        let (margin, cols) = (self.margin, self.shape.cols);
        if margin == 0 {
            return self.whole();
        }
        let (_, right) = self.whole().split_columns(margin);
        right.split_columns(cols).0
    }

    pub(crate) fn view(&mut self) -> View<'_, Cpu<C>, E> {
        self.view_mut().into_view()
    }
}

impl<C: Real> Tensor<C> {
    /// Row after row without gaps.
    pub(crate) fn rows(matrix: &Matrix) -> Self {
        Self::stored(matrix, 0)
    }

    /// Columns of a wider buffer that is NaN elsewhere: who reads beyond the tensor shows it.
    pub(crate) fn pitched(matrix: &Matrix) -> Self {
        Self::stored(matrix, MARGIN)
    }

    fn stored(matrix: &Matrix, margin: usize) -> Self {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let mut tensor = Self::zeros(rows, cols, Layout::Rows { pitch: cols + 2 * margin }, margin);
        let mut whole = tensor.whole();
        for r in 0..rows {
            let row = whole.row_mut(r);
            row.fill(C::of(f64::NAN));
            for (to, &value) in row[margin..].iter_mut().zip(matrix.row(r)) {
                *to = C::of(value);
            }
        }
        tensor
    }

    /// In panels, as a frozen weight; written in two parts that meet within a row.
    pub(crate) fn panels(matrix: &Matrix) -> Self {
        Self::frozen(matrix, Layout::Panels, matrix.values.len().div_ceil(2))
    }

    /// In split panels, as a frozen weight; written in two parts that meet within a row.
    pub(crate) fn split_panels(matrix: &Matrix) -> Self {
        Self::frozen(matrix, Layout::SplitPanels, matrix.values.len().div_ceil(2))
    }

    /// In a layout of frozen weights, written in parts of `part` values, the last one first.
    pub(crate) fn frozen(matrix: &Matrix, layout: Layout, part: usize) -> Self {
        let mut tensor = Self::zeros(matrix.rows, matrix.cols, layout, 0);
        let values: Vec<f32> = matrix.values.iter().map(|&x| x as f32).collect();
        for (i, values) in values.chunks(part).enumerate().rev() {
            Cpu::new().write(values, i * part, tensor.view_mut());
        }
        tensor
    }

    /// A pitched tensor of NaN, for an operation to write: who reads it shows it.
    pub(crate) fn output(rows: usize, cols: usize) -> Self {
        Self::pitched(&Matrix::filled(rows, cols, f64::NAN))
    }

    /// The elements; asserts that the margins were left alone.
    pub(crate) fn read(&mut self) -> Matrix {
        let (margin, Shape { rows, cols }) = (self.margin, self.shape);
        let whole = self.whole().into_view();
        for r in 0..rows {
            let row = whole.row(r);
            let outside = row[..margin].iter().chain(&row[margin + cols..]);
            assert!(outside.copied().all(Real::is_nan), "row {r} was written outside of its columns");
        }
        Matrix::from_fn(rows, cols, |r, c| whole.row(r)[margin + c].to_f64())
    }
}

impl<C: Real> Tensor<C, u32> {
    pub(crate) fn indices(rows: usize, cols: usize, values: &[u32]) -> Self {
        let mut tensor = Self::zeros(rows, cols, Layout::Rows { pitch: cols }, 0);
        let mut view = tensor.view_mut();
        for (r, values) in values.chunks_exact(cols).enumerate() {
            view.row_mut(r).copy_from_slice(values);
        }
        tensor
    }

    pub(crate) fn read_indices(&mut self) -> Vec<u32> {
        let view = self.view();
        (0..view.rows()).flat_map(|r| view.row(r)).copied().collect()
    }
}

/// Largest relative distance to a plain computation in double precision. What is summed here has
/// at most 1408 terms, whose roundings add up like a random walk: √1408 units of 2⁻⁵³ or 2⁻²⁴ are
/// 4e-15 and 2e-6, and a few such sums follow one another. `f64` is allowed 200 times that, because
/// nothing that is wrong is as little wrong as 1e-12; `f32` five times.
pub(crate) fn tolerance<E: Real>() -> f64 {
    if size_of::<E>() == size_of::<f64>() { 1e-12 } else { 1e-5 }
}

/// ‖got − want‖ / ‖want‖
pub(crate) fn distance(got: &Matrix, want: &Matrix) -> f64 {
    let norm = |m: &Matrix| m.dot(m).sqrt();
    norm(&got.minus(want)) / norm(want)
}

/// Asserts that `got` is `want` up to a relative distance of `tolerance`, and that `want` is no
/// matrix of zeros, which would prove nothing.
#[track_caller]
pub(crate) fn assert_close(what: &str, got: &Matrix, want: &Matrix, tolerance: f64) {
    let distance = distance(got, want);
    assert!(distance <= tolerance, "{what}: relative distance {distance:e}, not below {tolerance:e}");
}

/// Asserts that `gradient` is that of `loss` at `point`, element by element.
#[track_caller]
pub(crate) fn assert_gradient(what: &str, point: &Matrix, gradient: &Matrix, loss: impl Fn(&Matrix) -> f64) {
    // Of the order of the cube root of the machine's precision, where the error of truncation
    // (h²) meets that of rounding (2⁻⁵³ / h); a power of two, so that h is added exactly.
    let h = f64::from(1u32 << 17).recip();
    let mut moved = point.clone();
    let differences = Matrix::from_fn(point.rows, point.cols, |r, c| {
        let mut loss_at = |value| {
            moved.set(r, c, value);
            loss(&moved)
        };
        let (above, below) = (loss_at(point.at(r, c) + h), loss_at(point.at(r, c) - h));
        moved.set(r, c, point.at(r, c));
        (above - below) / (2.0 * h)
    });
    // h² = 6e-11 times third derivatives that stay below 10 for numbers in [-1, 1].
    assert_close(what, gradient, &differences, 1e-9);
}

/// Asserts that `compute` gives the same bits on one, two and three threads.
#[track_caller]
pub(crate) fn assert_independent_of_threads(compute: impl Fn() -> Vec<Matrix> + Sync) {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| compute().iter().flat_map(Matrix::bits).collect::<Vec<u64>>())
    };
    let alone = on(1);
    assert!(alone.iter().any(|&bits| bits != 0), "zeros prove nothing");
    assert!(on(2) == alone && on(3) == alone, "the result depends on the number of threads");
}
