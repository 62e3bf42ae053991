//! Loads, stores, address spaces and atomics.

use crate::device::device;

pub(crate) const PTX: &str = r#"
.const .align 8 .b8 constants[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
.global .align 4 .f32 table[2][2] = {{0f3F800000, 0fC0000000}, {0f00000000, 0f7F800000}};
.global .align 8 .u64 counter = 77;
.global .align 2 .b16 untouched[3];
.shared .align 8 .b64 common[4];
.extern .shared .align 16 .b8 dynamic[];

.visible .entry loads(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %d<20>, %policy;
  .reg .b32 %r<20>;
  .reg .b16 %h<4>;
  .reg .f32 %f<4>;
  .reg .f64 %fd<2>;
  ld.param.v2.u64 {%in, %out}, [args];
  ld.global.u8 %r0, [%in+7];
  ld.global.s8 %r1, [%in+7];
  ld.global.b8 %h0, [%in+7];
  ld.global.s8 %h1, [%in+6];
  ld.global.s16 %d0, [%in+6];
  ld.global.u16 %d1, [%in+6];
  ld.global.s32 %d2, [%in+4];
  ld.global.u32 %d3, [%in+4];
  ld.global.nc.f32 %f0, [%in+4];
  ld.global.f64 %fd0, [%in];
  mov.b32 {%h2, %h3}, %r1;
  st.global.u32 [%out], %r0;
  st.global.u32 [%out+4], %r1;
  st.global.u16 [%out+8], %h0;
  st.global.u16 [%out+10], %h1;
  st.global.v2.u16 [%out+12], {%h2, %h3};
  st.global.u64 [%out+16], %d0;
  st.global.u64 [%out+24], %d1;
  st.global.u64 [%out+32], %d2;
  st.global.u64 [%out+40], %d3;
  st.global.f32 [%out+48], %f0;
  st.global.f32 [%out+52], 0f40490FDB;
  st.global.f64 [%out+56], %fd0;
  // A narrow store of a wide register; vectors; hints that change nothing.
  st.global.u8 [%out+64], %d3;
  st.global.u8 [%out+65], %r1;
  st.global.b16 [%out+66], -2;
  createpolicy.fractional.L2::evict_first.b64 %policy, 1.0;
  ld.global.v2.u32 {%r2, %r3}, [%in+8];
  ld.global.L2::cache_hint.v4.u32 {%r4, %r5, %r6, %r7}, [%in+16], %policy;
  ld.global.nc.L1::no_allocate.L2::128B.v2.u64 {%d4, %d5}, [%in+32];
  ld.global.L1::evict_last.v4.u8 {%r8, %r9, %r10, %r11}, [%in+4];
  st.global.u32 [%out+68], %r2;
  st.global.v4.u32 [%out+80], {%r7, %r6, %r5, %r3};
  st.global.v2.b64 [%out+96], {%d5, %d4};
  st.global.v4.u8 [%out+112], {%r11, %r10, %r9, %r8};
  // Orders and the generic space.
  ld.volatile.global.u32 %r12, [%in+8];
  ld.relaxed.gpu.global.u32 %r13, [%in+12];
  ld.acquire.sys.global.u64 %d6, [%in+16];
  ld.u32 %r14, [%in+24];
  st.volatile.global.u32 [%out+116], %r12;
  st.relaxed.cta.global.u32 [%out+120], %r13;
  st.release.gpu.global.u64 [%out+128], %d6;
  st.u32 [%out+124], %r14;
  prefetch.global.L2 [%in];
  ret;
}

.visible .entry spaces(.param .align 8 .b8 args[16])
.maxntid 64, 1, 1
{
  .reg .b64 %in, %out, %a, %b, %d<12>;
  .reg .b32 %r<16>, %thread;
  .reg .f32 %f<2>;
  .reg .pred %p;
  .shared .align 16 .b8 own[256];
  .local .align 8 .b8 frame[24];
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mul.wide.u32 %a, %thread, 96;
  add.u64 %out, %out, %a;
  // Each thread's shared values are read by its neighbour: own, dynamic, and the module's.
  mul.lo.u32 %r0, %thread, 4;
  mov.u32 %r1, own;
  add.u32 %r1, %r1, %r0;
  st.shared.u32 [%r1], %thread;
  mov.u32 %r2, dynamic;
  add.u32 %r2, %r2, %r0;
  add.u32 %r3, %thread, 1000;
  st.shared.u32 [%r2], %r3;
  setp.lt.u32 %p, %thread, 4;
  mov.u64 %a, common;
  mad.wide.u32 %a, %thread, 8, %a;
  @%p st.shared.u64 [%a], %out;
  bar.sync 0;
  xor.b32 %r4, %r1, 4;
  ld.shared.u32 %r5, [%r4];
  xor.b32 %r4, %r2, 4;
  ld.shared.u32 %r6, [%r4];
  ld.shared.u64 %d0, [common+16];
  sub.u64 %d0, %d0, %out;
  st.global.v2.u32 [%out], {%r5, %r6};
  st.global.u64 [%out+8], %d0;
  // Shared and local memory through generic addresses.
  cvt.u64.u32 %a, %r1;
  cvta.shared.u64 %b, %a;
  ld.u32 %r7, [%b];
  cvta.to.shared.u64 %d1, %b;
  sub.u64 %d1, %d1, %a;
  st.global.u32 [%out+16], %r7;
  st.global.u32 [%out+20], %d1;
  mov.u64 %a, frame;
  cvta.local.u64 %b, %a;
  st.local.u64 [%a+8], %in;
  st.local.u32 [%a+16], %thread;
  ld.u32 %r8, [%b+16];
  st.u32 [%b+20], 5;
  ld.local.v2.u32 {%r9, %r10}, [frame+16];
  cvta.to.local.u64 %d2, %b;
  sub.u64 %d2, %d2, %a;
  cvt.u32.u64 %r11, %d2;
  st.global.v4.u32 [%out+32], {%r8, %r9, %r10, %r11};
  // Constants, initialised globals and parameters.
  ld.const.u64 %d3, [constants];
  ld.const.u32 %r11, [constants+8];
  mov.u64 %a, table;
  ld.global.f32 %f0, [%a+4];
  ld.global.nc.f32 %f1, [table+12];
  ld.global.u64 %d4, [counter];
  ld.global.u16 %r12, [untouched+4];
  cvta.global.u64 %b, counter;
  ld.u64 %d5, [%b];
  add.u64 %d5, %d5, %d4;
  mov.b64 %a, args;
  cvta.param.u64 %b, %a;
  ld.u64 %d6, [%b+8];
  ld.param.u64 %d7, [%a+8];
  sub.u64 %d6, %d6, %d7;
  st.global.u64 [%out+48], %d3;
  st.global.v2.u32 [%out+56], {%r11, %r12};
  st.global.v2.f32 [%out+64], {%f0, %f1};
  st.global.v2.u64 [%out+80], {%d5, %d6};
  mov.u64 %d8, own+8;
  mov.u64 %d9, own;
  sub.u64 %d8, %d8, %d9;
  st.global.u32 [%out+72], %d8;
  mov.u32 %r13, %ntid.x;
  st.global.u32 [%out+76], %r13;
  ret;
}

// Every operation once on cells of a known value: what it returns, and what it leaves.
.visible .entry atomics(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %d, %s64, %generic;
  .reg .b32 %r, %s;
  .reg .f32 %f;
  .reg .f64 %fd;
  .shared .align 8 .b8 cells[16];
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  atom.global.add.u32 %r, [%in], 5;
  st.global.u32 [%out], %r;
  atom.add.u64 %d, [%in+8], -1;
  st.global.u64 [%out+8], %d;
  atom.global.min.s32 %r, [%in+16], -9;
  st.global.u32 [%out+16], %r;
  atom.global.min.u32 %r, [%in+20], -9;
  st.global.u32 [%out+20], %r;
  atom.global.max.s32 %r, [%in+24], 3;
  st.global.u32 [%out+24], %r;
  atom.global.max.u64 %d, [%in+32], 3;
  st.global.u64 [%out+32], %d;
  atom.global.exch.b32 %r, [%in+40], 8;
  st.global.u32 [%out+40], %r;
  atom.global.cas.b32 %r, [%in+44], 44, 45;
  st.global.u32 [%out+44], %r;
  atom.acq_rel.gpu.global.cas.b64 %d, [%in+48], 1, 2;
  st.global.u64 [%out+48], %d;
  atom.global.and.b32 %r, [%in+56], 0xf0;
  st.global.u32 [%out+56], %r;
  atom.global.or.b32 %r, [%in+60], 0xf0;
  st.global.u32 [%out+60], %r;
  atom.global.xor.b64 %d, [%in+64], 0xff;
  st.global.u64 [%out+64], %d;
  atom.global.inc.u32 %r, [%in+72], 73;
  st.global.u32 [%out+72], %r;
  atom.global.inc.u32 %r, [%in+76], 10;
  st.global.u32 [%out+76], %r;
  atom.global.dec.u32 %r, [%in+80], 100;
  st.global.u32 [%out+80], %r;
  atom.global.dec.u32 %r, [%in+84], 50;
  st.global.u32 [%out+84], %r;
  atom.global.add.f32 %f, [%in+88], 0f3F000000;
  st.global.f32 [%out+88], %f;
  atom.global.add.f64 %fd, [%in+96], 0d3FE0000000000000;
  st.global.f64 [%out+96], %fd;
  red.global.add.u32 [%in+104], 7;
  red.relaxed.gpu.global.max.s32 [%in+108], 200;
  // Sums flush subnormals in global memory, not in shared memory.
  red.global.add.f32 [%in+112], 0f00000001;
  mov.u32 %s, cells;
  st.shared.u32 [%s], 1;
  st.shared.u32 [%s+4], 17;
  st.shared.u64 [%s+8], 5;
  atom.shared.add.f32 %f, [%s], 0f00000001;
  atom.shared.exch.b32 %r, [%s+4], 18;
  red.shared.add.u64 [%s+8], 6;
  st.global.f32 [%out+112], %f;
  st.global.u32 [%out+116], %r;
  ld.shared.u32 %r, [%s];
  st.global.u32 [%out+120], %r;
  cvt.u64.u32 %s64, %s;
  cvta.shared.u64 %generic, %s64;
  atom.add.u32 %r, [%generic+8], 1;
  ld.shared.u32 %s, [%s+8];
  st.global.u32 [%out+124], %s;
  membar.gl;
  fence.acq_rel.sys;
  ret;
}

// All threads of all blocks count together.
.visible .entry counters(.param .align 8 .b8 args[16])
{
  .reg .b64 %out;
  .reg .b32 %r, %thread;
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  atom.global.add.u32 %r, [%out], 1;
  red.global.max.u32 [%out+4], %r;
  red.global.or.b32 [%out+8], %thread;
  red.global.add.f32 [%out+12], 0f3F800000;
  ret;
}
"#;

#[test]
fn loads_extend_and_stores_truncate() {
    let input: Vec<u8> = (0..48).map(|i| if i < 8 { 0x81 + i * 9 } else { i }).collect();
    let out: Vec<u8> = device().run("loads", [1, 1], &input, 136);
    let word = |at: usize| u32::from_le_bytes(input[at..at + 4].try_into().unwrap());
    let out32 = |at: usize| u32::from_le_bytes(out[at..at + 4].try_into().unwrap());
    let out64 = |at: usize| u64::from_le_bytes(out[at..at + 8].try_into().unwrap());
    assert_eq!(out32(0), u32::from(input[7]), "zero-extended");
    assert_eq!(out32(4), i32::from(input[7] as i8) as u32, "sign-extended");
    assert_eq!(out[8..12], [input[7], 0, input[6], 0xff], "in 16-bit registers");
    assert_eq!(out32(12), out32(4), "a word in two halves");
    let half = u16::from_le_bytes([input[6], input[7]]);
    assert_eq!([out64(16), out64(24)], [half as i16 as i64 as u64, half.into()]);
    assert_eq!([out64(32), out64(40)], [word(4) as i32 as i64 as u64, word(4).into()]);
    assert_eq!([out32(48), out32(52)], [word(4), std::f32::consts::PI.to_bits()]);
    assert_eq!(out[56..64], input[..8]);
    assert_eq!(out[64..68], [input[4], input[7], 0xfe, 0xff]);
    assert_eq!(out32(68), word(8));
    assert_eq!([out32(80), out32(84), out32(88), out32(92)], [word(28), word(24), word(20), word(12)]);
    assert_eq!([&out[96..104], &out[104..112]], [&input[40..48], &input[32..40]]);
    assert_eq!(out[112..116], [input[7], input[6], input[5], input[4]]);
    assert_eq!([out32(116), out32(120), out32(124)], [word(8), word(12), word(24)]);
    assert_eq!(out[128..136], input[16..24]);
}

#[test]
fn every_address_space_is_reached() {
    const THREADS: u32 = 64;
    let out: Vec<u32> =
        device().run_with_shared("spaces", [1, THREADS], THREADS * 4, &[0u64], THREADS as usize * 24);
    for (thread, out) in (0..THREADS).zip(out.chunks(24)) {
        let neighbour = thread ^ 1;
        assert_eq!(out[..2], [neighbour, neighbour + 1000]);
        let distance = (2 - i64::from(thread)) * 96;
        assert_eq!(out[2..4], [distance as u32, (distance >> 32) as u32], "common[2] holds thread 2's place");
        assert_eq!(out[4..6], [thread, 0]);
        assert_eq!(out[8..12], [thread, thread, 5, 0]);
        assert_eq!(out[12..16], [0x0403_0201, 0x0807_0605, 9, 0]);
        assert_eq!(out[16..18], [(-2.0_f32).to_bits(), f32::INFINITY.to_bits()]);
        assert_eq!(out[18..20], [8, THREADS]);
        assert_eq!(out[20..24], [154, 0, 0, 0]);
    }
}

#[test]
fn atomics_return_the_old_value_and_leave_the_new() {
    let mut cells = [0u8; 120];
    let mut set = |at: usize, bytes: &[u8]| cells[at..at + bytes.len()].copy_from_slice(bytes);
    let words =
        [(0, 10), (16, 4), (20, 4), (24, -1), (40, 41), (44, 44), (56, 0xff), (60, 0x0f), (72, 73), (76, 3)];
    for (at, value) in words.into_iter().chain([(80, 0), (84, 51), (104, 1), (108, -3), (112, 1)]) {
        set(at, &i32::to_le_bytes(value));
    }
    for (at, value) in [(8, 0u64), (32, u64::MAX), (48, 9), (64, 0x0f)] {
        set(at, &value.to_le_bytes());
    }
    set(88, &1.25_f32.to_le_bytes());
    set(96, &1.25_f64.to_le_bytes());
    let device = device();
    let (input, output) = (device.upload(&cells), device.upload(&[0u32; 32]));
    let mut args = [input, output];
    device.launch("atomics", [1, 1], 0, &mut [(&raw mut args).cast()]);
    let after: Vec<u8> = device.download(input, 120);
    let returned: Vec<u32> = device.download(output, 32);
    drop(device);
    let after32 = |at: usize| u32::from_le_bytes(after[at..at + 4].try_into().unwrap());
    let after64 = |at: usize| u64::from_le_bytes(after[at..at + 8].try_into().unwrap());
    let before: Vec<u32> = cells.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).collect();
    for at in [0, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25] {
        assert_eq!(returned[at], before[at], "cell {at}");
    }
    assert_eq!([after32(0), after32(16), after32(20), after32(24)], [15, -9_i32 as u32, 4, 3]);
    assert_eq!([after64(8), after64(32), after64(48), after64(64)], [u64::MAX, u64::MAX, 9, 0xf0]);
    assert_eq!([after32(40), after32(44), after32(56), after32(60)], [8, 45, 0xf0, 0xff]);
    assert_eq!([after32(72), after32(76), after32(80), after32(84)], [0, 4, 100, 50]);
    assert_eq!([f32::from_bits(after32(88)), f64::from_bits(after64(96)) as f32], [1.75, 1.75]);
    assert_eq!([after32(104), after32(108), after32(112)], [8, 200, 0]);
    assert_eq!(
        returned[28..32],
        [1, 17, 2, 12],
        "shared memory: a subnormal sum, an exchange, two additions"
    );
}

#[test]
fn atomics_of_all_blocks_meet() {
    let out: Vec<u32> = device().run("counters", [5, 96], &[0u64], 4);
    assert_eq!(out, [480, 479, 127, 480.0_f32.to_bits()]);
}
