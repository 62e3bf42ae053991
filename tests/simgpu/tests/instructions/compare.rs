//! Comparisons and selections.

use crate::{
    float::{F32_EDGES, f32_of, f64_of},
    integer::EDGES,
    rows::{Row, Rows, exact},
};

pub(crate) fn rows() -> Rows {
    // Floats of both widths and integers: a double whose low half is a float of interest.
    let doubles = F32_EDGES.iter().map(|&bits| f64::from(f32::from_bits(bits)).to_bits());
    let values = F32_EDGES
        .iter()
        .map(|&bits| bits.into())
        .chain(doubles.step_by(3))
        .chain(EDGES.into_iter().step_by(4));
    Rows { kernel: "compare", sources: 3, values: values.collect(), rows: list() }
}

#[test]
fn comparisons_and_selections_are_exact() {
    rows().check();
}

fn both(a: u64, b: u64, holds: fn(f32, f32) -> bool) -> u64 {
    holds(f32_of(a), f32_of(b)).into()
}

fn unordered(a: f32, b: f32) -> bool {
    a.is_nan() || b.is_nan()
}

fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0_f32.copysign(x) } else { x }
}

fn list() -> Vec<Row> {
    vec![
        exact("setp.eq.s32 %dp, %a32, %b32;", |a, b, _| (a as i32 == b as i32).into()),
        exact("setp.ne.b64 %dp, %a64, %b64;", |a, b, _| (a != b).into()),
        exact("setp.lt.s32 %dp, %a32, %b32;", |a, b, _| ((a as i32) < b as i32).into()),
        exact("setp.lt.u32 %dp, %a32, %b32;", |a, b, _| ((a as u32) < b as u32).into()),
        exact("setp.le.s64 %dp, %a64, %b64;", |a, b, _| (a as i64 <= b as i64).into()),
        exact("setp.gt.s16 %dp, %a16, %b16;", |a, b, _| (a as i16 > b as i16).into()),
        exact("setp.ge.u16 %dp, %a16, %b16;", |a, b, _| (a as u16 >= b as u16).into()),
        exact("setp.lo.u32 %dp, %a32, %b32;", |a, b, _| ((a as u32) < b as u32).into()),
        exact("setp.ls.u32 %dp, %a32, %b32;", |a, b, _| (a as u32 <= b as u32).into()),
        exact("setp.hi.u64 %dp, %a64, %b64;", |a, b, _| (a > b).into()),
        exact("setp.hs.u32 %dp, %a32, %b32;", |a, b, _| (a as u32 >= b as u32).into()),
        exact("setp.gt.u32 %dp, %a32, 7;", |a, _, _| (a as u32 > 7).into()),
        exact("setp.lt.s32 %dp, %a32, -1;", |a, _, _| ((a as i32) < -1).into()),
        exact("setp.eq.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a == b)),
        exact("setp.ne.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a != b && !unordered(a, b))),
        exact("setp.lt.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a < b)),
        exact("setp.le.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a <= b)),
        exact("setp.gt.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a > b)),
        exact("setp.ge.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a >= b)),
        exact("setp.equ.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a == b || unordered(a, b))),
        exact("setp.neu.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a != b || unordered(a, b))),
        exact("setp.ltu.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a < b || unordered(a, b))),
        exact("setp.leu.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a <= b || unordered(a, b))),
        exact("setp.gtu.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a > b || unordered(a, b))),
        exact("setp.geu.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| a >= b || unordered(a, b))),
        exact("setp.num.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| !unordered(a, b))),
        exact("setp.nan.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, unordered)),
        exact("setp.lt.ftz.f32 %dp, %a32, %b32;", |a, b, _| both(a, b, |a, b| flushed(a) < flushed(b))),
        exact("setp.neu.f64 %dp, %a64, %b64;", |a, b, _| (f64_of(a) != f64_of(b)).into()),
        exact("setp.lt.f64 %dp, %a64, %b64;", |a, b, _| (f64_of(a) < f64_of(b)).into()),
        exact("setp.gt.bf16 %dp, %a16, %b16;", |a, b, _| both(a << 16, b << 16, |a, b| a > b)),
        exact("setp.lt.and.s32 %dp, %a32, %b32, %cp;", |a, b, c| u64::from((a as i32) < b as i32) & c & 1),
        exact("setp.lt.or.f32 %dp, %a32, %b32, !%cp;", |a, b, c| both(a, b, |a, b| a < b) | (!c & 1)),
        exact("setp.eq.xor.b32 %dp, %a32, %b32, %cp;", |a, b, c| u64::from(a as u32 == b as u32) ^ (c & 1)),
        // Two destinations: the comparison and its opposite, each combined.
        exact("{ .reg .pred %q; setp.lt.s32 %dp|%q, %a32, %b32; xor.pred %dp, %dp, %q; }", |_, _, _| 1),
        exact("{ .reg .pred %q; setp.lt.and.f32 %q|%dp, %a32, %b32, %cp; }", |a, b, c| {
            both(a, b, |a, b| a >= b || unordered(a, b)) & c & 1
        }),
        exact(
            "{ .reg .pred %q; setp.geu.or.f32 %dp|%q, %a32, %b32, %cp; @%q not.pred %dp, %dp; }",
            |a, b, c| {
                let holds = both(a, b, |a, b| a >= b || unordered(a, b));
                (holds | c & 1) ^ ((1 - holds) | c & 1)
            },
        ),
        exact(
            "set.gt.u32.s32 %d32, %a32, %b32;",
            |a, b, _| if a as i32 > b as i32 { 0xffff_ffff } else { 0 },
        ),
        exact("set.lt.f32.f32 %d32, %a32, %b32;", |a, b, _| both(a, b, |a, b| a < b) * 0x3f80_0000),
        exact("set.eq.and.u32.f32 %d32, %a32, %b32, %cp;", |a, b, c| {
            (both(a, b, |a, b| a == b) & c & 1) * 0xffff_ffff
        }),
        exact("selp.b32 %d32, %a32, %b32, %cp;", |a, b, c| (if c & 1 == 1 { a } else { b }) & 0xffff_ffff),
        exact("selp.f64 %d64, %a64, %b64, %cp;", |a, b, c| if c & 1 == 1 { a } else { b }),
        exact("selp.u16 %d16, %a16, 5, !%cp;", |a, _, c| if c & 1 == 0 { a & 0xffff } else { 5 }),
        exact("selp.f32 %d32, 0f3F800000, %b32, %cp;", |_, b, c| {
            if c & 1 == 1 { 0x3f80_0000 } else { b & 0xffff_ffff }
        }),
        exact("slct.b32.s32 %d32, %a32, %b32, %c32;", |a, b, c| {
            (if c as i32 >= 0 { a } else { b }) & 0xffff_ffff
        }),
        exact("slct.u64.f32 %d64, %a64, %b64, %c32;", |a, b, c| if f32_of(c) >= 0.0 { a } else { b }),
        exact("slct.ftz.f32.f32 %d32, %a32, %b32, %c32;", |a, b, c| {
            (if flushed(f32_of(c)) >= 0.0 { a } else { b }) & 0xffff_ffff
        }),
        exact("testp.finite.f32 %dp, %a32;", |a, _, _| f32_of(a).is_finite().into()),
        exact("testp.infinite.f32 %dp, %a32;", |a, _, _| f32_of(a).is_infinite().into()),
        exact("testp.number.f32 %dp, %a32;", |a, _, _| (!f32_of(a).is_nan()).into()),
        exact("testp.notanumber.f64 %dp, %a64;", |a, _, _| f64_of(a).is_nan().into()),
        exact("testp.normal.f32 %dp, %a32;", |a, _, _| f32_of(a).is_normal().into()),
        exact("testp.subnormal.f32 %dp, %a32;", |a, _, _| f32_of(a).is_subnormal().into()),
    ]
}
