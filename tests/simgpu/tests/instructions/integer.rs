//! Integer arithmetic. The edge values are those of all widths, since a register's low bits are narrower values.

use crate::rows::{Row, Rows, exact};

pub(crate) const EDGES: [u64; 18] = [
    0,
    1,
    2,
    7,
    31,
    32,
    33,
    0x7f,
    0x80,
    0x7fff,
    0x8000,
    0xffff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

pub(crate) fn rows() -> Rows {
    Rows { kernel: "integer", sources: 3, values: EDGES.to_vec(), rows: list() }
}

#[test]
fn integer_arithmetic_is_exact() {
    rows().check();
}

/// A 32-bit result's register.
fn s32(x: i32) -> u64 {
    u64::from(x as u32)
}

fn s16(x: i16) -> u64 {
    u64::from(x as u16)
}

/// The sign-extended low bits.
fn i32_of(x: u64) -> i32 {
    x as i32
}

fn i16_of(x: u64) -> i16 {
    x as i16
}

fn list() -> Vec<Row> {
    vec![
        exact("add.s32 %d32, %a32, %b32;", |a, b, _| s32(i32_of(a).wrapping_add(i32_of(b)))),
        exact("add.u64 %d64, %a64, %b64;", |a, b, _| a.wrapping_add(b)),
        exact("add.s16 %d16, %a16, %b16;", |a, b, _| s16(i16_of(a).wrapping_add(i16_of(b)))),
        exact("add.sat.s32 %d32, %a32, %b32;", |a, b, _| s32(i32_of(a).saturating_add(i32_of(b)))),
        exact("sub.u32 %d32, %a32, %b32;", |a, b, _| s32(i32_of(a).wrapping_sub(i32_of(b)))),
        exact("sub.s64 %d64, %a64, %b64;", |a, b, _| a.wrapping_sub(b)),
        exact("sub.sat.s32 %d32, %a32, %b32;", |a, b, _| s32(i32_of(a).saturating_sub(i32_of(b)))),
        exact("mul.lo.s32 %d32, %a32, %b32;", |a, b, _| s32(i32_of(a).wrapping_mul(i32_of(b)))),
        exact("mul.lo.u16 %d16, %a16, %b16;", |a, b, _| s16(i16_of(a).wrapping_mul(i16_of(b)))),
        exact("mul.lo.s64 %d64, %a64, %b64;", |a, b, _| a.wrapping_mul(b)),
        exact("mul.hi.s32 %d32, %a32, %b32;", |a, b, _| {
            s32(((i64::from(i32_of(a)) * i64::from(i32_of(b))) >> 32) as i32)
        }),
        exact("mul.hi.u32 %d32, %a32, %b32;", |a, b, _| ((a & 0xffff_ffff) * (b & 0xffff_ffff)) >> 32),
        exact("mul.hi.s16 %d16, %a16, %b16;", |a, b, _| {
            s16(((i32::from(i16_of(a)) * i32::from(i16_of(b))) >> 16) as i16)
        }),
        exact("mul.hi.s64 %d64, %a64, %b64;", |a, b, _| {
            ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
        }),
        exact("mul.hi.u64 %d64, %a64, %b64;", |a, b, _| ((u128::from(a) * u128::from(b)) >> 64) as u64),
        exact("mul.wide.s32 %d64, %a32, %b32;", |a, b, _| {
            (i64::from(i32_of(a)) * i64::from(i32_of(b))) as u64
        }),
        exact("mul.wide.u32 %d64, %a32, %b32;", |a, b, _| (a & 0xffff_ffff) * (b & 0xffff_ffff)),
        exact("mul.wide.s16 %d32, %a16, %b16;", |a, b, _| s32(i32::from(i16_of(a)) * i32::from(i16_of(b)))),
        exact("mul.wide.u16 %d32, %a16, %b16;", |a, b, _| (a & 0xffff) * (b & 0xffff)),
        exact("mul24.lo.s32 %d32, %a32, %b32;", |a, b, _| {
            s32((i64::from(i32_of(a) << 8 >> 8) * i64::from(i32_of(b) << 8 >> 8)) as i32)
        }),
        exact("mul24.hi.u32 %d32, %a32, %b32;", |a, b, _| ((a & 0xff_ffff) * (b & 0xff_ffff)) >> 16),
        exact("mad.lo.s32 %d32, %a32, %b32, %c32;", |a, b, c| {
            s32(i32_of(a).wrapping_mul(i32_of(b)).wrapping_add(i32_of(c)))
        }),
        exact("mad.hi.s32 %d32, %a32, %b32, %c32;", |a, b, c| {
            s32((((i64::from(i32_of(a)) * i64::from(i32_of(b))) >> 32) as i32).wrapping_add(i32_of(c)))
        }),
        exact("mad.hi.sat.s32 %d32, %a32, %b32, %c32;", |a, b, c| {
            s32((((i64::from(i32_of(a)) * i64::from(i32_of(b))) >> 32) as i32).saturating_add(i32_of(c)))
        }),
        exact("mad.hi.u32 %d32, %a32, %b32, %c32;", |a, b, c| {
            s32(((((a & 0xffff_ffff) * (b & 0xffff_ffff)) >> 32) as i32).wrapping_add(i32_of(c)))
        }),
        exact("mad.wide.s32 %d64, %a32, %b32, %c64;", |a, b, c| {
            (i64::from(i32_of(a)) * i64::from(i32_of(b))).wrapping_add(c as i64) as u64
        }),
        exact("mad.wide.u16 %d32, %a16, %b16, %c32;", |a, b, c| {
            s32((((a & 0xffff) * (b & 0xffff)) as i32).wrapping_add(i32_of(c)))
        }),
        exact("mad.lo.u64 %d64, %a64, %b64, %c64;", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        exact("sad.s32 %d32, %a32, %b32, %c32;", |a, b, c| {
            s32(i32_of(c).wrapping_add(i32_of(a).abs_diff(i32_of(b)) as i32))
        }),
        exact("sad.u32 %d32, %a32, %b32, %c32;", |a, b, c| {
            u64::from((c as u32).wrapping_add((a as u32).abs_diff(b as u32)))
        }),
        // Division by zero is unspecified; here all ones and the dividend.
        exact("div.s32 %d32, %a32, %b32;", |a, b, _| {
            if i32_of(b) == 0 { 0xffff_ffff } else { s32(i32_of(a).wrapping_div(i32_of(b))) }
        }),
        exact("div.u32 %d32, %a32, %b32;", |a, b, _| {
            (a as u32).checked_div(b as u32).map_or(0xffff_ffff, u64::from)
        }),
        exact("div.s16 %d16, %a16, %b16;", |a, b, _| {
            if i16_of(b) == 0 { 0xffff } else { s16(i16_of(a).wrapping_div(i16_of(b))) }
        }),
        exact("div.s64 %d64, %a64, %b64;", |a, b, _| {
            if b == 0 { u64::MAX } else { (a as i64).wrapping_div(b as i64) as u64 }
        }),
        exact("div.u64 %d64, %a64, %b64;", |a, b, _| a.checked_div(b).unwrap_or(u64::MAX)),
        exact("rem.s32 %d32, %a32, %b32;", |a, b, _| {
            if i32_of(b) == 0 { a & 0xffff_ffff } else { s32(i32_of(a).wrapping_rem(i32_of(b))) }
        }),
        exact("rem.u64 %d64, %a64, %b64;", |a, b, _| a.checked_rem(b).unwrap_or(a)),
        exact("abs.s32 %d32, %a32;", |a, _, _| s32(i32_of(a).wrapping_abs())),
        exact("abs.s16 %d16, %a16;", |a, _, _| s16(i16_of(a).wrapping_abs())),
        exact("abs.s64 %d64, %a64;", |a, _, _| (a as i64).wrapping_abs() as u64),
        exact("neg.s32 %d32, %a32;", |a, _, _| s32(i32_of(a).wrapping_neg())),
        exact("neg.s64 %d64, %a64;", |a, _, _| a.wrapping_neg()),
        exact("neg.s16 %d16, %a16;", |a, _, _| s16(i16_of(a).wrapping_neg())),
        exact("min.s32 %d32, %a32, %b32;", |a, b, _| s32(i32_of(a).min(i32_of(b)))),
        exact("min.u32 %d32, %a32, %b32;", |a, b, _| u64::from((a as u32).min(b as u32))),
        exact("max.s16 %d16, %a16, %b16;", |a, b, _| s16(i16_of(a).max(i16_of(b)))),
        exact("max.u64 %d64, %a64, %b64;", |a, b, _| a.max(b)),
        exact("max.s64 %d64, %a64, %b64;", |a, b, _| (a as i64).max(b as i64) as u64),
        exact("max.relu.s32 %d32, %a32, %b32;", |a, b, _| s32(i32_of(a).max(i32_of(b)).max(0))),
        // Chains of the condition code's carry.
        exact("add.cc.u32 %d32, %a32, %b32; addc.u32 %d32, %c32, 0;", |a, b, c| {
            u64::from((c as u32).wrapping_add(u32::from((a as u32).checked_add(b as u32).is_none())))
        }),
        exact(
            "add.cc.u32 %d32, %a32, %b32; addc.cc.u32 %d32, %c32, %a32; addc.u32 %d32, 0, 0;",
            |a, b, c| {
                let low = (a & 0xffff_ffff) + (b & 0xffff_ffff);
                ((c & 0xffff_ffff) + (a & 0xffff_ffff) + (low >> 32)) >> 32
            },
        ),
        exact("sub.cc.u32 %d32, %a32, %b32; subc.u32 %d32, %c32, %b32;", |a, b, c| {
            let borrow = u32::from((a as u32) < b as u32);
            u64::from((c as u32).wrapping_sub(b as u32).wrapping_sub(borrow))
        }),
        exact("sub.cc.u64 %d64, %a64, %b64; subc.u64 %d64, %c64, 0;", |a, b, c| {
            c.wrapping_sub(u64::from(a < b))
        }),
        exact("mad.lo.cc.u32 %d32, %a32, %b32, %c32; madc.hi.u32 %d32, %a32, %b32, %c32;", |a, b, c| {
            let (a, b, c) = (a & 0xffff_ffff, b & 0xffff_ffff, c & 0xffff_ffff);
            let carry = (((a * b) & 0xffff_ffff) + c) >> 32;
            ((a * b) >> 32).wrapping_add(c).wrapping_add(carry) & 0xffff_ffff
        }),
        exact("madc.lo.cc.u32 %d32, %a32, %b32, %c32; addc.u32 %d32, 0, 0;", |a, b, c| {
            // The row above leaves its last carry untouched: madc.hi without .cc does not set it.
            let (a, b, c) = (a & 0xffff_ffff, b & 0xffff_ffff, c & 0xffff_ffff);
            let carry = (((a * b) & 0xffff_ffff) + c) >> 32;
            (((a * b) & 0xffff_ffff) + c + carry) >> 32
        }),
    ]
}
