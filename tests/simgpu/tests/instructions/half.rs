//! Arithmetic in half precision.

use crate::{
    exact::{BF16, Exact, F16, Format, Mode},
    rows::{Row, Rows, exact},
};

/// Patterns that are edges in one of the two formats, two to a register.
pub(crate) const PAIRS: [u64; 17] = [
    0x0000_3c00,
    0x8000_3f80,
    0x3c01_3f81,
    0xbc00_bf80,
    0x0001_8001,
    0x03ff_007f,
    0x0400_0080,
    0x7bff_7f7f,
    0xfbff_ff7f,
    0x7c00_7f80,
    0xfc00_ff80,
    0x7e00_7fc0,
    0x7c01_7f81,
    0x3555_3eab,
    0x4248_4049,
    0x1400_3300,
    0x5640_4348,
];

pub(crate) fn rows() -> Rows {
    Rows { kernel: "halves", sources: 3, values: PAIRS.to_vec(), rows: list() }
}

#[test]
fn half_precision_is_exact() {
    rows().check();
}

#[derive(Clone, Copy)]
enum Half {
    F16,
    Bf16,
}
use Half::{Bf16, F16 as H16};

impl Half {
    fn format(self) -> Format {
        match self {
            H16 => F16,
            Bf16 => BF16,
        }
    }

    fn infinity(self) -> u64 {
        match self {
            H16 => 0x7c00,
            Bf16 => 0x7f80,
        }
    }

    fn is_nan(self, x: u64) -> bool {
        x & 0x7fff > self.infinity()
    }

    /// The number, by the format's definition.
    fn value(self, x: u64) -> f32 {
        let Format { precision, lowest, highest, .. } = self.format();
        let fraction_bits = precision - 1;
        let (field, fraction) = ((x & 0x7fff) >> fraction_bits, (x & ((1 << fraction_bits) - 1)) as f32);
        let scale = |exponent: i32| 2.0_f64.powi(exponent) as f32;
        let magnitude = match field as i32 {
            0 => fraction * scale(lowest - fraction_bits),
            field if field == 2 * highest + 1 => {
                if fraction == 0.0 {
                    f32::INFINITY
                } else {
                    f32::NAN
                }
            }
            field => (fraction + scale(fraction_bits)) * scale(field - highest - fraction_bits),
        };
        if x >> 15 & 1 == 1 { -magnitude } else { magnitude }
    }

    /// a·b + c, rounded once.
    fn fused(self, a: u64, b: u64, c: u64) -> u64 {
        let (a, b, c) = (self.value(a), self.value(b), self.value(c));
        if !(a.is_finite() && b.is_finite() && c.is_finite()) {
            return self.special(a.mul_add(b, c));
        }
        let sum = Exact::product(a, b).plus(Exact::of(c));
        if sum.is_zero() {
            let negative =
                (a.is_sign_negative() != b.is_sign_negative()) && (a * b == 0.0) && c.to_bits() == 1 << 31;
            return u64::from(negative) << 15;
        }
        sum.round(self.format(), Mode::Nearest)
    }

    /// An infinity or NaN.
    fn special(self, x: f32) -> u64 {
        if x.is_nan() { 0x7fff } else { self.infinity() | u64::from(x.is_sign_negative()) << 15 }
    }

    fn one(self) -> u64 {
        match self {
            H16 => 0x3c00,
            Bf16 => 0x3f80,
        }
    }

    fn product(self, a: u64, b: u64) -> u64 {
        let (x, y) = (self.value(a), self.value(b));
        if x.is_finite() && y.is_finite() && x != 0.0 && y != 0.0 {
            return Exact::product(x, y).round(self.format(), Mode::Nearest) | (a ^ b) & 0x8000;
        }
        let product = x * y;
        if product == 0.0 { (a ^ b) & 0x8000 } else { self.special(product) }
    }

    fn lesser(self, a: u64, b: u64) -> u64 {
        match (self.is_nan(a), self.is_nan(b)) {
            (true, true) => 0x7fff,
            (true, false) => b,
            (false, true) => a,
            // By magnitude and sign: -0 is less than +0.
            _ => {
                if order(a) < order(b) {
                    a
                } else {
                    b
                }
            }
        }
    }

    fn greater(self, a: u64, b: u64) -> u64 {
        match (self.is_nan(a), self.is_nan(b)) {
            (false, false) => {
                if order(a) > order(b) {
                    a
                } else {
                    b
                }
            }
            _ => self.lesser(a, b),
        }
    }
}

fn order(x: u64) -> i32 {
    let magnitude = (x & 0x7fff) as i32;
    if x >> 15 & 1 == 1 { -magnitude - 1 } else { magnitude }
}

/// The two halves on their own.
fn both(a: u64, b: u64, c: u64, f: impl Fn(u64, u64, u64) -> u64) -> u64 {
    let low = f(a & 0xffff, b & 0xffff, c & 0xffff);
    let high = f(a >> 16 & 0xffff, b >> 16 & 0xffff, c >> 16 & 0xffff);
    high << 16 | low
}

fn low(x: u64) -> u64 {
    x & 0xffff
}

fn relu(half: Half, x: u64) -> u64 {
    if half.is_nan(x) {
        0x7fff
    } else if x >> 15 & 1 == 1 {
        0
    } else {
        x
    }
}

fn rounded(half: Half, x: f32) -> u64 {
    match x {
        _ if !x.is_finite() => half.special(x),
        _ if x == 0.0 => u64::from(x.is_sign_negative()) << 15,
        _ => Exact::of(x).round(half.format(), Mode::Nearest),
    }
}

fn list() -> Vec<Row> {
    vec![
        exact("fma.rn.bf16 %d16, %a16, %b16, %c16;", |a, b, c| Bf16.fused(low(a), low(b), low(c))),
        exact("fma.rn.f16 %d16, %a16, %b16, %c16;", |a, b, c| H16.fused(low(a), low(b), low(c))),
        exact("fma.rn.bf16x2 %d32, %a32, %b32, %c32;", |a, b, c| {
            both(a, b, c, |a, b, c| Bf16.fused(a, b, c))
        }),
        exact("fma.rn.f16x2 %d32, %a32, %b32, %c32;", |a, b, c| both(a, b, c, |a, b, c| H16.fused(a, b, c))),
        exact("fma.rn.relu.bf16x2 %d32, %a32, %b32, %c32;", |a, b, c| {
            both(a, b, c, |a, b, c| relu(Bf16, Bf16.fused(a, b, c)))
        }),
        exact("fma.rn.sat.f16 %d16, %a16, %b16, %c16;", |a, b, c| {
            let x = H16.fused(low(a), low(b), low(c));
            if H16.is_nan(x) || x >> 15 == 1 { 0 } else { x.min(H16.one()) }
        }),
        exact("add.rn.bf16x2 %d32, %a32, %b32;", |a, b, _| {
            both(a, b, 0, |a, b, _| Bf16.fused(a, Bf16.one(), b))
        }),
        exact("add.f16 %d16, %a16, %b16;", |a, b, _| H16.fused(low(a), H16.one(), low(b))),
        exact("add.f16x2 %d32, %a32, %b32;", |a, b, _| both(a, b, 0, |a, b, _| H16.fused(a, H16.one(), b))),
        exact("sub.rn.f16x2 %d32, %a32, %b32;", |a, b, _| {
            both(a, b, 0, |a, b, _| H16.fused(a, H16.one(), b ^ 0x8000))
        }),
        exact("mul.rn.bf16 %d16, %a16, %b16;", |a, b, _| Bf16.product(low(a), low(b))),
        exact("mul.f16x2 %d32, %a32, %b32;", |a, b, _| both(a, b, 0, |a, b, _| H16.product(a, b))),
        exact("neg.bf16x2 %d32, %a32;", |a, _, _| (a ^ 0x8000_8000) & 0xffff_ffff),
        exact("abs.f16x2 %d32, %a32;", |a, _, _| a & 0x7fff_7fff),
        exact("min.bf16x2 %d32, %a32, %b32;", |a, b, _| both(a, b, 0, |a, b, _| Bf16.lesser(a, b))),
        exact("max.f16 %d16, %a16, %b16;", |a, b, _| H16.greater(low(a), low(b))),
        exact("max.NaN.bf16x2 %d32, %a32, %b32;", |a, b, _| {
            both(
                a,
                b,
                0,
                |a, b, _| if Bf16.is_nan(a) || Bf16.is_nan(b) { 0x7fff } else { Bf16.greater(a, b) },
            )
        }),
        // Approximations: the float function's result, rounded.
        exact("ex2.approx.f16x2 %d32, %a32;", |a, _, _| {
            both(a, 0, 0, |a, _, _| rounded(H16, H16.value(a).exp2()))
        }),
        exact("ex2.approx.ftz.bf16x2 %d32, %a32;", |a, _, _| {
            let flush = |x: u64| if x & 0x7fff < 0x80 { x & 0x8000 } else { x };
            both(a, 0, 0, |a, _, _| flush(rounded(Bf16, Bf16.value(flush(a)).exp2())))
        }),
        exact("tanh.approx.bf16x2 %d32, %a32;", |a, _, _| {
            both(a, 0, 0, |a, _, _| rounded(Bf16, Bf16.value(a).tanh()))
        }),
        exact("tanh.approx.f16 %d16, %a16;", |a, _, _| rounded(H16, H16.value(low(a)).tanh())),
        exact("min.ftz.f16 %d16, %a16, %b16;", |a, b, _| {
            let flush = |x: u64| if x & 0x7fff < 0x400 { x & 0x8000 } else { x };
            H16.lesser(flush(low(a)), flush(low(b)))
        }),
    ]
}
