//! What the tests of all operations share: matrices of exact random numbers, tensors made from
//! them, comparison, finite differences, and thread pools.

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

    /// The nearest multiples of 2⁻¹⁶: of results that are such multiples, but for the rounding of a
    /// log-sum-exp, which is less.
    pub(crate) fn settled(&self) -> Self {
        let unit = f64::from(1 << 16);
        Self::from_fn(self.rows, self.cols, |r, c| (self.at(r, c) * unit).round() / unit)
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

    /// Whole numbers from -`largest` to `largest`.
    pub(crate) fn whole(&mut self, rows: usize, cols: usize, largest: usize) -> Matrix {
        Matrix::from_fn(rows, cols, |_, _| self.below(2 * largest + 1) as f64 - largest as f64)
    }

    /// Multiples of 2⁻²⁰ in [-1, 1): exact in `f32`, so that all precisions see the same numbers.
    pub(crate) fn matrix(&mut self, rows: usize, cols: usize) -> Matrix {
        let unit = f64::from(1 << 20);
        Matrix::from_fn(rows, cols, |_, _| (self.next() >> 43) as f64 / unit - 1.0)
    }
}

/// ‖got − want‖ / ‖want‖
pub(crate) fn distance(got: &Matrix, want: &Matrix) -> f64 {
    let norm = |m: &Matrix| m.dot(m).sqrt();
    norm(&got.minus(want)) / norm(want)
}

/// The largest |got − want|; infinite if there is a NaN on one side only.
pub(crate) fn largest_error(got: &Matrix, want: &Matrix) -> f64 {
    let error = |(g, w): (&f64, &f64)| match (g.is_nan(), w.is_nan()) {
        (true, true) => 0.0,
        (false, false) => (g - w).abs(),
        _ => f64::INFINITY,
    };
    got.values.iter().zip(&want.values).map(error).fold(0.0, f64::max)
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
