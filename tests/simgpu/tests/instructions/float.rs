//! Arithmetic of floats and doubles.

use crate::{
    exact::{Exact, F32, Mode},
    rows::{Row, Rows, f32_row, f64_row, near},
};

/// Zeros, ones, ties of rounding, the ends of the normal and subnormal ranges, infinities, NaNs quiet and signalling.
pub(crate) const F32_EDGES: [u32; 20] = [
    0x0000_0000,
    0x8000_0000,
    0x3f80_0000, // 1
    0xbf80_0000,
    0x3f80_0001, // the next after 1
    0x3fc0_0000, // 1.5
    0xc020_0000, // -2.5
    0x3dcc_cccd, // 0.1
    0x4b80_0001, // 2^24 + 2
    0x3380_0000, // 2^-24
    0x0000_0001, // the least subnormal
    0x807f_ffff, // the largest subnormal, negative
    0x0080_0000, // the least normal
    0x7f7f_ffff, // the largest
    0xff7f_ffff,
    0x7f80_0000, // infinities
    0xff80_0000,
    0x7fc0_0000, // NaNs
    0x7f80_0001,
    0x7e80_0000, // 2^126
];

const F64_EDGES: [f64; 16] = [
    0.0,
    -0.0,
    1.0,
    -1.5,
    0.1,
    3.0e-5,
    -1.0e300,
    f64::MAX,
    f64::MIN_POSITIVE,
    5e-324,
    -2.0e-310,
    f64::INFINITY,
    f64::NEG_INFINITY,
    f64::NAN,
    9_007_199_254_740_993.0,
    -0.5,
];

pub(crate) fn rows() -> Rows {
    let singles = F32_EDGES.iter().map(|&bits| bits.into());
    Rows {
        kernel: "floats",
        sources: 3,
        values: singles.chain(F64_EDGES.map(f64::to_bits)).collect(),
        rows: list(),
    }
}

/// Roundings of single precision other than to nearest, whose reference is slower.
pub(crate) fn directed_rows() -> Rows {
    Rows {
        kernel: "directed",
        sources: 3,
        values: F32_EDGES.iter().map(|&bits| bits.into()).collect(),
        rows: directed(),
    }
}

#[test]
fn float_arithmetic_is_exact_and_approximations_are_near() {
    rows().check();
}

#[test]
fn directed_rounding_is_exact() {
    directed_rows().check();
}

pub(crate) fn f32_of(x: u64) -> f32 {
    f32::from_bits(x as u32)
}

pub(crate) fn f64_of(x: u64) -> f64 {
    f64::from_bits(x)
}

fn bits(x: f32) -> u64 {
    x.to_bits().into()
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

fn saturate(x: f32) -> f32 {
    if x.is_nan() { 0.0 } else { x.clamp(0.0, 1.0) + 0.0 }
}

/// -0 is less than +0, a number is preferred to a NaN.
fn lesser(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f32::from_bits(0x7fff_ffff),
        (true, false) => b,
        (false, true) => a,
        _ if a == b => {
            if a.is_sign_negative() {
                a
            } else {
                b
            }
        }
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

fn greater(a: f32, b: f32) -> f32 {
    if a.is_nan() && b.is_nan() { f32::from_bits(0x7fff_ffff) } else { -lesser(-a, -b) }
}

fn canonical(x: f32, a: f32, b: f32) -> u64 {
    if a.is_nan() || b.is_nan() { 0x7fff_ffff } else { bits(x) }
}

fn unary(a: u64, f: fn(f64) -> f64) -> u64 {
    bits(f(f32_of(a).into()) as f32)
}

fn list() -> Vec<Row> {
    vec![
        f32_row("add.f32 %d32, %a32, %b32;", |a, b, _| bits(f32_of(a) + f32_of(b))),
        f32_row("add.rn.ftz.f32 %d32, %a32, %b32;", |a, b, _| {
            bits(flush(flush(f32_of(a)) + flush(f32_of(b))))
        }),
        f32_row("add.sat.f32 %d32, %a32, %b32;", |a, b, _| bits(saturate(f32_of(a) + f32_of(b)))),
        f32_row("sub.f32 %d32, %a32, %b32;", |a, b, _| bits(f32_of(a) - f32_of(b))),
        f32_row("mul.f32 %d32, %a32, %b32;", |a, b, _| bits(f32_of(a) * f32_of(b))),
        f32_row("mul.rn.f32 %d32, %a32, 0f40490FDB;", |a, _, _| bits(f32_of(a) * std::f32::consts::PI)),
        f32_row("mul.ftz.f32 %d32, %a32, %b32;", |a, b, _| bits(flush(flush(f32_of(a)) * flush(f32_of(b))))),
        f32_row("fma.rn.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            bits(f32_of(a).mul_add(f32_of(b), f32_of(c)))
        }),
        f32_row("fma.rn.ftz.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            bits(flush(flush(f32_of(a)).mul_add(flush(f32_of(b)), flush(f32_of(c)))))
        }),
        f32_row("fma.rn.sat.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            bits(saturate(f32_of(a).mul_add(f32_of(b), f32_of(c))))
        }),
        f32_row("mad.rn.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            bits(f32_of(a).mul_add(f32_of(b), f32_of(c)))
        }),
        // Two roundings, not one.
        f32_row("mul.f32 %d32, %a32, %b32; add.f32 %d32, %d32, %c32;", |a, b, c| {
            bits(f32_of(a) * f32_of(b) + f32_of(c))
        }),
        f32_row("div.rn.f32 %d32, %a32, %b32;", |a, b, _| bits(f32_of(a) / f32_of(b))),
        near("div.full.f32 %d32, %a32, %b32;", 2, |a, b, _| bits(f32_of(a) / f32_of(b))),
        near("div.approx.f32 %d32, %a32, %b32;", 2, |a, b, _| {
            let (a, b) = (f32_of(a), f32_of(b));
            if !b.is_finite() || b.abs() <= 2.0_f32.powi(126) {
                bits(a / b)
            } else if a.is_infinite() || a.is_nan() {
                bits(f32::NAN)
            } else {
                bits(0.0_f32.copysign(a) * 1.0_f32.copysign(b))
            }
        }),
        f32_row("rcp.rn.f32 %d32, %a32;", |a, _, _| bits(1.0 / f32_of(a))),
        near("rcp.approx.ftz.f32 %d32, %a32;", 1, |a, _, _| bits(flush(1.0 / flush(f32_of(a))))),
        f32_row("sqrt.rn.f32 %d32, %a32;", |a, _, _| bits(f32_of(a).sqrt())),
        near("sqrt.approx.f32 %d32, %a32;", 2, |a, _, _| bits(f32_of(a).sqrt())),
        near("rsqrt.approx.f32 %d32, %a32;", 2, |a, _, _| unary(a, |x| 1.0 / x.sqrt())),
        near("ex2.approx.f32 %d32, %a32;", 2, |a, _, _| unary(a, f64::exp2)),
        near("ex2.approx.ftz.f32 %d32, %a32;", 2, |a, _, _| {
            bits(flush(f64::from(flush(f32_of(a))).exp2() as f32))
        }),
        near("lg2.approx.f32 %d32, %a32;", 2, |a, _, _| unary(a, f64::log2)),
        near("lg2.approx.ftz.f32 %d32, %a32;", 2, |a, _, _| bits(f64::from(flush(f32_of(a))).log2() as f32)),
        near("sin.approx.f32 %d32, %a32;", 2, |a, _, _| unary(a, f64::sin)),
        near("cos.approx.f32 %d32, %a32;", 2, |a, _, _| unary(a, f64::cos)),
        near("tanh.approx.f32 %d32, %a32;", 2, |a, _, _| unary(a, f64::tanh)),
        f32_row("neg.f32 %d32, %a32;", |a, _, _| (a ^ 0x8000_0000) & 0xffff_ffff),
        f32_row("abs.f32 %d32, %a32;", |a, _, _| a & 0x7fff_ffff),
        f32_row("abs.ftz.f32 %d32, %a32;", |a, _, _| bits(flush(f32_of(a).abs()))),
        // The first gives the sign.
        f32_row("copysign.f32 %d32, %a32, %b32;", |a, b, _| a & 0x8000_0000 | b & 0x7fff_ffff),
        f32_row("min.f32 %d32, %a32, %b32;", |a, b, _| bits(lesser(f32_of(a), f32_of(b)))),
        f32_row("max.f32 %d32, %a32, %b32;", |a, b, _| bits(greater(f32_of(a), f32_of(b)))),
        f32_row("min.NaN.f32 %d32, %a32, %b32;", |a, b, _| {
            canonical(lesser(f32_of(a), f32_of(b)), f32_of(a), f32_of(b))
        }),
        f32_row("max.NaN.f32 %d32, %a32, %b32;", |a, b, _| {
            canonical(greater(f32_of(a), f32_of(b)), f32_of(a), f32_of(b))
        }),
        f32_row("max.ftz.f32 %d32, %a32, %b32;", |a, b, _| bits(greater(flush(f32_of(a)), flush(f32_of(b))))),
        f32_row("max.xorsign.abs.f32 %d32, %a32, %b32;", |a, b, _| {
            bits(greater(f32_of(a).abs(), f32_of(b).abs())) & 0x7fff_ffff | (a ^ b) & 0x8000_0000
        }),
        // Copies keep every bit.
        crate::rows::exact("mov.f32 %d32, %a32;", |a, _, _| a & 0xffff_ffff),
        f64_row("add.f64 %d64, %a64, %b64;", |a, b, _| (f64_of(a) + f64_of(b)).to_bits()),
        f64_row("sub.rn.f64 %d64, %a64, %b64;", |a, b, _| (f64_of(a) - f64_of(b)).to_bits()),
        f64_row("mul.f64 %d64, %a64, %b64;", |a, b, _| (f64_of(a) * f64_of(b)).to_bits()),
        f64_row("fma.rn.f64 %d64, %a64, %b64, %c64;", |a, b, c| {
            f64_of(a).mul_add(f64_of(b), f64_of(c)).to_bits()
        }),
        f64_row("div.rn.f64 %d64, %a64, %b64;", |a, b, _| (f64_of(a) / f64_of(b)).to_bits()),
        f64_row("rcp.rn.f64 %d64, %a64;", |a, _, _| (1.0 / f64_of(a)).to_bits()),
        f64_row("sqrt.rn.f64 %d64, %a64;", |a, _, _| f64_of(a).sqrt().to_bits()),
        f64_row("rcp.approx.ftz.f64 %d64, %a64;", |a, _, _| {
            let flushed = if f64_of(a).is_subnormal() { 0.0_f64.copysign(f64_of(a)) } else { f64_of(a) };
            let x = 1.0 / flushed;
            let x = if x.is_subnormal() { 0.0_f64.copysign(x) } else { x };
            x.to_bits() & 0xffff_ffff_0000_0000
        }),
        f64_row("neg.f64 %d64, %a64;", |a, _, _| a ^ 1 << 63),
        f64_row("abs.f64 %d64, %a64;", |a, _, _| a & !(1 << 63)),
        f64_row("max.f64 %d64, %a64, %b64;", |a, b, _| {
            let (x, y) = (f64_of(a), f64_of(b));
            if x == y { if x.is_sign_negative() { b } else { a } } else { x.max(y).to_bits() }
        }),
        f64_row("copysign.f64 %d64, %a64, %b64;", |a, b, _| a & 1 << 63 | b & !(1 << 63)),
    ]
}

/// a·b + c under a rounding mode; a zero's sign as IEEE 754 has it.
fn fused(a: f32, b: f32, c: f32, mode: Mode) -> u64 {
    if !(a.is_finite() && b.is_finite() && c.is_finite()) {
        return bits(a.mul_add(b, c));
    }
    let sum = Exact::product(a, b).plus(Exact::of(c));
    if !sum.is_zero() {
        return sum.round(F32, mode);
    }
    let product_negative = a.is_sign_negative() != b.is_sign_negative();
    let same_sign_zeros = (a == 0.0 || b == 0.0) && c == 0.0 && product_negative == c.is_sign_negative();
    let negative = if same_sign_zeros { product_negative } else { mode == Mode::Down };
    u64::from(negative) << 31
}

/// The quotient is the float q on the mode's side of a/b: found by comparing q·b with a exactly.
fn quotient(a: f32, b: f32, mode: Mode) -> u64 {
    let nearest = a / b;
    if !(a.is_finite() && b.is_finite()) || b == 0.0 || a == 0.0 {
        return bits(nearest);
    }
    let negative = nearest.is_sign_negative();
    // In magnitudes: the largest float whose product does not exceed |a|.
    let (a, b) = (a.abs(), b.abs());
    let exceeds = |q: f32| !q.is_finite() || Exact::product(q, b).plus(Exact::of(a).negated()).is_exceeding();
    let mut below = (a / b).min(f32::MAX);
    while exceeds(below) {
        below = below.next_down();
    }
    while !exceeds(below.next_up()) {
        below = below.next_up();
    }
    let inexact = !Exact::product(below, b).plus(Exact::of(a).negated()).is_zero();
    let away = inexact && ((mode == Mode::Up && !negative) || (mode == Mode::Down && negative));
    let magnitude = if away { below.next_up() } else { below };
    bits(if negative { -magnitude } else { magnitude })
}

fn root(a: f32, mode: Mode) -> u64 {
    if !a.is_finite() || a <= 0.0 {
        return bits(a.sqrt());
    }
    let exceeds = |q: f32| Exact::product(q, q).plus(Exact::of(a).negated()).is_exceeding();
    let mut below = a.sqrt();
    while exceeds(below) {
        below = below.next_down();
    }
    let inexact = !Exact::product(below, below).plus(Exact::of(a).negated()).is_zero();
    bits(if inexact && mode == Mode::Up { below.next_up() } else { below })
}

fn directed() -> Vec<Row> {
    vec![
        f32_row("add.rz.f32 %d32, %a32, %b32;", |a, b, _| fused(f32_of(a), 1.0, f32_of(b), Mode::Zero)),
        f32_row("add.rm.f32 %d32, %a32, %b32;", |a, b, _| fused(f32_of(a), 1.0, f32_of(b), Mode::Down)),
        f32_row("sub.rp.f32 %d32, %a32, %b32;", |a, b, _| fused(f32_of(a), 1.0, -f32_of(b), Mode::Up)),
        f32_row("mul.rz.f32 %d32, %a32, %b32;", |a, b, _| product(f32_of(a), f32_of(b), Mode::Zero)),
        f32_row("mul.rm.f32 %d32, %a32, %b32;", |a, b, _| product(f32_of(a), f32_of(b), Mode::Down)),
        f32_row("mul.rp.f32 %d32, %a32, %b32;", |a, b, _| product(f32_of(a), f32_of(b), Mode::Up)),
        f32_row("fma.rz.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            fused(f32_of(a), f32_of(b), f32_of(c), Mode::Zero)
        }),
        f32_row("fma.rm.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            fused(f32_of(a), f32_of(b), f32_of(c), Mode::Down)
        }),
        f32_row("fma.rp.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            fused(f32_of(a), f32_of(b), f32_of(c), Mode::Up)
        }),
        f32_row("div.rz.f32 %d32, %a32, %b32;", |a, b, _| quotient(f32_of(a), f32_of(b), Mode::Zero)),
        f32_row("div.rm.f32 %d32, %a32, %b32;", |a, b, _| quotient(f32_of(a), f32_of(b), Mode::Down)),
        f32_row("div.rp.f32 %d32, %a32, %b32;", |a, b, _| quotient(f32_of(a), f32_of(b), Mode::Up)),
        f32_row("rcp.rz.f32 %d32, %a32;", |a, _, _| quotient(1.0, f32_of(a), Mode::Zero)),
        f32_row("sqrt.rz.f32 %d32, %a32;", |a, _, _| root(f32_of(a), Mode::Zero)),
        f32_row("sqrt.rp.f32 %d32, %a32;", |a, _, _| root(f32_of(a), Mode::Up)),
    ]
}

fn product(a: f32, b: f32, mode: Mode) -> u64 {
    let exact = if a.is_finite() && b.is_finite() { Some(Exact::product(a, b)) } else { None };
    match exact {
        Some(exact) if !exact.is_zero() => exact.round(F32, mode),
        _ => bits(a * b),
    }
}
