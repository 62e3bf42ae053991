//! Exchanges between lanes.

use crate::device::device;

/// A kernel of one warp whose every lane has the word `%x` of the input and its lane number `%lane`, and stores results
/// `%r0` to `%r15`.
pub(crate) fn ptx() -> String {
    let mut text = String::from(
        "
.visible .entry exchanges(.param .align 8 .b8 args[16])
{
  .reg .b64 %in, %out, %at, %wide;
  .reg .b32 %r<16>, %x, %lane, %mask;
  .reg .pred %p, %q;
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %lane, %laneid;
  mul.wide.u32 %at, %lane, 4;
  add.u64 %in, %in, %at;
  ld.global.u32 %x, [%in];
",
    );
    for (group, instructions) in GROUPS.iter().enumerate() {
        for (index, (instruction, _)) in instructions.iter().enumerate() {
            let instruction = instruction.replace("%r", &format!("%r{index}"));
            text += &format!("  {instruction}\n  mul.wide.u32 %at, %lane, 64; add.u64 %at, %out, %at;\n");
            text += &format!("  st.global.u32 [%at+{}], %r{index};\n", group * 2048 + index * 4);
        }
    }
    text + "  ret;\n}\n" + HALF_WARPS
}

/// Two halves of a warp at work on their own, and a short warp.
const HALF_WARPS: &str = r#"
.visible .entry half_warps(.param .align 8 .b8 args[16])
{
  .reg .b64 %out, %at;
  .reg .b32 %r<8>, %lane, %mask, %thread;
  .reg .pred %p, %q;
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mov.u32 %lane, %laneid;
  mul.wide.u32 %at, %thread, 16;
  add.u64 %out, %out, %at;
  setp.lt.u32 %p, %lane, 16;
  selp.u32 %mask, 0xffff, 0xffff0000, %p;
  setp.ge.u32 %q, %thread, 32;
  selp.u32 %mask, 0xff, %mask, %q;
  @%p bra $L_low;
  redux.sync.add.u32 %r0, %lane, %mask;
  bra $L_both;
$L_low:
  redux.sync.max.u32 %r0, %thread, %mask;
$L_both:
  setp.eq.u32 %p, %lane, %lane;
  vote.sync.all.pred %q, %p, 0xffffffff;
  selp.u32 %r1, 1, 0, %q;
  vote.sync.ballot.b32 %r2, %p, 0xffffffff;
  activemask.b32 %r3;
  st.global.v4.u32 [%out], {%r0, %r1, %r2, %r3};
  ret;
}
"#;

/// An instruction and what lane `lane` gets where lane `l` has `x[l]`.
type Exchange = (&'static str, fn(&[u32; 32], usize) -> u32);

const GROUPS: [&[Exchange]; 3] = [SHUFFLES, VOTES, REDUCTIONS];

const SHUFFLES: &[Exchange] = &[
    ("shfl.sync.idx.b32 %r, %x, 5, 31, 0xffffffff;", |x, _| x[5]),
    ("shfl.sync.idx.b32 %r|%p, %x, %lane, 0x181f, 0xffffffff; selp.u32 %r, %r, 99, %p;", |x, lane| {
        // Segments of eight lanes: the source lane is taken within the own segment.
        x[lane / 8 * 8 + lane % 8]
    }),
    ("shfl.sync.bfly.b32 %r, %x, 16, 31, 0xffffffff;", |x, lane| x[lane ^ 16]),
    ("shfl.sync.bfly.b32 %r, %x, 1, 0x1c03, 0xffffffff;", |x, lane| x[lane ^ 1]),
    ("shfl.sync.down.b32 %r, %x, 3, 31, 0xffffffff;", |x, lane| {
        x[if lane + 3 < 32 { lane + 3 } else { lane }]
    }),
    ("shfl.sync.down.b32 %r|%p, %x, 3, 0x180f, 0xffffffff; selp.u32 %r, 1, 0, %p;", |_, lane| {
        u32::from(lane % 8 + 3 < 8)
    }),
    ("shfl.sync.up.b32 %r, %x, 1, 0, 0xffffffff;", |x, lane| x[lane.saturating_sub(1)]),
    ("shfl.sync.up.b32 %r|%p, %x, 2, 0, 0xffffffff; selp.u32 %r, 1, 0, %p;", |_, lane| u32::from(lane >= 2)),
    ("shfl.sync.up.b32 %r, %x, 2, 0x1800, 0xffffffff;", |x, lane| {
        x[if lane % 8 >= 2 { lane - 2 } else { lane }]
    }),
];

const VOTES: &[Exchange] = &[
    ("setp.gt.s32 %p, %x, 0; vote.sync.ballot.b32 %r, %p, 0xffffffff;", |x, _| ballot(x, |x| x as i32 > 0)),
    ("vote.sync.ballot.b32 %r, !%p, 0xffffffff;", |x, _| !ballot(x, |x| x as i32 > 0)),
    ("vote.sync.any.pred %q, %p, 0xffffffff; selp.u32 %r, 1, 0, %q;", |_, _| 1),
    ("vote.sync.all.pred %q, %p, 0xffffffff; selp.u32 %r, 1, 0, %q;", |_, _| 0),
    ("vote.sync.uni.pred %q, %p, 0xffffffff; selp.u32 %r, 1, 0, %q;", |_, _| 0),
    ("setp.ge.u32 %p, %lane, 32; vote.sync.uni.pred %q, %p, 0xffffffff; selp.u32 %r, 1, 0, %q;", |_, _| 1),
    ("vote.sync.any.pred %q, %p, 0xffffffff; selp.u32 %r, 1, 0, %q;", |_, _| 0),
    ("and.b32 %r, %x, 3; match.any.sync.b32 %r, %r, 0xffffffff;", |x, lane| {
        ballot(x, |other| other & 3 == x[lane] & 3)
    }),
    ("cvt.u64.u32 %wide, %x; match.any.sync.b64 %r, %wide, 0xffffffff;", |_, lane| 1 << lane),
    ("match.all.sync.b32 %r|%p, %x, 0xffffffff; selp.u32 %r, %r, 7, %p;", |_, _| 7),
    ("mov.u32 %mask, 4; match.all.sync.b32 %r|%p, %mask, 0xffffffff;", |_, _| 0xffff_ffff),
    ("elect.sync %mask|%p, 0xffffffff; selp.u32 %r, 1, 0, %p;", |_, lane| u32::from(lane == 0)),
    ("vote.sync.ballot.b32 %r, %p, 0xffffffff; popc.b32 %r, %r;", |_, _| 1),
];

const REDUCTIONS: &[Exchange] = &[
    ("redux.sync.add.s32 %r, %x, 0xffffffff;", |x, _| x.iter().fold(0, |sum, x| sum.wrapping_add(*x))),
    ("redux.sync.min.s32 %r, %x, 0xffffffff;", |x, _| x.iter().map(|&x| x as i32).min().unwrap_or(0) as u32),
    ("redux.sync.max.s32 %r, %x, 0xffffffff;", |x, _| x.iter().map(|&x| x as i32).max().unwrap_or(0) as u32),
    ("redux.sync.min.u32 %r, %x, 0xffffffff;", |x, _| x.iter().copied().min().unwrap_or(0)),
    ("redux.sync.max.u32 %r, %x, 0xffffffff;", |x, _| x.iter().copied().max().unwrap_or(0)),
    ("redux.sync.and.b32 %r, %x, 0xffffffff;", |x, _| x.iter().fold(!0, |all, x| all & x)),
    ("redux.sync.or.b32 %r, %x, 0xffffffff;", |x, _| x.iter().fold(0, |all, x| all | x)),
    ("redux.sync.xor.b32 %r, %x, 0xffffffff;", |x, _| x.iter().fold(0, |all, x| all ^ x)),
    ("activemask.b32 %r;", |_, _| 0xffff_ffff),
];

fn ballot(x: &[u32; 32], vote: impl Fn(u32) -> bool) -> u32 {
    x.iter().enumerate().map(|(lane, &x)| u32::from(vote(x)) << lane).sum()
}

#[test]
fn lanes_exchange_as_defined() {
    let input: [u32; 32] = std::array::from_fn(|lane| (lane as u32 + 1).wrapping_mul(0x9e37_79b9));
    let out: Vec<u32> = device().run("exchanges", [1, 32], &input, GROUPS.len() * 512);
    for (group, instructions) in GROUPS.iter().enumerate() {
        for (index, (instruction, expected)) in instructions.iter().enumerate() {
            let found: Vec<u32> = (0..32).map(|lane| out[group * 512 + lane * 16 + index]).collect();
            let expected: Vec<u32> = (0..32).map(|lane| expected(&input, lane)).collect();
            assert_eq!(found, expected, "{instruction}");
        }
    }
}

#[test]
fn half_warps_and_short_warps_are_on_their_own() {
    // The second warp has eight lanes.
    let out: Vec<u32> = device().run("half_warps", [1, 40], &[0u64], 160);
    for (thread, out) in out.chunks(4).enumerate() {
        let reduced = match thread {
            0..16 => 15,
            16..32 => (16..32).sum(),
            _ => 39,
        };
        let lanes = if thread < 32 { 0xffff_ffff } else { 0xff };
        assert_eq!(out, [reduced, 1, lanes, lanes], "thread {thread}");
    }
}
