use crate::common::{Matrix, Random, assert_gradient, assert_independent_of_threads};
use crate::device::{Tensor, TestDevice};
use qformer::device::Cpu;
use qformer::ops::embedding::{EmbeddingBackward, EmbeddingForward, EmbeddingOp};

/// Row 2 is looked up three times, rows 0 and 4 never.
const IDS: [u32; 6] = [2, 5, 2, 1, 3, 2];
const PLACES: [u32; 6] = [0, 1, 2, 0, 1, 0];

fn forward<D: TestDevice + EmbeddingOp>(
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
            table: Tensor::pitched(table).view(),
            positions: positions.as_mut().map(|(places, table)| (places.view(), table.view())),
            y: y.view_mut(),
        })
        .unwrap();
    y.read()
}

/// Gradients of both tables on top of what the last two arguments hold.
fn backward<D: TestDevice + EmbeddingOp>(
    frozen: Option<u32>,
    dy: &Matrix,
    table_before: &Matrix,
    positions_before: &Matrix,
) -> [Matrix; 2] {
    let mut dtable = Tensor::<D, D::Stat>::pitched(table_before);
    let mut dpositions = Tensor::<D, D::Stat>::pitched(positions_before);
    D::get()
        .embedding_backward(EmbeddingBackward {
            ids: Tensor::<D, u32>::indices(1, IDS.len(), &IDS).view(),
            frozen,
            dy: Tensor::pitched(dy).view(),
            dtable: dtable.view_mut(),
            dpositions: Some((
                Tensor::<D, u32>::indices(1, PLACES.len(), &PLACES).view(),
                dpositions.view_mut(),
            )),
        })
        .unwrap();
    [dtable.read(), dpositions.read()]
}

fn forward_matches<D: TestDevice + EmbeddingOp>() {
    for width in [768, 1, 67] {
        let mut random = Random::new(1);
        let (table, positions) = (random.matrix(6, width), random.matrix(3, width));
        let want = Matrix::from_fn(IDS.len(), width, |r, c| {
            table.at(IDS[r] as usize, c) + positions.at(PLACES[r] as usize, c)
        });
        // One sum of two multiples of 2⁻²⁰ below 2 is exact in both precisions.
        assert_eq!(forward::<D>(&IDS, &table, Some((&PLACES, &positions))), want);
        let want = Matrix::from_fn(IDS.len(), width, |r, c| table.at(IDS[r] as usize, c));
        assert_eq!(forward::<D>(&IDS, &table, None), want);
    }
}

#[test]
fn forward_matches_a_plain_computation() {
    forward_matches::<Cpu<f64>>();
    forward_matches::<Cpu<f32>>();
}

#[test]
fn queries_are_laid_out_again_and_again() {
    let table = Random::new(2).matrix(32, 768);
    let ids: Vec<u32> = (0..96).map(|i| i % 32).collect();
    assert_eq!(forward::<Cpu<f32>>(&ids, &table, None), Matrix::from_fn(96, 768, |r, c| table.at(r % 32, c)));
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
    let mut random = Random::new(4);
    let (table, positions, dy) = (random.matrix(6, 70), random.matrix(3, 70), random.matrix(6, 70));
    let [dtable, dpositions] = backward::<Cpu<f32>>(Some(2), &dy, &table, &positions);
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
fn nan_reaches_the_output() {
    let mut table = Random::new(5).matrix(6, 3);
    table.set(2, 1, f64::NAN);
    let y = forward::<Cpu<f32>>(&IDS, &table, None);
    assert!((0..6).all(|r| y.at(r, 1).is_nan() == (IDS[r] == 2)));
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
