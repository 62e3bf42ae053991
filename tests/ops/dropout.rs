use crate::common::{Matrix, Random};
use crate::device::{Tensor, TestDevice, rounded};
use qformer::device::{Cpu, Cuda};
use qformer::ops::dropout::{Dropout, DropoutBackward, DropoutForward, DropoutOp};

const PROBABILITY: f64 = 0.25;

/// y, and dx for dy = x.
fn both<D: TestDevice + DropoutOp>(x: &Matrix, key: [u32; 2]) -> [Matrix; 2] {
    let mut key = Tensor::<D, u32>::indices(1, 2, &key);
    let dropout = Dropout { probability: PROBABILITY, site: 7, key: key.view() };
    let (mut y, mut dx) = (Tensor::<D>::output(x.rows, x.cols), Tensor::<D>::output(x.rows, x.cols));
    let mut x = Tensor::pitched(x);
    D::get().dropout_forward(DropoutForward { dropout, x: x.view(), y: y.view_mut() }).unwrap();
    D::get().dropout_backward(DropoutBackward { dropout, dy: x.view(), dx: dx.view_mut() }).unwrap();
    [y.read(), dx.read()]
}

#[test]
fn an_element_is_dropped_or_scaled() {
    let x = Random::new(1).matrix(64, 768);
    let [y, dx] = both::<Cpu<f64>>(&x, [1, 2]);
    let mut dropped = 0;
    for (y, x) in y.values.iter().zip(&x.values) {
        dropped += usize::from(*y == 0.0);
        assert!(*y == 0.0 || *y == x * (1.0 / (1.0 - PROBABILITY)));
    }
    // 49152 draws: the standard deviation of the fraction is 0.002, of which five are allowed.
    let fraction = dropped as f64 / x.values.len() as f64;
    assert!((fraction - PROBABILITY).abs() < 0.01, "{fraction} were dropped");
    assert_eq!(y, dx, "the mask is its own gradient");
}

#[test]
fn another_step_has_another_mask() {
    let x = Matrix::filled(8, 96, 1.0);
    let [first, second] = [both::<Cpu<f32>>(&x, [1, 2]), both::<Cpu<f32>>(&x, [1, 3])];
    let equal = first[0].values.iter().zip(&second[0].values).filter(|(a, b)| a == b).count();
    // p² + (1 − p)² = 0.625 of 768 elements agree by chance, give or take 13.
    assert!((400..560).contains(&equal), "{equal} of 768 are equal");
}

#[test]
fn all_devices_drop_the_same() {
    // The last with more rows than a block has.
    for (rows, width) in [(5, 768), (3, 13), (1, 1), (7, 24), (19, 40)] {
        let x = rounded::<Cuda>(&Random::new(2).matrix(rows, width));
        let wanted = both::<Cpu<f32>>(&x, [3, 4]).map(|y| rounded::<Cuda>(&y));
        assert_eq!(both::<Cuda>(&x, [3, 4]), wanted);
    }
}
