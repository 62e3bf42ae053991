use super::*;
use crate::tensor::{Shape, ViewMut};

/// Numbers of no pattern in (-1, 1).
fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut bits = seed;
    let next = || {
        bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn view<N: Element>(values: &[N], cols: usize) -> View<'_, Cpu, N> {
    // SAFETY: the slice holds so many rows.
    unsafe { View::new(values.as_ptr(), Shape::new(values.len() / cols, cols), cols) }
}

/// On registers `V`, all that there is of rows, and outputs and depths that fill blocks, tiles, slices and lines and
/// do not.
fn products_are_right<V: Vectors, N: Stored>() {
    for [depth, outputs] in [[1, 1], [77, 37], [16, 3], [704, 65], [1312, 6]] {
        let weight: Vec<N> = numbers(depth * outputs, 3).into_iter().map(N::of_f32).collect();
        let all = numbers(MOST_ROWS * depth, 5);
        let mut of_all = Vec::new();
        for rows in (1..=MOST_ROWS).rev() {
            let x = &all[..rows * depth];
            let mut y = vec![f32::NAN; rows * outputs];
            // SAFETY: `y` has so many rows, and the processor is of this kind.
            unsafe {
                let to = ViewMut::<Cpu, f32>::new(y.as_mut_ptr(), Shape::new(rows, outputs), outputs);
                let (a, b) = (view(x, depth), view(&weight, depth));
                let (a, b) = (Operand::summed_by_columns(a), Operand::summed_by_columns(b));
                multiply::<V, f32, N>(a, b, Write::Replace, &to.into_rows(), |_, _, _| {}).unwrap();
            }
            for (row, y) in y.chunks(outputs).enumerate() {
                for (&y, weight) in y.iter().zip(weight.chunks(depth)) {
                    let terms = x[row * depth..][..depth].iter().zip(weight);
                    let want: f64 = terms.map(|(&x, w)| f64::from(x) * f64::from(w.to_f32())).sum();
                    // Some √1312 roundings of 2⁻²⁴, of sums that stay below 40.
                    assert!((f64::from(y) - want).abs() < 1e-4, "{rows} rows, {depth} to {outputs}");
                }
            }
            if rows == MOST_ROWS {
                of_all = y;
            } else {
                assert!(y == of_all[..rows * outputs], "{rows} rows of {depth} to {outputs}");
            }
        }
    }
}

#[test]
fn products_are_right_on_every_kind_of_processor_and_a_row_is_the_same_beside_others() {
    products_are_right::<Portable, bf16>();
    products_are_right::<Portable, f16>();
    #[cfg(target_arch = "x86_64")]
    {
        use vectors::x86::{Avx2, Avx512};
        if Avx2::is_there() {
            products_are_right::<Avx2, bf16>();
            products_are_right::<Avx2, f16>();
        }
        if Avx512::is_there() {
            products_are_right::<Avx512, bf16>();
            products_are_right::<Avx512, f16>();
        }
    }
}

#[test]
fn every_f16_is_widened_as_the_half_crate_does() {
    for bits in (0..=u16::MAX).step_by(8) {
        let from: [f16; 8] = std::array::from_fn(|lane| f16::from_bits(bits + lane as u16));
        // SAFETY: every processor has what is asked for.
        let wide = unsafe { Portable::load_f16(from.as_ptr()) };
        for (wide, from) in wide.into_iter().zip(from) {
            assert!(wide.to_bits() == from.to_f32().to_bits() || wide.is_nan() && from.is_nan());
        }
    }
}
