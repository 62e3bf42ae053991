//! Logic, shifts and fields of bits.

use crate::{
    integer::EDGES,
    rows::{Row, Rows, exact},
};

pub(crate) fn rows() -> Rows {
    Rows { kernel: "bits", sources: 3, values: EDGES.to_vec(), rows: list() }
}

#[test]
fn bit_instructions_are_exact() {
    rows().check();
}

/// bfe as the ISA writes it, bit by bit.
fn extract(a: u64, b: u64, c: u64, width: u32, signed: bool) -> u64 {
    let (position, length, msb) = ((b & 0xff) as u32, (c & 0xff) as u32, width - 1);
    let bit = |i: u32| a >> i & 1;
    let sign = if signed && length > 0 { bit((position + length - 1).min(msb)) } else { 0 };
    let field = |i: u32| if i < length && position + i <= msb { bit(position + i) } else { sign };
    (0..=msb).map(|i| field(i) << i).sum()
}

/// bfi as the ISA writes it.
fn insert(a: u64, b: u64, position: u64, length: u64, width: u32) -> u64 {
    let (position, length) = ((position & 0xff) as u32, (length & 0xff) as u32);
    let field = |i: u32| i >= position && i - position < length;
    (0..width).map(|i| (if field(i) { a >> (i - position) & 1 } else { b >> i & 1 }) << i).sum()
}

fn highest_other_than(sign: u64, a: u64, width: u32) -> u64 {
    (0..width).rev().find(|i| a >> i & 1 != sign).map_or(0xffff_ffff, u64::from)
}

fn sign(a: u64, width: u32) -> u64 {
    a >> (width - 1) & 1
}

fn permute(a: u64, b: u64, selectors: [u64; 4]) -> u64 {
    let bytes: Vec<u64> =
        (0..4).map(|i| a >> (8 * i) & 255).chain((0..4).map(|i| b >> (8 * i) & 255)).collect();
    let pick = |selector: u64| {
        let byte = bytes[selector as usize & 7];
        if selector & 8 == 0 { byte } else { (byte >> 7) * 255 }
    };
    // Selectors are written as in the ISA's tables: the highest byte's first.
    selectors.iter().fold(0, |word, &selector| word << 8 | pick(selector))
}

fn shifted_left(a: u64, n: u64, width: u64) -> u64 {
    let n = n & 0xffff_ffff;
    if n >= width { 0 } else { a << n & (u64::MAX >> (64 - width)) }
}

fn shifted_right(a: i64, n: u64, width: u64) -> u64 {
    ((a >> (n & 0xffff_ffff).min(width - 1)) as u64) & (u64::MAX >> (64 - width))
}

fn funnel(a: u64, b: u64) -> u64 {
    b << 32 | a & 0xffff_ffff
}

fn bytes(x: u64) -> [u8; 4] {
    (x as u32).to_le_bytes()
}

fn list() -> Vec<Row> {
    vec![
        exact("and.b32 %d32, %a32, %b32;", |a, b, _| a & b & 0xffff_ffff),
        exact("and.pred %dp, %ap, %bp;", |a, b, _| a & b & 1),
        exact("or.b64 %d64, %a64, %b64;", |a, b, _| a | b),
        exact("or.pred %dp, %ap, !%bp;", |a, b, _| (a | !b) & 1),
        exact("xor.b16 %d16, %a16, %b16;", |a, b, _| (a ^ b) & 0xffff),
        exact("xor.pred %dp, %ap, %bp;", |a, b, _| (a ^ b) & 1),
        exact("not.b32 %d32, %a32;", |a, _, _| !a & 0xffff_ffff),
        exact("not.b16 %d16, %a16;", |a, _, _| !a & 0xffff),
        exact("not.pred %dp, %ap;", |a, _, _| !a & 1),
        exact("cnot.b32 %d32, %a32;", |a, _, _| u64::from(a as u32 == 0)),
        exact("shl.b32 %d32, %a32, %b32;", |a, b, _| shifted_left(a, b, 32)),
        exact("shl.b64 %d64, %a64, %b32;", |a, b, _| shifted_left(a, b, 64)),
        exact("shl.b16 %d16, %a16, %b32;", |a, b, _| shifted_left(a, b, 16)),
        exact("shr.u32 %d32, %a32, %b32;", |a, b, _| (a & 0xffff_ffff).checked_shr(b as u32).unwrap_or(0)),
        exact("shr.b64 %d64, %a64, %b32;", |a, b, _| a.checked_shr(b as u32).unwrap_or(0)),
        exact("shr.s32 %d32, %a32, %b32;", |a, b, _| shifted_right((a as i32).into(), b, 32)),
        exact("shr.s64 %d64, %a64, %b32;", |a, b, _| shifted_right(a as i64, b, 64)),
        exact("shr.s16 %d16, %a16, %b32;", |a, b, _| shifted_right((a as i16).into(), b, 16)),
        exact("shr.u16 %d16, %a16, %b32;", |a, b, _| (a & 0xffff).checked_shr(b as u32).unwrap_or(0)),
        exact("shf.l.wrap.b32 %d32, %a32, %b32, %c32;", |a, b, c| funnel(a, b) << (c & 31) >> 32),
        exact("shf.l.clamp.b32 %d32, %a32, %b32, %c32;", |a, b, c| {
            if c as u32 >= 32 { a & 0xffff_ffff } else { funnel(a, b) << (c & 31) >> 32 }
        }),
        exact("shf.r.wrap.b32 %d32, %a32, %b32, %c32;", |a, b, c| funnel(a, b) >> (c & 31) & 0xffff_ffff),
        exact("shf.r.clamp.b32 %d32, %a32, %b32, %c32;", |a, b, c| {
            funnel(a, b) >> (c & 0xffff_ffff).min(32) & 0xffff_ffff
        }),
        exact("bfe.u32 %d32, %a32, %b32, %c32;", |a, b, c| extract(a, b, c, 32, false)),
        exact("bfe.s32 %d32, %a32, %b32, %c32;", |a, b, c| extract(a, b, c, 32, true)),
        exact("bfe.u64 %d64, %a64, %b32, %c32;", |a, b, c| extract(a, b, c, 64, false)),
        exact("bfe.s64 %d64, %a64, %b32, %c32;", |a, b, c| extract(a, b, c, 64, true)),
        exact("bfi.b32 %d32, %a32, %b32, %c32, %b32;", |a, b, c| insert(a, b, c, b, 32)),
        exact("bfi.b64 %d64, %a64, %b64, %c32, %b32;", |a, b, c| insert(a, b, c, b, 64)),
        exact("bfind.u32 %d32, %a32;", |a, _, _| highest_other_than(0, a, 32)),
        exact("bfind.s32 %d32, %a32;", |a, _, _| highest_other_than(sign(a, 32), a, 32)),
        exact("bfind.u64 %d32, %a64;", |a, _, _| highest_other_than(0, a, 64)),
        exact("bfind.s64 %d32, %a64;", |a, _, _| highest_other_than(sign(a, 64), a, 64)),
        exact("bfind.shiftamt.u32 %d32, %a32;", |a, _, _| match highest_other_than(0, a, 32) {
            0xffff_ffff => 0xffff_ffff,
            position => 31 - position,
        }),
        exact("brev.b32 %d32, %a32;", |a, _, _| u64::from((a as u32).reverse_bits())),
        exact("brev.b64 %d64, %a64;", |a, _, _| a.reverse_bits()),
        exact("popc.b32 %d32, %a32;", |a, _, _| u64::from((a as u32).count_ones())),
        exact("popc.b64 %d32, %a64;", |a, _, _| u64::from(a.count_ones())),
        exact("clz.b32 %d32, %a32;", |a, _, _| u64::from((a as u32).leading_zeros())),
        exact("clz.b64 %d32, %a64;", |a, _, _| u64::from(a.leading_zeros())),
        exact("lop3.b32 %d32, %a32, %b32, %c32, 0x96;", |a, b, c| (a ^ b ^ c) & 0xffff_ffff),
        exact("lop3.b32 %d32, %a32, %b32, %c32, 0xe2;", |a, b, c| (b & a | !b & c) & 0xffff_ffff),
        exact("lop3.b32 %d32, %a32, %b32, %c32, 1;", |a, b, c| !(a | b | c) & 0xffff_ffff),
        exact("lop3.b32 %d32, %a32, %b32, %c32, 0xf8;", |a, b, c| (a | b & c) & 0xffff_ffff),
        exact("prmt.b32 %d32, %a32, %b32, %c32;", |a, b, c| {
            permute(a, b, [c >> 12 & 15, c >> 8 & 15, c >> 4 & 15, c & 15])
        }),
        exact("prmt.b32 %d32, %a32, %b32, 0x5410;", |a, b, _| b << 16 & 0xffff_0000 | a & 0xffff),
        exact("prmt.b32.f4e %d32, %a32, %b32, %c32;", |a, b, c| {
            permute(a, b, [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]][c as usize & 3])
        }),
        exact("prmt.b32.b4e %d32, %a32, %b32, %c32;", |a, b, c| {
            permute(a, b, [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]][c as usize & 3])
        }),
        exact("prmt.b32.rc8 %d32, %a32, %b32, %c32;", |a, b, c| permute(a, b, [c & 3; 4])),
        exact("prmt.b32.ecl %d32, %a32, %b32, %c32;", |a, b, c| {
            permute(a, b, [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]][c as usize & 3])
        }),
        exact("prmt.b32.ecr %d32, %a32, %b32, %c32;", |a, b, c| {
            permute(a, b, [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]][c as usize & 3])
        }),
        exact("prmt.b32.rc16 %d32, %a32, %b32, %c32;", |a, b, c| {
            permute(a, b, [[1, 0, 1, 0], [3, 2, 3, 2]][c as usize & 1])
        }),
        exact("dp4a.s32.s32 %d32, %a32, %b32, %c32;", |a, b, c| {
            let sum: i32 =
                bytes(a).iter().zip(bytes(b)).map(|(&a, b)| i32::from(a as i8) * i32::from(b as i8)).sum();
            u64::from((c as i32).wrapping_add(sum) as u32)
        }),
        exact("dp4a.u32.s32 %d32, %a32, %b32, %c32;", |a, b, c| {
            let sum: i32 =
                bytes(a).iter().zip(bytes(b)).map(|(&a, b)| i32::from(a) * i32::from(b as i8)).sum();
            u64::from((c as i32).wrapping_add(sum) as u32)
        }),
        exact("dp2a.hi.s32.u32 %d32, %a32, %b32, %c32;", |a, b, c| {
            let products = [(a as i16, bytes(b)[2]), ((a >> 16) as i16, bytes(b)[3])];
            let sum: i32 = products.iter().map(|&(a, b)| i32::from(a) * i32::from(b)).sum();
            u64::from((c as i32).wrapping_add(sum) as u32)
        }),
    ]
}
