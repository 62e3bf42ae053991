//! The number types that the CPU backend computes in, with the functions its operations need,
//! written so that loops over them vectorise.

use super::lanes::Lanes;
use crate::device::sealed::Sealed;
use crate::tensor::Number;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// `f32` or `f64`; no other crate implements it.
pub trait Real:
    Number
    + Sealed
    + Lanes
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// The nearest number to `x`.
    fn of(x: f64) -> Self;
    /// The same number.
    fn to_f64(self) -> f64;
    /// eˣ, within 2 units in the last place. `f32` gives 0 below -87 and e⁸⁸ above 88, for its
    /// result is either 0 or a normal number.
    fn exp(self) -> Self;
    /// ln x.
    fn ln(self) -> Self;
    /// √x.
    fn sqrt(self) -> Self;
    /// Whether it is not a number.
    fn is_nan(self) -> bool;
    /// |x|.
    fn abs(self) -> Self;
    /// self · a + b, rounded once.
    fn mul_add(self, a: Self, b: Self) -> Self;
    /// The complementary error function of x ≥ 0, absolute error below 1e-7 (`f64`: 1e-15).
    fn erfc(self) -> Self;
}

/// ln erfc(x) / x as a polynomial in x on [0, 9]: a minimax fit of erfc (absolute error 3.3e-9).
const LN_ERFC: [f32; 12] = [
    -1.128_379_4,
    -0.636_616_5,
    -0.102_789_72,
    0.019_164_605,
    0.000_193_426_97,
    -0.001_764_892_5,
    0.000_740_518_14,
    -0.000_178_570_44,
    2.751_791_3e-5,
    -2.648_508_5e-6,
    1.442_583_2e-7,
    -3.379_813_7e-9,
];

impl Sealed for f32 {}
impl Sealed for f64 {}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    #[inline(always)]
    fn of(x: f64) -> Self {
        x as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self.into()
    }
    #[inline(always)]
    fn exp(self) -> Self {
        // Comparisons, not min and max: those would turn a NaN into a number.
        let x = if self > 88.0 { 88.0 } else { self };
        // x = n·ln 2 + r; adding 1.5·2²³ leaves n in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        // ln 2 in two parts, the first short enough that n times it is exact.
        let r = n.mul_add(-0.693_359_4, x);
        let r = n.mul_add(2.121_944_4e-4, r);
        let mut p = 1.0 / 5040.0;
        for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            p = p.mul_add(r, c);
        }
        let power = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
        // Zero, as subnormal numbers slow products down twentyfold.
        let power = if self < -87.0 { 0.0 } else { power };
        // The low bits of a NaN would be added to its exponent as if they were n.
        if self.is_nan() { self } else { power }
    }
    #[inline(always)]
    fn ln(self) -> Self {
        f32::ln(self)
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn is_nan(self) -> bool {
        f32::is_nan(self)
    }
    #[inline(always)]
    fn abs(self) -> Self {
        f32::abs(self)
    }
    #[inline(always)]
    fn mul_add(self, a: Self, b: Self) -> Self {
        f32::mul_add(self, a, b)
    }
    #[inline(always)]
    fn erfc(self) -> Self {
        let x = if self > 9.0 { 9.0 } else { self };
        let mut p = LN_ERFC[11];
        for i in (0..11).rev() {
            p = p.mul_add(x, LN_ERFC[i]);
        }
        Real::exp(p * x)
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    fn of(x: f64) -> Self {
        x
    }
    fn to_f64(self) -> f64 {
        self
    }
    fn exp(self) -> Self {
        f64::exp(self)
    }
    fn ln(self) -> Self {
        f64::ln(self)
    }
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }
    fn is_nan(self) -> bool {
        f64::is_nan(self)
    }
    fn abs(self) -> Self {
        f64::abs(self)
    }
    fn mul_add(self, a: Self, b: Self) -> Self {
        f64::mul_add(self, a, b)
    }
    fn erfc(self) -> Self {
        libm::erfc(self)
    }
}

/// Runs `f` compiled for the widest vectors of the machine; what it calls must be `inline(always)`.
#[inline(always)]
pub(crate) fn vectorised<R>(f: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(f)
}

/// Independent partial results, so that a reduction over floats vectorises.
const LANES: usize = 32;

/// The sum of `each` of the elements side by side in slices of one length, in an order that depends on the
/// length alone.
#[inline(always)]
pub(crate) fn sum<E: Real, const N: usize>(x: [&[E]; N], each: impl Fn([E; N]) -> E) -> E {
    let n = x[0].len();
    let whole = n - n % LANES;
    let mut lanes = [E::ZERO; LANES];
    let mut numbers = [E::ZERO; N];
    for start in (0..whole).step_by(LANES) {
        let chunks = x.map(|x| &x[start..start + LANES]);
        for l in 0..LANES {
            for (number, chunk) in numbers.iter_mut().zip(chunks) {
                *number = chunk[l];
            }
            lanes[l] += each(numbers);
        }
    }
    let mut total = E::ZERO;
    for lane in lanes {
        total += lane;
    }
    // Not into the lanes: one chosen by its number would keep them all out of vector registers.
    for i in whole..n {
        total += each(x.map(|x| x[i]));
    }
    total
}

/// The largest of `x`; NaN if any is NaN; `x` must not be empty.
#[inline(always)]
pub(crate) fn maximum<E: Real>(x: &[E]) -> E {
    let mut lanes = [x[0]; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &v) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*lane, v);
        }
    }
    let mut largest = lanes[0];
    for &v in lanes.iter().chain(rest) {
        largest = larger(largest, v);
    }
    largest
}

/// The larger number; NaN if either is NaN.
#[inline(always)]
fn larger<E: Real>(a: E, b: E) -> E {
    if a >= b || a.is_nan() { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -8700..8700 {
            let x = i as f32 * 0.01 + 0.001;
            let (got, want) = (f64::from(Real::exp(x)), f64::from(x).exp());
            assert!((got - want).abs() <= 2.4e-7 * want, "exp({x}) = {got}, not {want}");
        }
        for x in [-87.01, -87.4, -88.0, -104.0, -1e5, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(Real::exp(x), 0.0, "exp({x})");
        }
        for nan in [f32::NAN, -f32::NAN, f32::from_bits(u32::MAX)] {
            assert!(Real::exp(nan).is_nan());
        }
    }

    #[test]
    fn erfc_is_within_its_stated_error() {
        for i in 0..1000 {
            let x = i as f32 * 0.012;
            let (got, want) = (f64::from(Real::erfc(x)), libm::erfc(f64::from(x)));
            assert!((got - want).abs() <= 1e-7, "erfc({x}) = {got}, not {want}");
        }
        assert!(Real::erfc(f32::NAN).is_nan());
    }

    #[test]
    fn a_reduction_meets_every_element_once() {
        for n in [1, 2, 31, 32, 33, 64, 97] {
            let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 101) as f32).collect();
            assert_eq!(sum([&x], |[x]| x), x.iter().sum::<f32>());
            assert_eq!(sum([&x, &x], |[x, y]| x * y), x.iter().map(|x| x * x).sum::<f32>());
            assert_eq!(maximum(&x), x.iter().copied().fold(f32::MIN, f32::max));
            for place in 0..n {
                let mut poisoned = x.clone();
                poisoned[place] = f32::NAN;
                assert!(maximum(&poisoned).is_nan());
            }
        }
    }
}
