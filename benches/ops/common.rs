//! What the benchmarks of all operations share: tensors of numbers in [-1, 1), and measurement.

use criterion::{Criterion, Throughput};
use qformer::device::{Cpu, Device};
use qformer::memory::Arena;
use qformer::tensor::{Element, Number, Packing, Shape, View, ViewMut, Weight, WeightMut};
use std::marker::PhantomData;

/// A tensor with an arena of its own.
pub(crate) struct Tensor<E = f32> {
    arena: Arena<Cpu>,
    shape: Shape,
    packing: Packing,
    element: PhantomData<E>,
}

impl<E: Element> Tensor<E> {
    fn zeros(shape: Shape) -> Self {
        let arena = Arena::planned(&Cpu::new(), "a benchmark", |cursor| {
            cursor.take::<E>(shape.rows, shape.cols);
        });
        let packing = Packing::Rows { pitch: shape.cols };
        Self { arena: arena.unwrap(), shape, packing, element: PhantomData }
    }

    pub(crate) fn view_mut(&mut self) -> ViewMut<'_, Cpu, E> {
        self.arena.cursor().take(self.shape.rows, self.shape.cols)
    }

    pub(crate) fn view(&mut self) -> View<'_, Cpu, E> {
        self.view_mut().into_view()
    }
}

impl Tensor {
    pub(crate) fn output(rows: usize, cols: usize) -> Self {
        Self::zeros(Shape::new(rows, cols))
    }

    /// Numbers of no pattern, row after row.
    pub(crate) fn rows(rows: usize, cols: usize) -> Self {
        Self::stored(Shape::new(rows, cols), Packing::Rows { pitch: cols })
    }

    /// Numbers of no pattern, stored as a frozen weight.
    pub(crate) fn panels(rows: usize, cols: usize) -> Self {
        Self::stored(Shape::new(rows, cols), Packing::Panels)
    }

    /// Numbers of no pattern, stored as a frozen weight for AMX.
    pub(crate) fn split_panels(rows: usize, cols: usize) -> Self {
        Self::stored(Shape::new(rows, cols), Packing::SplitPanels)
    }

    fn weight_mut(&mut self) -> WeightMut<'_, Cpu> {
        self.arena.cursor().take_weight(self.shape, f32::TYPE, self.packing)
    }

    /// As products read it.
    pub(crate) fn weight(&mut self) -> Weight<'_, Cpu> {
        self.weight_mut().into_view()
    }

    fn stored(shape: Shape, packing: Packing) -> Self {
        let arena = Arena::planned(&Cpu::new(), "a benchmark", |cursor| {
            cursor.take_weight(shape, f32::TYPE, packing);
        });
        let mut tensor = Self { arena: arena.unwrap(), shape, packing, element: PhantomData };
        // Hashes (SplitMix64), not a sequence of even spread: between rows of that, products are as
        // large as can be and a softmax sees one key alone.
        let number = |i: usize| {
            let mixed = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            (mixed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
        };
        let values: Vec<f32> = (0..shape.len()).map(number).collect();
        Cpu::new().write_weight(&values, 0, tensor.weight_mut()).unwrap();
        tensor
    }

    /// Asserts that an operation has written numbers here.
    pub(crate) fn assert_written(&mut self) {
        let values = Cpu::<f32>::new().read(self.view()).unwrap();
        assert!(values.iter().all(|x| x.is_finite()) && values.iter().any(|&x| x != 0.0));
    }
}

impl Tensor<u8> {
    pub(crate) fn bytes(rows: usize, cols: usize) -> Self {
        Self::zeros(Shape::new(rows, cols))
    }
}

impl Tensor<u32> {
    pub(crate) fn indices(values: &[u32]) -> Self {
        let mut tensor = Self::zeros(Shape::new(1, values.len()));
        tensor.view_mut().row_mut(0).copy_from_slice(values);
        tensor
    }
}

/// Times `compute`, which writes to `output`, after a look at what it wrote.
pub(crate) fn measure(
    criterion: &mut Criterion,
    operation: &str,
    what: &str,
    throughput: Throughput,
    output: &mut Tensor,
    mut compute: impl FnMut(&mut Tensor),
) {
    compute(output);
    output.assert_written();
    let mut group = criterion.benchmark_group(operation);
    group.throughput(throughput);
    group.bench_function(what, |bencher| bencher.iter(|| compute(output)));
    group.finish();
}

/// Floating-point operations of products of [m, k] by [k, n].
pub(crate) fn operations(products: &[[usize; 3]]) -> Throughput {
    Throughput::Elements(products.iter().map(|[m, n, k]| (2 * m * n * k) as u64).sum())
}

/// Bytes of tensors of `f32` that are read or written.
pub(crate) fn bytes(elements: usize) -> Throughput {
    Throughput::Bytes((elements * size_of::<f32>()) as u64)
}
