//! Branches, calls, barriers, special registers.

use crate::device::device;

pub(crate) const PTX: &str = r#"
.func (.param .b32 result) twice_plus(.param .b32 twice_plus_x, .param .align 8 .b8 twice_plus_pair[16])
{
  .reg .b32 %r<3>;
  .reg .b64 %d<2>;
  .local .align 4 .b8 frame[4];
  ld.param.u32 %r0, [twice_plus_x];
  ld.param.v2.u64 {%d0, %d1}, [twice_plus_pair];
  st.local.u32 [frame], %r0;
  add.s64 %d0, %d0, %d1;
  cvt.u32.u64 %r1, %d0;
  ld.local.u32 %r0, [frame];
  mad.lo.u32 %r2, %r0, 2, %r1;
  st.param.b32 [result], %r2;
  ret;
}

// Factorial, by calling itself.
.visible .func (.param .b64 result) factorial(.param .b32 factorial_n)
{
  .reg .pred %p;
  .reg .b32 %n, %less;
  .reg .b64 %product, %wide;
  ld.param.u32 %n, [factorial_n];
  mov.u64 %product, 1;
  setp.lt.u32 %p, %n, 2;
  @%p bra $L_done;
  sub.u32 %less, %n, 1;
  {
    .param .b32 argument;
    st.param.b32 [argument+0], %less;
    .param .b64 value;
    call.uni (value), factorial, (argument);
    ld.param.b64 %product, [value+0];
  }
  cvt.u64.u32 %wide, %n;
  mul.lo.u64 %product, %product, %wide;
$L_done:
  st.param.b64 [result+0], %product;
  ret;
}

.visible .entry branches(.param .align 8 .b8 args[16])
{
  .reg .pred %p, %q;
  .reg .b64 %out, %at, %d;
  .reg .b32 %r<8>, %thread;
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mul.wide.u32 %at, %thread, 32;
  add.u64 %out, %out, %at;
  // A loop.
  mov.u32 %r0, 0;
  mov.u32 %r1, 0;
$L_loop:
  setp.ge.u32 %p, %r1, %thread;
  @%p bra.uni $L_after;
  add.u32 %r0, %r0, %r1;
  add.u32 %r1, %r1, 1;
  bra $L_loop;
$L_after:
  // A table of branches.
  and.b32 %r2, %thread, 3;
$L_table: .branchtargets $L_zero, $L_one, $L_one, $L_three;
  brx.idx %r2, $L_table;
$L_zero:
  mov.u32 %r3, 100;
  bra $L_join;
$L_one:
  mov.u32 %r3, 101;
  bra $L_join;
$L_three:
  mov.u32 %r3, 103;
$L_join:
  // Equal names in two pairs of braces are two things.
  { .reg .b32 %r0; .reg .pred p; setp.eq.u32 p, %r2, 1; mov.u32 %r0, 7; @p bra DONE; mov.u32 %r0, 8; DONE: mov.u32 %r4, %r0; }
  { .reg .b32 %r0; .reg .pred p; setp.eq.u32 p, %r2, 2; mov.u32 %r0, 70; @!p bra DONE; mov.u32 %r0, 80; DONE: mov.u32 %r5, %r0; }
  mov.pred %q, -1;
  @!%q mov.u32 %r5, 0;
  {
    .param .b32 x;
    st.param.b32 [x+0], %thread;
    .param .align 8 .b8 pair[16];
    cvt.u64.u32 %d, %r0;
    st.param.v2.b64 [pair+0], {%d, 1000};
    .param .b32 value;
    call.uni (value), twice_plus, (x, pair);
    ld.param.b32 %r6, [value+0];
  }
  {
    .param .b32 n;
    and.b32 %r7, %thread, 15;
    st.param.b32 [n+0], %r7;
    .param .b64 value;
    call (value), factorial, (n);
    ld.param.b64 %d, [value+0];
  }
  st.global.v4.u32 [%out], {%r0, %r3, %r4, %r5};
  st.global.u32 [%out+16], %r6;
  st.global.u64 [%out+24], %d;
  setp.gt.u32 %p, %thread, 40;
  @%p exit;
  st.global.u32 [%out+20], 1;
  ret;
}

.visible .entry barriers(.param .align 8 .b8 args[16])
{
  .reg .pred %p, %q, %half;
  .reg .b64 %out, %at;
  .reg .b32 %r<8>, %thread, %s;
  .shared .align 4 .b8 values[512];
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mul.wide.u32 %at, %thread, 16;
  add.u64 %out, %out, %at;
  // How many threads are odd, whether all are small, whether one is 5.
  and.b32 %r0, %thread, 1;
  setp.ne.u32 %p, %r0, 0;
  bar.red.popc.u32 %r1, 0, %p;
  setp.lt.u32 %p, %thread, 128;
  barrier.cta.red.and.aligned.pred %q, 1, 128, %p;
  selp.u32 %r2, 1, 0, %q;
  setp.eq.u32 %p, %thread, 5;
  bar.red.or.pred %q, 0, %p;
  selp.u32 %r3, 1, 0, %q;
  // The upper half writes and arrives, the lower half waits and reads.
  mov.u32 %s, values;
  mad.lo.u32 %s, %thread, 4, %s;
  setp.ge.u32 %half, %thread, 64;
  @%half bra $L_upper;
  barrier.cta.sync 2, 128;
  ld.shared.u32 %r4, [%s+256];
  bra $L_end;
$L_upper:
  st.shared.u32 [%s], %thread;
  barrier.arrive 2, 128;
  mov.u32 %r4, 0;
$L_end:
  bar.warp.sync 0xffffffff;
  st.global.v4.u32 [%out], {%r1, %r2, %r3, %r4};
  ret;
}

.visible .entry specials(.param .align 8 .b8 args[16])
{
  .reg .b64 %out, %at, %t<3>;
  .reg .b32 %r<16>, %index;
  .reg .pred %p;
  ld.param.u64 %out, [args+8];
  mov.u32 %r0, %tid.x;
  mov.u32 %r1, %ctaid.x;
  mov.u32 %r2, %ntid.x;
  mov.u32 %r3, %nctaid.x;
  mad.lo.u32 %index, %r1, %r2, %r0;
  mul.wide.u32 %at, %index, 64;
  add.u64 %out, %out, %at;
  st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
  mov.u32 %r4, %laneid;
  mov.u32 %r5, %warpid;
  mov.u32 %r6, %lanemask_lt;
  mov.u32 %r7, %lanemask_ge;
  st.global.v4.u32 [%out+16], {%r4, %r5, %r6, %r7};
  mov.u32 %r8, %lanemask_eq;
  mov.u32 %r9, %lanemask_le;
  mov.u32 %r10, %lanemask_gt;
  mov.u32 %r11, %ntid.y;
  st.global.v4.u32 [%out+32], {%r8, %r9, %r10, %r11};
  mov.u64 %t0, %globaltimer;
  mov.u64 %t1, %clock64;
  nanosleep.u32 20;
  griddepcontrol.wait;
  griddepcontrol.launch_dependents;
  mov.u64 %t2, %clock64;
  setp.le.u64 %p, %t1, %t2;
  selp.u32 %r12, 1, 0, %p;
  mov.u32 %r13, WARP_SZ;
  mov.u32 %r14, %tid.z;
  mov.u32 %r15, %cluster_nctarank;
  st.global.v4.u32 [%out+48], {%r12, %r13, %r14, %r15};
  ret;
}

// What the first word of the input chooses.
.visible .entry faults(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %a, %wide;
  .reg .b32 %choice, %r;
  .reg .pred %p;
  .local .align 8 .b8 frame[16];
  ld.param.u64 %in, [args];
  ld.global.u32 %choice, [%in];
$L_table: .branchtargets $L_trap, $L_break, $L_local;
  brx.idx %choice, $L_table;
$L_trap:
  trap;
$L_break:
  brkpt;
$L_local:
  mov.u64 %a, frame;
  mul.wide.u32 %wide, %choice, 8;
  add.u64 %a, %a, %wide;
  st.local.u32 [%a], %choice;
  ret;
}
"#;

#[test]
fn faults_are_reported_with_their_reason() {
    let reasons = ["trap", "breakpoint", "address outside the local variables", "branch index out of range"];
    for (choice, reason) in (0u32..).zip(reasons) {
        let device = device();
        let mut args = [device.upload(&[choice]), 0];
        device.launch("faults", [1, 1], 0, &mut [(&raw mut args).cast()]);
        let found = device.reports();
        assert!(found.contains(reason), "{reason}: {found:?}");
    }
}

#[test]
fn branches_calls_and_scopes_go_where_they_say() {
    const THREADS: u32 = 64;
    let out: Vec<u32> = device().run("branches", [1, THREADS], &[0u64], THREADS as usize * 8);
    for (thread, out) in (0..THREADS).zip(out.chunks(8)) {
        let sum: u32 = (0..thread).sum();
        let table = [100, 101, 101, 103][thread as usize % 4];
        let [first, second] = [if thread % 4 == 1 { 7 } else { 8 }, if thread % 4 == 2 { 80 } else { 70 }];
        assert_eq!(out[..5], [sum, table, first, second, 2 * thread + sum + 1000], "thread {thread}");
        assert_eq!(out[5], u32::from(thread <= 40), "exit");
        let factorial: u64 = (1..=u64::from(thread % 16)).product();
        assert_eq!(u64::from(out[6]) | u64::from(out[7]) << 32, factorial);
    }
}

#[test]
fn barriers_reduce_and_order() {
    let out: Vec<u32> = device().run("barriers", [1, 128], &[0u64], 512);
    for (thread, out) in (0u32..128).zip(out.chunks(4)) {
        assert_eq!(out, [64, 1, 1, if thread < 64 { thread + 64 } else { 0 }]);
    }
}

#[test]
fn special_registers_know_the_launch() {
    let out: Vec<u32> = device().run("specials", [3, 70], &[0u64], 210 * 16);
    for (index, out) in (0u32..210).zip(out.chunks(16)) {
        let (block, thread) = (index / 70, index % 70);
        let (lane, bit) = (thread % 32, 1u32 << (thread % 32));
        assert_eq!(out[..4], [thread, block, 70, 3]);
        assert_eq!(out[4..8], [lane, thread / 32, bit - 1, !(bit - 1)]);
        assert_eq!(out[8..12], [bit, bit | (bit - 1), !(bit | (bit - 1)), 1]);
        assert_eq!(out[12..16], [1, 32, 0, 1]);
    }
}
