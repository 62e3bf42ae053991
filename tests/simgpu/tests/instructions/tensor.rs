//! Tensor-core instructions of a warp, on small integers, whose products and sums are exact.

use crate::device::device;

pub(crate) fn ptx() -> String {
    let mut text = MATRICES.to_owned();
    for (half, k) in [("bf16", 16), ("f16", 16), ("bf16", 8), ("f16", 8)] {
        text += &multiply(half, k);
    }
    text
}

/// Each lane gives its row's address to ldmatrix and stores what it gets; movmatrix likewise.
const MATRICES: &str = r#"
.visible .entry matrices(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %at;
  .reg .b32 %r<12>, %lane, %row, %s;
  .shared .align 16 .b8 tiles[512];
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %lane, %laneid;
  mul.wide.u32 %at, %lane, 16;
  add.u64 %in, %in, %at;
  mul.wide.u32 %at, %lane, 48;
  add.u64 %out, %out, %at;
  mov.u32 %s, tiles;
  mad.lo.u32 %row, %lane, 16, %s;
  ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%in];
  st.shared.v4.u32 [%row], {%r0, %r1, %r2, %r3};
  bar.warp.sync 0xffffffff;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2, %r3}, [%row];
  ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%r4, %r5, %r6, %r7}, [%row];
  ldmatrix.sync.aligned.m8n8.x2.shared::cta.b16 {%r8, %r9}, [%row];
  ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r10}, [%row];
  movmatrix.sync.aligned.m8n8.trans.b16 %r11, %r3;
  st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
  st.global.v4.u32 [%out+16], {%r4, %r5, %r6, %r7};
  st.global.v4.u32 [%out+32], {%r8, %r9, %r10, %r11};
  ret;
}
"#;

/// What ldmatrix gave goes back to memory: as it is, and two tiles transposed.
pub(crate) const HOPPER: &str = r#"
.visible .entry stored_matrices(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %at;
  .reg .b32 %r<8>, %lane, %row, %s;
  .shared .align 16 .b8 tiles[1024];
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %lane, %laneid;
  mul.wide.u32 %at, %lane, 16;
  add.u64 %in, %in, %at;
  mul.wide.u32 %at, %lane, 32;
  add.u64 %out, %out, %at;
  mov.u32 %s, tiles;
  mad.lo.u32 %row, %lane, 16, %s;
  ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%in];
  st.shared.v4.u32 [%row], {%r0, %r1, %r2, %r3};
  bar.warp.sync 0xffffffff;
  ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0, %r1, %r2, %r3}, [%row];
  stmatrix.sync.aligned.m8n8.x4.shared.b16 [%row+512], {%r0, %r1, %r2, %r3};
  bar.warp.sync 0xffffffff;
  ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%row+512];
  st.global.v4.u32 [%out], {%r4, %r5, %r6, %r7};
  bar.warp.sync 0xffffffff;
  stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%row+512], {%r0, %r1};
  bar.warp.sync 0xffffffff;
  ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%row+512];
  st.global.v4.u32 [%out+16], {%r4, %r5, %r6, %r7};
  ret;
}
"#;

/// d = a·b + c, every lane with its fragments in order: a, b, c.
fn multiply(half: &str, k: usize) -> String {
    let (a, b) = if k == 16 { ("{%a0, %a1, %a2, %a3}", "{%b0, %b1}") } else { ("{%a0, %a1}", "{%b0}") };
    format!(
        "
.visible .entry multiply_{half}_{k}(.param .align 8 .b8 args[16])
{{
  .reg .b64 %in, %out, %at;
  .reg .b32 %lane, %a<4>, %b<4>;
  .reg .f32 %c<4>;
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %lane, %laneid;
  mul.wide.u32 %at, %lane, 48;
  add.u64 %in, %in, %at;
  mul.wide.u32 %at, %lane, 16;
  add.u64 %out, %out, %at;
  ld.global.v4.u32 {{%a0, %a1, %a2, %a3}}, [%in];
  ld.global.v2.u32 {{%b0, %b1}}, [%in+16];
  ld.global.v4.f32 {{%c0, %c1, %c2, %c3}}, [%in+32];
  mma.sync.aligned.m16n8k{k}.row.col.f32.{half}.{half}.f32 {{%c0, %c1, %c2, %c3}}, {a}, {b}, {{%c0, %c1, %c2, %c3}};
  st.global.v4.f32 [%out], {{%c0, %c1, %c2, %c3}};
  ret;
}}
"
    )
}

fn pair(low: u16, high: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

#[test]
fn matrices_are_distributed_as_in_the_tables() {
    // Element (row, column) of tile t is 64 t + 8 row + column.
    let input: Vec<u16> = (0..256).collect();
    let out: Vec<u32> = device().run("matrices", [1, 32], &input, 32 * 12);
    for (lane, out) in out.chunks(12).enumerate() {
        let (group, thread) = (lane as u16 / 4, lane as u16 % 4);
        let straight =
            |tile: u16| pair(64 * tile + 8 * group + 2 * thread, 64 * tile + 8 * group + 2 * thread + 1);
        let transposed =
            |tile: u16| pair(64 * tile + 8 * (2 * thread) + group, 64 * tile + 8 * (2 * thread + 1) + group);
        assert_eq!(out[..4], [0, 1, 2, 3].map(straight), "x4, lane {lane}");
        assert_eq!(out[4..8], [0, 1, 2, 3].map(transposed), "x4.trans");
        assert_eq!(
            out[8..12],
            [straight(0), straight(1), transposed(0), transposed(3)],
            "x2, x1.trans, movmatrix"
        );
    }
}

#[test]
fn matrices_are_put_back_as_they_were_or_turned() {
    let device = device();
    if !device.is_hopper() {
        return;
    }
    let input: Vec<u16> = (0..256).collect();
    let out: Vec<u32> = device.run("stored_matrices", [1, 32], &input, 32 * 8);
    for (lane, out) in out.chunks(8).enumerate() {
        let row: [u32; 4] =
            std::array::from_fn(|i| pair(8 * lane as u16 + 2 * i as u16, 8 * lane as u16 + 2 * i as u16 + 1));
        assert_eq!(out[..4], row, "stmatrix puts back what ldmatrix took");
        let column = |i: u16| 64 * (lane as u16 / 8) + 8 * i + lane as u16 % 8;
        let turned = std::array::from_fn(|i| pair(column(2 * i as u16), column(2 * i as u16 + 1)));
        assert_eq!(out[4..], if lane < 16 { turned } else { row }, "stmatrix.trans turns two tiles");
    }
}

/// A small integer in half precision.
pub(crate) fn half_bits(bf16: bool, x: i32) -> u16 {
    let bits = (x as f32).to_bits();
    if bf16 || x == 0 {
        return (bits >> 16) as u16;
    }
    let exponent = (bits >> 23 & 255) - 127 + 15;
    (bits >> 16 & 0x8000 | exponent << 10 | bits >> 13 & 0x3ff) as u16
}

#[test]
fn products_of_integers_are_exact() {
    for (half, k) in [("bf16", 16usize), ("f16", 16), ("bf16", 8), ("f16", 8)] {
        let a = |row: usize, column: usize| (row * 7 + column * 3) as i32 % 19 - 9;
        let b = |row: usize, column: usize| (row * 5 + column * 11) as i32 % 17 - 8;
        let c = |row: usize, column: usize| (row * 13 + column) as i32 % 23 - 11;
        let bits = |x: i32| half_bits(half == "bf16", x);
        let mut input = vec![];
        for lane in 0..32 {
            let (group, thread) = (lane / 4, lane % 4);
            // The ISA's tables: rows group and group + 8, pairs of columns 2 thread, eight columns on for a2 and a3.
            let a_pair = |row, column| pair(bits(a(row, column)), bits(a(row, column + 1)));
            let b_pair = |row, column| pair(bits(b(row, column)), bits(b(row + 1, column)));
            let (first, second) = (2 * thread, 2 * thread + 8);
            input.extend([a_pair(group, first), a_pair(group + 8, first)]);
            input.extend([a_pair(group, second), a_pair(group + 8, second)]);
            input.extend([b_pair(first, group), b_pair(second, group), 0, 0]);
            for (row, column) in
                [(group, first), (group, first + 1), (group + 8, first), (group + 8, first + 1)]
            {
                input.push((c(row, column) as f32).to_bits());
            }
        }
        let out: Vec<f32> = device().run(&format!("multiply_{half}_{k}"), [1, 32], &input, 128);
        for (lane, out) in out.chunks(4).enumerate() {
            let (group, thread) = (lane / 4, lane % 4);
            for (index, &found) in out.iter().enumerate() {
                let (row, column) = (group + index / 2 * 8, 2 * thread + index % 2);
                let sum: i32 = (0..k).map(|i| a(row, i) * b(i, column)).sum();
                assert_eq!(found, (sum + c(row, column)) as f32, "{half}, k {k}, row {row}, column {column}");
            }
        }
    }
}
