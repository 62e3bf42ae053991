//! Vectors of either number type, for any processor's registers.

use pulp::Simd;

/// Rows and columns of what is transposed in registers.
pub(super) const TILE: usize = 4;

/// A number that registers hold several of.
pub trait Lanes: Copy {
    /// As many as a register of the processor holds.
    type Vector<S: Simd>: Copy;

    /// A vector of one number.
    fn splat<S: Simd>(simd: S, x: Self) -> Self::Vector<S>;
    /// a·b + c, rounded once.
    fn mul_add_vectors<S: Simd>(
        simd: S,
        a: Self::Vector<S>,
        b: Self::Vector<S>,
        c: Self::Vector<S>,
    ) -> Self::Vector<S>;
    /// As many vectors as there are whole ones.
    fn vectors<S: Simd>(numbers: &[Self]) -> &[Self::Vector<S>];
    /// The same, to be written.
    fn vectors_mut<S: Simd>(numbers: &mut [Self]) -> &mut [Self::Vector<S>];

    /// Exchanges rows and columns.
    #[inline(always)]
    fn transpose(tile: [[Self; TILE]; TILE]) -> [[Self; TILE]; TILE] {
        std::array::from_fn(|row| std::array::from_fn(|column| tile[column][row]))
    }

    /// Numbers of a vector.
    fn count<S: Simd>() -> usize {
        size_of::<Self::Vector<S>>() / size_of::<Self>()
    }
}

impl Lanes for f32 {
    type Vector<S: Simd> = S::f32s;

    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: Self) -> S::f32s {
        simd.splat_f32s(x)
    }

    #[inline(always)]
    fn mul_add_vectors<S: Simd>(simd: S, a: S::f32s, b: S::f32s, c: S::f32s) -> S::f32s {
        simd.mul_add_f32s(a, b, c)
    }

    #[inline(always)]
    fn vectors<S: Simd>(numbers: &[Self]) -> &[S::f32s] {
        S::as_simd_f32s(numbers).0
    }

    #[inline(always)]
    fn vectors_mut<S: Simd>(numbers: &mut [Self]) -> &mut [S::f32s] {
        S::as_mut_simd_f32s(numbers).0
    }

    /// What the compiler makes of the general form takes three times as long.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn transpose(tile: [[Self; TILE]; TILE]) -> [[Self; TILE]; TILE] {
        use std::arch::x86_64::{__m128, _mm_movehl_ps, _mm_movelh_ps, _mm_unpackhi_ps, _mm_unpacklo_ps};
        let [a, b, c, d]: [__m128; TILE] = bytemuck::cast(tile);
        // SAFETY: every x86-64 processor has SSE.
        let transposed = unsafe {
            let (low_ab, low_cd) = (_mm_unpacklo_ps(a, b), _mm_unpacklo_ps(c, d));
            let (high_ab, high_cd) = (_mm_unpackhi_ps(a, b), _mm_unpackhi_ps(c, d));
            [
                _mm_movelh_ps(low_ab, low_cd),
                _mm_movehl_ps(low_cd, low_ab),
                _mm_movelh_ps(high_ab, high_cd),
                _mm_movehl_ps(high_cd, high_ab),
            ]
        };
        bytemuck::cast(transposed)
    }
}

impl Lanes for f64 {
    type Vector<S: Simd> = S::f64s;

    #[inline(always)]
    fn splat<S: Simd>(simd: S, x: Self) -> S::f64s {
        simd.splat_f64s(x)
    }

    #[inline(always)]
    fn mul_add_vectors<S: Simd>(simd: S, a: S::f64s, b: S::f64s, c: S::f64s) -> S::f64s {
        simd.mul_add_f64s(a, b, c)
    }

    #[inline(always)]
    fn vectors<S: Simd>(numbers: &[Self]) -> &[S::f64s] {
        S::as_simd_f64s(numbers).0
    }

    #[inline(always)]
    fn vectors_mut<S: Simd>(numbers: &mut [Self]) -> &mut [S::f64s] {
        S::as_mut_simd_f64s(numbers).0
    }
}
