//! Conversions.

use crate::{
    exact::{BF16, Exact, F16, F32, Format, Mode},
    float::{F32_EDGES, f32_of, f64_of},
    half::PAIRS,
    integer::EDGES,
    rows::{Row, Rows, exact, f32_row, f64_row},
};

pub(crate) fn rows() -> Rows {
    // Halves between integers, and the ends of the integer types, as floats and doubles.
    let singles =
        [0.5f32, -0.5, 2.5, -3.5, 127.5, 255.5, -128.5, 65535.5, 2147483648.0, -2147483904.0, 4294967296.0]
            .map(|x| x.to_bits().into());
    let doubles = [
        0.5,
        -1.5,
        2147483647.5,
        -2147483648.5,
        4294967295.5,
        9.3e18,
        -9.3e18,
        1.9e19,
        1e300,
        f64::NAN,
        1e-310,
    ]
    .map(f64::to_bits);
    let values: Vec<u64> = singles.into_iter().chain(doubles).chain(EDGES).chain(PAIRS).collect();
    // One source: the others only repeat it.
    Rows {
        kernel: "conversions",
        sources: 2,
        values: values.into_iter().chain(F32_EDGES.map(u64::from)).collect(),
        rows: list(),
    }
}

#[test]
fn conversions_are_exact() {
    rows().check();
}

fn rounded(x: f32, format: Format, mode: Mode) -> u64 {
    let infinity = ((2 * format.highest + 1) as u64) << (format.precision - 1);
    let sign = u64::from(x.is_sign_negative()) << (format.width - 1);
    match x {
        _ if x.is_nan() => (1 << (format.width - 1)) - 1,
        _ if x.is_infinite() => sign | infinity,
        _ if x == 0.0 => sign,
        _ => Exact::of(x).round(format, mode),
    }
}

/// A double, whose low bits beyond the float's are kept by splitting it in two floats where it is in their range.
fn double_rounded(x: f64, mode: Mode) -> u64 {
    let nearest = x as f32;
    if !nearest.is_finite() || !x.is_finite() || x == 0.0 {
        let overflow = x.is_finite() && nearest.is_infinite();
        let largest = overflow
            && match mode {
                Mode::Nearest => false,
                Mode::Zero => true,
                Mode::Down => x > 0.0,
                Mode::Up => x < 0.0,
            };
        return if largest { f32::MAX.copysign(nearest).to_bits().into() } else { nearest.to_bits().into() };
    }
    let (below, above) = match f64::from(nearest).total_cmp(&x) {
        std::cmp::Ordering::Equal => (nearest, nearest),
        std::cmp::Ordering::Less => (nearest, nearest.next_up()),
        std::cmp::Ordering::Greater => (nearest.next_down(), nearest),
    };
    let result = match mode {
        Mode::Nearest => nearest,
        Mode::Zero => {
            if x > 0.0 {
                below
            } else {
                above
            }
        }
        Mode::Down => below,
        Mode::Up => above,
    };
    // A zero reached by rounding keeps the number's sign.
    let result = if result == 0.0 { 0.0_f32.copysign(x as f32) } else { result };
    result.to_bits().into()
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

fn relu(x: u64) -> u64 {
    if x & 0x8000 != 0 { 0 } else { x }
}

fn bf16_value(x: u64) -> u64 {
    x << 16 & 0xffff_0000
}

fn half_value(x: u64) -> f32 {
    let (exponent, fraction) = ((x >> 10 & 31) as i32, (x & 0x3ff) as f32);
    let magnitude = match exponent {
        0 => fraction * 2.0_f32.powi(-24),
        31 => {
            if fraction == 0.0 {
                f32::INFINITY
            } else {
                f32::NAN
            }
        }
        _ => (fraction + 1024.0) * 2.0_f32.powi(exponent - 25),
    };
    if x >> 15 & 1 == 1 { -magnitude } else { magnitude }
}

fn single(x: u64) -> u64 {
    f32_of(x).to_bits().into()
}

fn bits(x: f32) -> u64 {
    x.to_bits().into()
}

fn list() -> Vec<Row> {
    let mut rows = integers();
    rows.extend(floats());
    rows.extend(mixed());
    rows
}

fn integers() -> Vec<Row> {
    vec![
        exact("cvt.u32.u16 %d32, %a16;", |a, _, _| a & 0xffff),
        exact("cvt.s32.s16 %d32, %a16;", |a, _, _| u64::from(i32::from(a as i16) as u32)),
        exact("cvt.s32.s8 %d32, %a32;", |a, _, _| u64::from(i32::from(a as i8) as u32)),
        exact("cvt.u16.u8 %d16, %a16;", |a, _, _| a & 0xff),
        exact("cvt.s64.s32 %d64, %a32;", |a, _, _| i64::from(a as i32) as u64),
        exact("cvt.u64.u32 %d64, %a32;", |a, _, _| a & 0xffff_ffff),
        exact("cvt.u32.u64 %d32, %a64;", |a, _, _| a & 0xffff_ffff),
        exact("cvt.s16.s64 %d16, %a64;", |a, _, _| a & 0xffff),
        // The register is wider than the type: it is filled with the sign.
        exact("cvt.s8.s32 %d32, %a32;", |a, _, _| u64::from(i32::from(a as i8) as u32)),
        exact("cvt.u8.u32 %d32, %a32;", |a, _, _| a & 0xff),
        exact("cvt.sat.s8.s32 %d32, %a32;", |a, _, _| {
            u64::from(i32::from((a as i32).clamp(-128, 127) as i8) as u32)
        }),
        exact("cvt.sat.u8.s32 %d32, %a32;", |a, _, _| (a as i32).clamp(0, 255) as u64),
        exact("cvt.sat.u32.s64 %d32, %a64;", |a, _, _| (a as i64).clamp(0, 0xffff_ffff) as u64),
        exact("cvt.sat.s32.u32 %d32, %a32;", |a, _, _| (a & 0xffff_ffff).min(0x7fff_ffff)),
        exact("cvt.sat.u64.s64 %d64, %a64;", |a, _, _| (a as i64).max(0) as u64),
    ]
}

fn floats() -> Vec<Row> {
    vec![
        exact("cvt.rn.bf16.f32 %d16, %a32;", |a, _, _| rounded(f32_of(a), BF16, Mode::Nearest)),
        exact("cvt.rz.bf16.f32 %d16, %a32;", |a, _, _| rounded(f32_of(a), BF16, Mode::Zero)),
        exact("cvt.rn.relu.bf16.f32 %d16, %a32;", |a, _, _| relu(rounded(f32_of(a), BF16, Mode::Nearest))),
        exact("cvt.rn.f16.f32 %d16, %a32;", |a, _, _| rounded(f32_of(a), F16, Mode::Nearest)),
        exact("cvt.rz.f16.f32 %d16, %a32;", |a, _, _| rounded(f32_of(a), F16, Mode::Zero)),
        exact("cvt.rm.f16.f32 %d16, %a32;", |a, _, _| rounded(f32_of(a), F16, Mode::Down)),
        exact("cvt.rp.f16.f32 %d16, %a32;", |a, _, _| rounded(f32_of(a), F16, Mode::Up)),
        exact("cvt.rn.bf16x2.f32 %d32, %a32, %b32;", |a, b, _| {
            rounded(f32_of(a), BF16, Mode::Nearest) << 16 | rounded(f32_of(b), BF16, Mode::Nearest)
        }),
        exact("cvt.rn.f16x2.f32 %d32, %a32, %b32;", |a, b, _| {
            rounded(f32_of(a), F16, Mode::Nearest) << 16 | rounded(f32_of(b), F16, Mode::Nearest)
        }),
        exact("cvt.rz.bf16x2.f32 %d32, %a32, %b32;", |a, b, _| {
            rounded(f32_of(a), BF16, Mode::Zero) << 16 | rounded(f32_of(b), BF16, Mode::Zero)
        }),
        exact("cvt.rn.relu.bf16x2.f32 %d32, %a32, %b32;", |a, b, _| {
            relu(rounded(f32_of(a), BF16, Mode::Nearest)) << 16
                | relu(rounded(f32_of(b), BF16, Mode::Nearest))
        }),
        f32_row("cvt.f32.bf16 %d32, %a16;", |a, _, _| bf16_value(a)),
        f32_row("cvt.f32.f16 %d32, %a16;", |a, _, _| bits(half_value(a))),
        f64_row("cvt.f64.f16 %d64, %a16;", |a, _, _| f64::from(half_value(a)).to_bits()),
        f64_row("cvt.f64.f32 %d64, %a32;", |a, _, _| f64::from(f32_of(a)).to_bits()),
        f32_row("cvt.rn.f32.f64 %d32, %a64;", |a, _, _| double_rounded(f64_of(a), Mode::Nearest)),
        f32_row("cvt.rz.f32.f64 %d32, %a64;", |a, _, _| double_rounded(f64_of(a), Mode::Zero)),
        f32_row("cvt.rm.f32.f64 %d32, %a64;", |a, _, _| double_rounded(f64_of(a), Mode::Down)),
        f32_row("cvt.rp.f32.f64 %d32, %a64;", |a, _, _| double_rounded(f64_of(a), Mode::Up)),
        f32_row("cvt.sat.f32.f32 %d32, %a32;", |a, _, _| {
            if f32_of(a).is_nan() { 0 } else { bits(f32_of(a).clamp(0.0, 1.0) + 0.0) }
        }),
        f32_row("cvt.ftz.f32.f32 %d32, %a32;", |a, _, _| bits(flush(f32_of(a)))),
        f32_row("cvt.rni.f32.f32 %d32, %a32;", |a, _, _| bits(f32_of(a).round_ties_even())),
        f32_row("cvt.rzi.f32.f32 %d32, %a32;", |a, _, _| bits(f32_of(a).trunc())),
        f32_row("cvt.rmi.f32.f32 %d32, %a32;", |a, _, _| bits(f32_of(a).floor())),
        f32_row("cvt.rpi.f32.f32 %d32, %a32;", |a, _, _| bits(f32_of(a).ceil())),
        f64_row("cvt.rni.f64.f64 %d64, %a64;", |a, _, _| f64_of(a).round_ties_even().to_bits()),
        f32_row("mov.b32 %d32, %a32;", |a, _, _| single(a)),
    ]
}

/// An integer rounded to a float of the format.
fn float_of(x: i64, mode: Mode) -> u64 {
    // Both halves are floats without rounding.
    let (high, low) = (x >> 24 << 24, x & 0xff_ffff);
    let parts = [high >> 40 << 40, high & 0xff_ffff_ffff, low];
    if x == 0 {
        return 0;
    }
    parts
        .iter()
        .map(|&part| Exact::of(part as f32))
        .reduce(Exact::plus)
        .expect("three parts")
        .round(F32, mode)
}

fn mixed() -> Vec<Row> {
    vec![
        exact("cvt.rzi.s32.f32 %d32, %a32;", |a, _, _| u64::from(f32_of(a).trunc() as i32 as u32)),
        exact("cvt.rni.s32.f32 %d32, %a32;", |a, _, _| u64::from(f32_of(a).round_ties_even() as i32 as u32)),
        exact("cvt.rmi.s32.f32 %d32, %a32;", |a, _, _| u64::from(f32_of(a).floor() as i32 as u32)),
        exact("cvt.rpi.u32.f32 %d32, %a32;", |a, _, _| u64::from(f32_of(a).ceil() as u32)),
        exact("cvt.rzi.ftz.u32.f32 %d32, %a32;", |a, _, _| u64::from(f32_of(a) as u32)),
        exact("cvt.rzi.u16.f32 %d16, %a32;", |a, _, _| u64::from(f32_of(a) as u16)),
        exact("cvt.rzi.s8.f32 %d32, %a32;", |a, _, _| u64::from(i32::from(f32_of(a) as i8) as u32)),
        // A NaN is not zero where 64 bits take part.
        exact("cvt.rzi.s64.f32 %d64, %a32;", |a, _, _| {
            if f32_of(a).is_nan() { 1 << 63 } else { f32_of(a) as i64 as u64 }
        }),
        exact(
            "cvt.rzi.u64.f64 %d64, %a64;",
            |a, _, _| {
                if f64_of(a).is_nan() { 1 << 63 } else { f64_of(a) as u64 }
            },
        ),
        exact("cvt.rzi.s32.f64 %d32, %a64;", |a, _, _| {
            if f64_of(a).is_nan() { 1 << 31 } else { u64::from(f64_of(a) as i32 as u32) }
        }),
        exact("cvt.rni.s64.f64 %d64, %a64;", |a, _, _| {
            if f64_of(a).is_nan() { 1 << 63 } else { f64_of(a).round_ties_even() as i64 as u64 }
        }),
        exact("cvt.rzi.s32.f16 %d32, %a16;", |a, _, _| u64::from(half_value(a) as i32 as u32)),
        exact("cvt.rn.f32.s32 %d32, %a32;", |a, _, _| bits(a as i32 as f32)),
        exact("cvt.rz.f32.s32 %d32, %a32;", |a, _, _| float_of((a as i32).into(), Mode::Zero)),
        exact("cvt.rm.f32.u32 %d32, %a32;", |a, _, _| float_of((a as u32).into(), Mode::Down)),
        exact("cvt.rp.f32.s64 %d32, %a64;", |a, _, _| float_of(a as i64, Mode::Up)),
        exact("cvt.rn.f32.u64 %d32, %a64;", |a, _, _| bits(a as f32)),
        exact("cvt.rn.f64.s64 %d64, %a64;", |a, _, _| (a as i64 as f64).to_bits()),
        exact("cvt.rn.f64.u32 %d64, %a32;", |a, _, _| f64::from(a as u32).to_bits()),
        exact("cvt.rn.f32.u8 %d32, %a32;", |a, _, _| bits(f32::from(a as u8))),
        exact("cvt.rn.f16.s32 %d16, %a32;", |a, _, _| {
            let exact = Exact::of((a as i32 >> 16 << 16) as f32).plus(Exact::of((a as i32 & 0xffff) as f32));
            if a as i32 == 0 { 0 } else { exact.round(F16, Mode::Nearest) }
        }),
    ]
}
