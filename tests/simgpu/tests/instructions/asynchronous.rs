//! Asynchronous copies and the barriers that count them.

use crate::device::{Swizzle, device};

pub(crate) const PTX: &str = r#"
// Thread t copies its 16 bytes in all sizes, one with fewer bytes to read, one that reads none.
.visible .entry copies(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %at;
  .reg .b32 %r<8>, %thread, %s;
  .reg .pred %odd;
  .shared .align 16 .b8 staged[4096];
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mul.wide.u32 %at, %thread, 16;
  add.u64 %in, %in, %at;
  mul.wide.u32 %at, %thread, 64;
  add.u64 %out, %out, %at;
  mov.u32 %s, staged;
  mad.lo.u32 %s, %thread, 64, %s;
  cp.async.cg.shared.global [%s], [%in], 16;
  cp.async.commit_group;
  cp.async.ca.shared::cta.global.L2::128B [%s+16], [%in+4], 4;
  cp.async.ca.shared.global [%s+20], [%in], 4, 2;
  cp.async.ca.shared.global [%s+24], [%in+8], 8;
  cp.async.commit_group;
  cp.async.wait_group 1;
  ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%s];
  st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
  and.b32 %r4, %thread, 1;
  setp.ne.u32 %odd, %r4, 0;
  mad.lo.u32 %r4, %r4, -16, 16;
  cp.async.cg.shared.global [%s+32], [%in], 16, %r4;
  cp.async.ca.shared.global [%s+48], [%in], 16, %odd;
  cp.async.wait_all;
  ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%s+16];
  st.global.v4.u32 [%out+16], {%r0, %r1, %r2, %r3};
  ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%s+32];
  st.global.v4.u32 [%out+32], {%r0, %r1, %r2, %r3};
  ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%s+48];
  st.global.v4.u32 [%out+48], {%r0, %r1, %r2, %r3};
  ret;
}
"#;

pub(crate) const HOPPER: &str = r#"
// 64 threads hand each other values over barriers, by parity and by state.
.visible .entry arrivals(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %at, %state;
  .reg .b32 %r<8>, %thread, %bar, %s, %own;
  .reg .pred %p, %first, %done;
  .shared .align 8 .b8 bars[24];
  .shared .align 1024 .b8 values[1024];
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mul.wide.u32 %at, %thread, 32;
  add.u64 %out, %out, %at;
  mov.u32 %bar, bars;
  mov.u32 %s, values;
  mad.lo.u32 %own, %thread, 4, %s;
  setp.eq.u32 %first, %thread, 0;
  @!%first bra $L_ready;
  mbarrier.init.shared::cta.b64 [%bar], 64;
  mbarrier.init.shared.b64 [%bar+8], 3;
  mbarrier.init.shared.b64 [%bar+16], 64;
  fence.mbarrier_init.release.cluster;
$L_ready:
  bar.sync 0;
  // First phase: by state.
  st.shared.u32 [%own], %thread;
  mbarrier.arrive.shared::cta.b64 %state, [%bar];
$L_by_state:
  mbarrier.try_wait.shared::cta.b64 %done, [%bar], %state;
  @!%done bra $L_by_state;
  xor.b32 %r0, %own, 128;
  ld.shared.u32 %r0, [%r0];
  // Second phase: by parity, which is 1 for this one.
  mbarrier.arrive.release.cta.shared::cta.b64 _, [%bar];
$L_by_parity:
  mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %done, [%bar], 1, 1000;
  @!%done bra $L_by_parity;
  st.shared.u32 [%own], 7;
  mbarrier.test_wait.parity.shared.b64 %p, [%bar], 1;
  selp.u32 %r1, 1, 0, %p;
  mbarrier.test_wait.parity.shared.b64 %p, [%bar], 0;
  selp.u32 %r2, 1, 0, %p;
  // One thread on the second barrier: counts, and a count that drops.
  mov.u32 %r3, 0;
  mov.u32 %r4, 0;
  mov.u32 %r5, 0;
  @!%first bra $L_copies;
  mbarrier.arrive.shared.b64 %state, [%bar+8], 2;
  mbarrier.test_wait.shared.b64 %p, [%bar+8], %state;
  selp.u32 %r3, 1, 0, %p;
  mbarrier.arrive_drop.shared.b64 _, [%bar+8];
  mbarrier.test_wait.shared.b64 %p, [%bar+8], %state;
  selp.u32 %r4, 1, 0, %p;
  mbarrier.arrive.shared.b64 %state, [%bar+8], 2;
  mbarrier.test_wait.shared.b64 %p, [%bar+8], %state;
  selp.u32 %r5, 1, 0, %p;
  mbarrier.inval.shared.b64 [%bar+8];
$L_copies:
  // Copies arrive when they have landed: thread 0's words are thread 1's and so on.
  and.b32 %r6, %thread, 63;
  mul.wide.u32 %at, %r6, 4;
  add.u64 %in, %in, %at;
  add.u32 %own, %own, 512;
  cp.async.ca.shared.global [%own], [%in], 4;
  cp.async.mbarrier.arrive.noinc.shared.b64 [%bar+16];
$L_landed:
  mbarrier.try_wait.parity.shared.b64 %done, [%bar+16], 0;
  @!%done bra $L_landed;
  xor.b32 %r7, %own, 4;
  ld.shared.u32 %r6, [%r7];
  st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
  st.global.v4.u32 [%out+16], {%r4, %r5, %r6, 0};
  ret;
}

// 256 bytes come in bulk, each thread adds 1 to a word, and they go out in bulk.
.visible .entry bulk(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out;
  .reg .b32 %r<4>, %thread, %bar, %s, %own;
  .reg .pred %first, %done;
  .shared .align 8 .b8 bars[8];
  .shared .align 128 .b8 staged[256];
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mov.u32 %bar, bars;
  mov.u32 %s, staged;
  mad.lo.u32 %own, %thread, 4, %s;
  setp.eq.u32 %first, %thread, 0;
  @!%first bra $L_wait;
  mbarrier.init.shared.b64 [%bar], 1;
  fence.proxy.async;
  mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%bar], 128;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 128;
  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%in], 128, [%bar];
  cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s+128], [%in+128], 128, [%bar];
$L_wait:
  bar.sync 0;
$L_again:
  mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0;
  @!%done bra $L_again;
  ld.shared.u32 %r0, [%own];
  add.u32 %r0, %r0, 1;
  st.shared.u32 [%own], %r0;
  fence.proxy.async.shared::cta;
  bar.sync 0;
  @!%first bra $L_end;
  cp.async.bulk.global.shared::cta.bulk_group [%out], [%s], 256;
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group.read 0;
  cp.async.bulk.wait_group 0;
$L_end:
  ret;
}

// A tile by a tensor map: what lands in shared memory is shown as it lies, and another map stores it.
.visible .entry tile_2d(.param .align 64 .b8 source[128], .param .align 64 .b8 target[128], .param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %map, %at, %position;
  .reg .b32 %r<4>, %thread, %bar, %s, %own, %x, %y;
  .reg .pred %first, %done;
  .shared .align 8 .b8 bars[8];
  .shared .align 1024 .b8 tile[1024];
  ld.param.u64 %position, [args];
  ld.param.u64 %out, [args+8];
  mov.b64 {%x, %y}, %position;
  mov.u32 %thread, %tid.x;
  mov.u32 %bar, bars;
  mov.u32 %s, tile;
  mad.lo.u32 %own, %thread, 16, %s;
  mul.wide.u32 %at, %thread, 16;
  add.u64 %out, %out, %at;
  setp.eq.u32 %first, %thread, 0;
  @!%first bra $L_wait;
  mbarrier.init.shared.b64 [%bar], 1;
  fence.proxy.async;
  mov.b64 %at, source;
  cvta.param.u64 %map, %at;
  prefetch.tensormap [%map];
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 1024;
  cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%s], [%map, {%x, %y}], [%bar];
$L_wait:
  bar.sync 0;
$L_again:
  mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0;
  @!%done bra $L_again;
  ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%own];
  st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
  @!%first bra $L_end;
  mov.b64 %at, target;
  cvta.param.u64 %map, %at;
  cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%map, {%x, %y}], [%s];
  cp.async.bulk.commit_group;
  cp.async.bulk.wait_group 0;
$L_end:
  ret;
}

.visible .entry tile_3d(.param .align 64 .b8 source[128], .param .align 8 .b8 args[16])
{
  .reg .b64 %out, %map, %at;
  .reg .b32 %r<4>, %thread, %bar, %s, %own;
  .reg .pred %first, %done;
  .shared .align 8 .b8 bars[8];
  .shared .align 128 .b8 tile[96];
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mov.u32 %bar, bars;
  mov.u32 %s, tile;
  mad.lo.u32 %own, %thread, 16, %s;
  mul.wide.u32 %at, %thread, 16;
  add.u64 %out, %out, %at;
  setp.eq.u32 %first, %thread, 0;
  @!%first bra $L_wait;
  mbarrier.init.shared.b64 [%bar], 1;
  fence.proxy.async;
  mov.b64 %at, source;
  cvta.param.u64 %map, %at;
  mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 96;
  cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%map, {-1, 1, 2}], [%bar];
$L_wait:
  bar.sync 0;
$L_again:
  mbarrier.try_wait.parity.shared::cta.b64 %done, [%bar], 0;
  @!%done bra $L_again;
  ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%own];
  st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
  ret;
}
"#;

#[test]
fn copies_land_whole_in_part_or_as_zeros() {
    let input: Vec<u32> = (0..256).map(|i| 0x0101_0101 * (i % 200 + 1)).collect();
    let out: Vec<u32> = device().run("copies", [1, 64], &input, 64 * 16);
    for (thread, out) in out.chunks(16).enumerate() {
        let own = &input[thread * 4..thread * 4 + 4];
        assert_eq!(&out[..4], own, "16 bytes");
        assert_eq!(out[4..8], [own[1], own[0] & 0xffff, own[2], own[3]], "4 bytes, 2 of 4, 8 bytes");
        let zeros = [0; 4];
        assert_eq!(&out[8..12], if thread % 2 == 0 { own } else { &zeros }, "0 of 16 bytes");
        assert_eq!(
            &out[12..16],
            if thread % 2 == 0 { own } else { &zeros },
            "a predicate that ignores the source"
        );
    }
}

#[test]
fn barriers_count_arrivals_and_copies() {
    if !device().is_hopper() {
        return;
    }
    let input: Vec<u32> = (0..64).map(|i| i * i).collect();
    let out: Vec<u32> = device().run("arrivals", [1, 64], &input, 64 * 8);
    for (thread, out) in out.chunks(8).enumerate() {
        assert_eq!(out[0], thread as u32 ^ 32, "a value handed over");
        assert_eq!(out[1..3], [1, 0], "phase 1 is over, phase 2 is not");
        let one_thread = if thread == 0 { [0, 1, 1] } else { [0, 0, 0] };
        assert_eq!(out[3..6], one_thread, "2 of 3; 3 of 3, one of them for good; 2 of 2");
        assert_eq!(out[6], input[thread ^ 1], "a copy that arrived by itself");
    }
}

#[test]
fn bulk_copies_come_and_go() {
    if !device().is_hopper() {
        return;
    }
    let input: Vec<u32> = (100..164).collect();
    let out: Vec<u32> = device().run("bulk", [1, 64], &input, 64);
    assert_eq!(out, (101..165).collect::<Vec<u32>>());
}

/// A 2-D map with 128-byte swizzle. The tile is 64 columns by 8 rows; what lies outside the tensor is zero on the way
/// in and is not written on the way out.
#[test]
fn tiles_are_swizzled_and_clipped() {
    if !device().is_hopper() {
        return;
    }
    const COLUMNS: usize = 80;
    const ROWS: usize = 12;
    let source: Vec<u16> = (1..=(COLUMNS * ROWS) as u16).collect();
    for (x, y) in [(0i32, 0i32), (16, 4), (40, -3), (-24, 9)] {
        let device = device();
        let (input, output) = (device.upload(&source), device.upload(&vec![0u16; source.len()]));
        let sizes = [COLUMNS as u64, ROWS as u64];
        let map = |at| device.tensor_map(at, sizes, &[COLUMNS as u64 * 2], [64, 8], Swizzle::Bytes128);
        let (mut from, mut to) = (map(input), map(output));
        let lying = device.upload(&[0u16; 512]);
        let mut args = [u64::from(x as u32) | u64::from(y as u32) << 32, lying];
        let places = &mut [(&raw mut from).cast(), (&raw mut to).cast(), (&raw mut args).cast()];
        device.launch("tile_2d", [1, 64], 0, places);
        let lying: Vec<u16> = device.download(lying, 512);
        let stored: Vec<u16> = device.download(output, source.len());
        drop(device);
        let mut expected = vec![0; source.len()];
        for row in 0..8 {
            for column in 0..64 {
                let (at_x, at_y) = (x + column as i32, y + row as i32);
                let inside = (0..COLUMNS as i32).contains(&at_x) && (0..ROWS as i32).contains(&at_y);
                let at = inside.then(|| at_y as usize * COLUMNS + at_x as usize);
                // 16-byte units of a row of 128 bytes change places by the row's number.
                let unit = (column / 8) ^ row;
                let found = lying[row * 64 + unit * 8 + column % 8];
                assert_eq!(
                    found,
                    at.map_or(0, |at| source[at]),
                    "tile at {x}, {y}: row {row}, column {column}"
                );
                if let Some(at) = at {
                    expected[at] = source[at];
                }
            }
        }
        assert_eq!(stored, expected, "tile at {x}, {y}");
    }
}

#[test]
fn tiles_have_three_dimensions() {
    if !device().is_hopper() {
        return;
    }
    // 16 x 5 x 4, a box of 8 x 3 x 2 from column -1, row 1, plane 2.
    let source: Vec<u16> = (1..=320).collect();
    let device = device();
    let (input, output) = (device.upload(&source), device.upload(&[0u16; 48]));
    let mut map = device.tensor_map(input, [16, 5, 4], &[32, 160], [8, 3, 2], Swizzle::None);
    let mut args = [0, output];
    device.launch("tile_3d", [1, 6], 0, &mut [(&raw mut map).cast(), (&raw mut args).cast()]);
    let found: Vec<u16> = device.download(output, 48);
    drop(device);
    let mut expected = vec![];
    for plane in 2..4 {
        for row in 1..4 {
            expected.push(0);
            expected.extend((0..7).map(|column| source[plane * 80 + row * 16 + column]));
        }
    }
    assert_eq!(found, expected);
}
