use crate::common::{Matrix, Random, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice, rounded, rounded_to};
use half::{bf16, f16};
use qformer::device::{Cpu, Cuda};
use qformer::ops::embedding::{EmbeddingBackward, EmbeddingForward, EmbeddingOp};
use qformer::tensor::Number;

/// Row 2 is looked up three times, rows 0 and 4 never.
const IDS: [u32; 6] = [2, 5, 2, 1, 3, 2];
const PLACES: [u32; 6] = [0, 1, 2, 0, 1, 0];

fn forward<D: TestDevice + EmbeddingOp>(
    ids: &[u32],
    table: &Matrix,
    positions: Option<(&[u32], &Matrix)>,
) -> Matrix {
    forward_from::<D, D::Elem>(ids, table, positions)
}

/// From a table of `N`.
fn forward_from<D: TestDevice + EmbeddingOp, N: Number>(
    ids: &[u32],
    table: &Matrix,
    positions: Option<(&[u32], &Matrix)>,
) -> Matrix {
    let mut y = Tensor::<D>::output(ids.len(), table.cols);
    let mut positions =
        positions.map(|(p, t)| (Tensor::<D, u32>::indices(1, p.len(), p), Tensor::<D>::pitched(t)));
    D::get()
        .embedding_forward(EmbeddingForward {
            ids: Tensor::<D, u32>::indices(1, ids.len(), ids).view(),
            table: Tensor::<D, N>::pitched(table).view().into(),
            positions: positions.as_mut().map(|(places, table)| (places.view(), table.view())),
            y: y.view_mut(),
        })
        .unwrap();
    y.read()
}

/// Gradients of both tables, at IDS and PLACES, on top of what the last two arguments hold.
fn backward<D: TestDevice + EmbeddingOp>(
    frozen: Option<u32>,
    dy: &Matrix,
    table_before: &Matrix,
    positions_before: &Matrix,
) -> [Matrix; 2] {
    backward_at::<D>([&IDS, &PLACES], frozen, dy, [table_before, positions_before])
}

fn backward_at<D: TestDevice + EmbeddingOp>(
    [ids, places]: [&[u32]; 2],
    frozen: Option<u32>,
    dy: &Matrix,
    [table_before, positions_before]: [&Matrix; 2],
) -> [Matrix; 2] {
    let mut dtable = Tensor::<D, D::Stat>::pitched(table_before);
    let mut dpositions = Tensor::<D, D::Stat>::pitched(positions_before);
    D::get()
        .embedding_backward(EmbeddingBackward {
            ids: Tensor::<D, u32>::indices(1, ids.len(), ids).view(),
            frozen,
            dy: Tensor::pitched(dy).view(),
            dtable: dtable.view_mut(),
            dpositions: Some((
                Tensor::<D, u32>::indices(1, places.len(), places).view(),
                dpositions.view_mut(),
            )),
        })
        .unwrap();
    [dtable.read(), dpositions.read()]
}

fn forward_matches<D: TestDevice + EmbeddingOp>() {
    for width in [768, 1, 67, 1408] {
        let mut random = Random::new(1);
        let (table, positions) =
            (rounded::<D>(&random.matrix(6, width)), rounded::<D>(&random.matrix(3, width)));
        let want = Matrix::from_fn(IDS.len(), width, |r, c| {
            table.at(IDS[r] as usize, c) + positions.at(PLACES[r] as usize, c)
        });
        // One sum of two multiples of 2⁻²⁰ below 2 is exact in single precision.
        assert_eq!(forward::<D>(&IDS, &table, Some((&PLACES, &positions))), rounded::<D>(&want));
        let want = Matrix::from_fn(IDS.len(), width, |r, c| table.at(IDS[r] as usize, c));
        assert_eq!(forward::<D>(&IDS, &table, None), want);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
    forward_matches::<Cuda>();
}

fn tables_of_16_bits_are_read<D: TestDevice + EmbeddingOp, N: Number>() {
    for width in [768, 1, 67] {
        let mut random = Random::new(8);
        let (table, positions) = (rounded_to::<N>(&random.matrix(6, width)), random.matrix(3, width));
        let want = Matrix::from_fn(IDS.len(), width, |r, c| {
            table.at(IDS[r] as usize, c) + positions.at(PLACES[r] as usize, c)
        });
        // As above: the sums are exact.
        assert_eq!(forward_from::<D, N>(&IDS, &table, Some((&PLACES, &positions))), rounded::<D>(&want));
    }
}

#[test]
fn the_cpu_reads_tables_of_16_bits() {
    tables_of_16_bits_are_read::<Cpu<f32>, bf16>();
    tables_of_16_bits_are_read::<Cpu<f32>, f16>();
    tables_of_16_bits_are_read::<Cpu<f64>, bf16>();
    tables_of_16_bits_are_read::<Cpu<f64>, f16>();
}

#[test]
fn queries_are_laid_out_again_and_again() {
    let table = Random::new(2).matrix(32, 768);
    let ids: Vec<u32> = (0..96).map(|i| i % 32).collect();
    let want = Matrix::from_fn(96, 768, |r, c| table.at(r % 32, c));
    assert_eq!(forward::<Cpu<f32>>(&ids, &table, None), want);
    assert_eq!(forward::<Cuda>(&ids, &table, None), rounded::<Cuda>(&want));
}

#[test]
fn backward_matches_finite_differences() {
    for width in [5, 1, 66] {
        let mut random = Random::new(3);
        let (table, positions) = (random.matrix(6, width), random.matrix(3, width));
        let dy = random.matrix(IDS.len(), width);
        let zeros = [Matrix::filled(6, width, 0.0), Matrix::filled(3, width, 0.0)];
        let [dtable, dpositions] = backward::<Cpu<f64>>(None, &dy, &zeros[0], &zeros[1]);
        assert_gradient("dtable", &table, &dtable, |table| {
            forward::<Cpu<f64>>(&IDS, table, Some((&PLACES, &positions))).dot(&dy)
        });
        assert_gradient("dpositions", &positions, &dpositions, |positions| {
            forward::<Cpu<f64>>(&IDS, &table, Some((&PLACES, positions))).dot(&dy)
        });
    }
}

#[test]
fn gradients_are_added_to_what_was_there_except_for_the_frozen_row() {
    adds_except_for_the_frozen_row::<Cpu<f32>>();
    adds_except_for_the_frozen_row::<Cuda>();
}

fn adds_except_for_the_frozen_row<D: TestDevice + EmbeddingOp>() {
    let mut random = Random::new(4);
    let (table, positions) = (random.matrix(6, 70), random.matrix(3, 70));
    let dy = rounded::<D>(&random.matrix(6, 70));
    let [dtable, dpositions] = backward::<D>(Some(2), &dy, &table, &positions);
    let sum = |before: &Matrix, ids: &[u32], frozen: Option<u32>| {
        Matrix::from_fn(before.rows, before.cols, |row, c| {
            let trained = |i: &usize| ids[*i] as usize == row && Some(ids[*i]) != frozen;
            before.at(row, c) + (0..ids.len()).filter(trained).map(|i| dy.at(i, c)).sum::<f64>()
        })
    };
    // A sum of four multiples of 2⁻²⁰ below 1 is exact.
    assert_eq!(dtable, sum(&table, &IDS, Some(2)));
    assert_eq!(dpositions, sum(&positions, &PLACES, None));
    assert_ne!(dtable.row(1), table.row(1));
    assert_eq!(dtable.row(2), table.row(2));
}

#[test]
fn the_gpu_has_the_same_gradients() {
    // Occurrences near and far: more rows than are searched at a time, in tables of few rows and of many; and more
    // columns than a block has, in whole vectors and not.
    for (count, table_rows, width) in
        [(2100, 700, 24), (1025, 3, 5), (200, 30523, 768), (1, 1, 1), (97, 13, 1408), (9, 4, 131)]
    {
        let mut random = Random::new(7);
        let ids: Vec<u32> = (0..count).map(|_| random.below(table_rows) as u32).collect();
        let places: Vec<u32> = (0..count as u32).map(|i| i % 32).collect();
        // In single precision the order of summation shows: it has to be the CPU's.
        let dy = rounded::<Cuda>(&random.matrix(count, width));
        let before = [&random.matrix(table_rows, width), &random.matrix(32, width)];
        let got = backward_at::<Cuda>([&ids, &places], Some(0), &dy, before);
        assert_eq!(got, backward_at::<Cpu<f32>>([&ids, &places], Some(0), &dy, before), "{count}×{width}");
    }
}

#[test]
fn nan_reaches_the_output() {
    for width in [3, 8] {
        let mut table = Random::new(5).matrix(6, width);
        table.set(2, 1, f64::NAN);
        for y in [forward::<Cpu<f32>>(&IDS, &table, None), forward::<Cuda>(&IDS, &table, None)] {
            assert!((0..6).all(|r| y.at(r, 1).is_nan() == (IDS[r] == 2)));
        }
        let mut dy = Matrix::filled(6, width, 1.0);
        dy.set(3, 2, f64::NAN);
        let [dtable, _] =
            backward::<Cuda>(None, &dy, &Matrix::filled(6, width, 0.0), &Matrix::filled(3, width, 0.0));
        assert!((0..6).all(|r| (0..width).all(|c| dtable.at(r, c).is_nan() == ((r, c) == (1, 2)))));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let mut random = Random::new(6);
    let (table, positions, dy) = (random.matrix(6, 200), random.matrix(3, 200), random.matrix(6, 200));
    assert_independent_of_threads(|| {
        let mut all = vec![forward::<Cpu<f32>>(&IDS, &table, Some((&PLACES, &positions)))];
        all.extend(backward::<Cpu<f32>>(None, &dy, &table, &positions));
        all
    });
}
