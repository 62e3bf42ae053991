//! wgmma: products of a warpgroup, for every layout of its operands in shared memory, on small integers.

use crate::{device::device, tensor::half_bits};

#[derive(Clone, Copy)]
enum Operand {
    Registers,
    /// Rows of `swizzle` bytes (16 is no swizzle) that run along k, or across it.
    AlongK {
        swizzle: usize,
    },
    AcrossK {
        swizzle: usize,
    },
}
use Operand::{AcrossK, AlongK, Registers};

struct Case {
    kernel: &'static str,
    n: usize,
    bf16: bool,
    a: Operand,
    b: Operand,
    scale_a: i32,
    scale_b: i32,
    /// Adds to the accumulators, or overwrites them.
    adds: bool,
}

const fn case(kernel: &'static str, n: usize, a: Operand, b: Operand) -> Case {
    Case { kernel, n, bf16: true, a, b, scale_a: 1, scale_b: 1, adds: true }
}

const CASES: [Case; 9] = [
    case("wgmma_n8", 8, AlongK { swizzle: 128 }, AlongK { swizzle: 128 }),
    case("wgmma_n24", 24, AlongK { swizzle: 64 }, AlongK { swizzle: 32 }),
    case("wgmma_n64_plain", 64, AlongK { swizzle: 16 }, AlongK { swizzle: 16 }),
    case("wgmma_n128_registers", 128, Registers, AcrossK { swizzle: 128 }),
    case("wgmma_n256", 256, AlongK { swizzle: 128 }, AcrossK { swizzle: 64 }),
    case("wgmma_n40_across", 40, AcrossK { swizzle: 128 }, AcrossK { swizzle: 32 }),
    case("wgmma_n16_across_plain", 16, AcrossK { swizzle: 16 }, AcrossK { swizzle: 16 }),
    Case { bf16: false, scale_a: -1, ..case("wgmma_f16", 16, Registers, AlongK { swizzle: 128 }) },
    Case {
        scale_b: -1,
        adds: false,
        ..case("wgmma_overwrite", 32, AlongK { swizzle: 32 }, AlongK { swizzle: 64 })
    },
];

const M: usize = 64;
const K: usize = 16;
/// Where b begins in shared memory, and the bytes of both.
const B_AT: usize = 16384;
const BYTES: usize = B_AT + 32768;

impl Operand {
    /// Distances in bytes between neighbouring 8x8 matrices: leading and stride offsets of the descriptor.
    fn offsets(self, size: usize) -> (usize, usize) {
        match self {
            Registers => (0, 0),
            AlongK { swizzle: 16 } => (128, 256),
            AlongK { swizzle } => (16, 8 * swizzle),
            AcrossK { swizzle: 16 } => (size / 8 * 128, 128),
            AcrossK { swizzle } => (16 * swizzle, 8 * swizzle),
        }
    }

    /// Where element (`index` of m or n, `k`) of 2 bytes lies, by the ISA's canonical layouts.
    fn place(self, size: usize, index: usize, k: usize) -> usize {
        let (leading, stride) = self.offsets(size);
        let (plain, swizzle) = match self {
            Registers => (0, 16),
            AlongK { swizzle: 16 } => (index / 8 * stride + k / 8 * leading + index % 8 * 16 + k % 8 * 2, 16),
            AlongK { swizzle } => (index / 8 * stride + index % 8 * swizzle + k * 2, swizzle),
            AcrossK { swizzle: 16 } => {
                (index / 8 * stride + k / 8 * leading + k % 8 * 16 + index % 8 * 2, 16)
            }
            AcrossK { swizzle } => {
                let row = swizzle / 2;
                (index / row * leading + k / 8 * stride + k % 8 * swizzle + index % row * 2, swizzle)
            }
        };
        // Bits 4 and up are exclusive-ored with bits 7 and up.
        plain ^ (plain >> 7 & (swizzle / 16 - 1)) << 4
    }

    fn descriptor(self, at: usize, size: usize) -> u64 {
        let (leading, stride) = self.offsets(size);
        let mode: u64 = match self {
            AlongK { swizzle: 128 } | AcrossK { swizzle: 128 } => 1,
            AlongK { swizzle: 64 } | AcrossK { swizzle: 64 } => 2,
            AlongK { swizzle: 32 } | AcrossK { swizzle: 32 } => 3,
            _ => 0,
        };
        (at as u64) >> 4 | (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62
    }

    fn is_transposed(self) -> bool {
        matches!(self, AcrossK { .. })
    }
}

pub(crate) fn ptx() -> String {
    let head = ".extern .shared .align 1024 .b8 operands[];\n".to_owned();
    CASES.iter().map(Case::kernel).fold(head, |text, kernel| text + &kernel)
}

/// Kernels that a GPU runs too, with results that are anything.
pub(crate) fn misused() -> String {
    let misused = |(name, [from, to], _): &(&str, [&str; 2], &str)| {
        CASES[0].kernel().replace(CASES[0].kernel, name).replace(from, to)
    };
    MISUSES.iter().map(misused).collect()
}

const WAIT: &str = "wgmma.wait_group.sync.aligned 0;";

/// A kernel's name, what it has instead of a correct one's text, and the report.
const MISUSES: [(&str, [&str; 2], &str); 4] = [
    ("wgmma_no_wait", [WAIT, ""], "used before wgmma.wait_group"),
    ("wgmma_wait_for_older", [WAIT, "wgmma.wait_group.sync.aligned 1;"], "used before wgmma.wait_group"),
    ("wgmma_no_commit", ["wgmma.commit_group.sync.aligned;", ""], "used before wgmma.wait_group"),
    ("wgmma_no_fence", ["wgmma.fence.sync.aligned;", ""], "wgmma without wgmma.fence"),
];

#[test]
fn accumulators_in_flight_may_not_be_touched() {
    for (kernel, _, report) in MISUSES {
        let device = device();
        let input = device.upload(&vec![0u8; BYTES + 4096]);
        let mut args = [input, device.upload(&[0.0f32; 512])];
        device.launch(kernel, [1, 128], BYTES as u32, &mut [(&raw mut args).cast()]);
        let found = device.reports();
        assert!(found.contains(report), "{kernel}: {found:?}");
    }
}

impl Case {
    /// Copies the operands to shared memory, multiplies, stores the accumulators.
    fn kernel(&self) -> String {
        let Self { kernel, n, .. } = *self;
        let count = n / 2;
        let list: Vec<_> = (0..count).map(|i| format!("%d{i}")).collect();
        let list = list.join(", ");
        let each = |line: &dyn Fn(usize) -> String| (0..count).map(line).collect::<String>();
        let load = each(&|i| format!("  ld.global.f32 %d{i}, [%c+{}];\n", BYTES + 2048 + i * 4));
        let store = each(&|i| format!("  st.global.f32 [%out+{}], %d{i};\n", i * 4));
        let half = if self.bf16 { "bf16" } else { "f16" };
        let (a, transpositions) = match self.a {
            Registers => ("{%r0, %r1, %r2, %r3}", format!("{}", u8::from(self.b.is_transposed()))),
            _ => {
                ("%a", format!("{}, {}", u8::from(self.a.is_transposed()), u8::from(self.b.is_transposed())))
            }
        };
        format!(
            "
.visible .entry {kernel}(.param .align 8 .b8 args[16])
.maxntid 128, 1, 1
{{
  .reg .b64 %in, %out, %at, %c, %a, %b, %base;
  .reg .b32 %r<8>, %thread, %s;
  .reg .f32 %d<{count}>;
  .reg .pred %p, %adds;
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %thread, %tid.x;
  mul.wide.u32 %at, %thread, {};
  add.u64 %out, %out, %at;
  add.u64 %c, %in, %at;
  mul.wide.u32 %at, %thread, 16;
  add.u64 %at, %in, %at;
  mov.u32 %s, operands;
  mad.lo.u32 %r5, %thread, 16, %s;
  mov.u32 %r4, 0;
$L_copy:
  ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%at];
  st.shared.v4.u32 [%r5], {{%r0, %r1, %r2, %r3}};
  add.u64 %at, %at, 2048;
  add.u32 %r5, %r5, 2048;
  add.u32 %r4, %r4, 2048;
  setp.lt.u32 %p, %r4, {BYTES};
  @%p bra $L_copy;
  ld.global.v4.u32 {{%r0, %r1, %r2, %r3}}, [%at];
{load}
  fence.proxy.async.shared::cta;
  bar.sync 0;
  shr.u32 %s, %s, 4;
  cvt.u64.u32 %base, %s;
  add.u64 %a, %base, {};
  add.u64 %b, %base, {};
  setp.ne.u32 %adds, {}, 0;
  wgmma.fence.sync.aligned;
  wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{half}.{half} {{{list}}}, {a}, %b, %adds, {}, {}, {transpositions};
  wgmma.commit_group.sync.aligned;
  wgmma.wait_group.sync.aligned 0;
{store}
  ret;
}}
",
            count * 4,
            self.a.descriptor(0, M),
            self.b.descriptor(B_AT, n),
            u8::from(self.adds),
            self.scale_a,
            self.scale_b,
        )
        .replace("$L_copy", &format!("$L_copy_{kernel}"))
    }

    fn check(&self) {
        let Self { n, bf16, .. } = *self;
        let a = |row: usize, k: usize| (row * 3 + k * 5) as i32 % 9 - 4;
        let b = |k: usize, column: usize| (k * 7 + column * 2) as i32 % 11 - 5;
        let c = |row: usize, column: usize| (row + column * 4) as i32 % 13 - 6;
        // What no element lies on is a NaN.
        let mut input = vec![0xff_u8; BYTES];
        let mut put =
            |at: usize, x: i32| input[at..at + 2].copy_from_slice(&half_bits(bf16, x).to_le_bytes());
        for k in 0..K {
            for row in 0..M {
                if !matches!(self.a, Registers) {
                    put(self.a.place(M, row, k), a(row, k));
                }
            }
            for column in 0..n {
                put(B_AT + self.b.place(n, column, k), b(k, column));
            }
        }
        for thread in 0..128 {
            let (row, k) = (thread / 32 * 16 + thread % 32 / 4, thread % 4 * 2);
            for (row, k) in [(row, k), (row + 8, k), (row, k + 8), (row + 8, k + 8)] {
                input.extend(
                    [a(row, k), a(row, k + 1)].iter().flat_map(|&x| half_bits(bf16, x).to_le_bytes()),
                );
            }
        }
        let place = |thread: usize, index: usize| {
            let row = thread / 32 * 16 + thread % 32 / 4 + index / 2 % 2 * 8;
            (row, index / 4 * 8 + thread % 4 * 2 + index % 2)
        };
        for thread in 0..128 {
            for (row, column) in (0..n / 2).map(|index| place(thread, index)) {
                input.extend((c(row, column) as f32).to_le_bytes());
            }
        }
        let out: Vec<f32> = device().run_with_shared(self.kernel, [1, 128], BYTES as u32, &input, 64 * n);
        for (thread, out) in out.chunks(n / 2).enumerate() {
            for (index, &found) in out.iter().enumerate() {
                let (row, column) = place(thread, index);
                let product: i32 = (0..K).map(|k| a(row, k) * b(k, column)).sum();
                let sum = product * self.scale_a * self.scale_b + if self.adds { c(row, column) } else { 0 };
                assert_eq!(found, sum as f32, "{}, row {row}, column {column}", self.kernel);
            }
        }
    }
}

#[test]
fn warpgroup_products_of_integers_are_exact() {
    if !device().is_hopper() {
        return;
    }
    for case in &CASES {
        case.check();
    }
}

/// Every shape there is, in both forms, has a translation; none in between does.
#[test]
fn all_shapes_are_translated() {
    let translates = |n: usize, count: usize| {
        let list: Vec<_> = (0..count).map(|i| format!("%f{i}")).collect();
        let list = list.join(",");
        let head =
            ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry kernel() {\n.reg .f32 %f<128>;";
        let registers = ".reg .b32 %r<4>; .reg .b64 %rd<2>; .reg .pred %p;";
        let both =
            ["%rd0, %rd1, %p, 1, 1, 0, 1", "{%r0, %r1, %r2, %r3}, %rd1, %p, 1, -1, 0"].map(|sources| {
                format!("wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{list}}}, {sources};\n")
            });
        simgpu::translate("shapes", &format!("{head}{registers}{}}}", both.concat())).is_ok()
    };
    for n in (8..=256).step_by(8) {
        assert!(translates(n, n / 2), "n {n}");
        assert!(!translates(n, n / 2 - 1), "too few accumulators for n {n}");
    }
    assert!(!translates(12, 6) && !translates(264, 128) && !translates(0, 1));
}
