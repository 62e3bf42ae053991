use crate::common::{Matrix, Random};
use crate::device::{Tensor, TestDevice, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::scatter::{Scatter, ScatterOp};

/// In no order; rows 1, 4 and 6 are not named.
const IDS: [u32; 4] = [5, 0, 3, 2];

fn scatter<D: TestDevice + ScatterOp>(ids: &[u32], x: &Matrix, before: &Matrix) -> Matrix {
    let mut y = Tensor::<D>::pitched(before);
    let mut ids = Tensor::<D, u32>::indices(1, ids.len(), ids);
    let x = Tensor::pitched(x);
    D::get().scatter(Scatter { ids: ids.view(), x: { x }.view(), y: y.view_mut() }).unwrap();
    y.read()
}

fn rows_go_where_indices_say<D: TestDevice + ScatterOp>() {
    // The model's keys and values, one column, an odd number, and more columns than a block has.
    for width in [1536, 1, 67, 1032] {
        let mut random = Random::new(1);
        let (x, before) = (rounded::<D>(&random.matrix(4, width)), rounded::<D>(&random.matrix(7, width)));
        let want = Matrix::from_fn(7, width, |r, c| match IDS.iter().position(|&id| id as usize == r) {
            Some(i) => x.at(i, c),
            None => before.at(r, c),
        });
        assert_eq!(scatter::<D>(&IDS, &x, &before), want);
    }
}

#[test]
fn rows_go_where_indices_say_and_others_stay() {
    rows_go_where_indices_say::<Cpu<f64>>();
    rows_go_where_indices_say::<Cpu<f32>>();
    rows_go_where_indices_say::<Cuda>();
}

#[test]
#[should_panic]
fn a_row_that_is_not_there_is_refused() {
    let mut random = Random::new(2);
    scatter::<Cpu<f32>>(&[7], &random.matrix(1, 3), &random.matrix(7, 3));
}
