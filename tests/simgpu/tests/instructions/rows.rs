//! Tables of instructions, each beside its definition. One kernel runs a whole table over all combinations of the
//! table's inputs.

use crate::device::device;
use std::fmt::Write;

/// What the values of a row's three sources are, and the result: registers' bits, the upper ones zero.
pub(crate) type Definition = fn(u64, u64, u64) -> u64;

/// How a result must agree with the definition's.
#[derive(Clone, Copy)]
pub(crate) enum Agreement {
    Bits,
    /// Floats: bits, but any NaN is as good as another.
    F32,
    F64,
    /// Units in the last place that an approximation may be off by.
    F32Within(u32),
}

pub(crate) struct Row {
    /// The instruction. `%a`, `%b` and `%c` are sources, `%d` is the result, each with its width: `%a16`, `%d32`, `%dp`.
    pub(crate) text: &'static str,
    pub(crate) agreement: Agreement,
    pub(crate) definition: Definition,
}

pub(crate) fn exact(text: &'static str, definition: Definition) -> Row {
    Row { text, agreement: Agreement::Bits, definition }
}

pub(crate) fn f32_row(text: &'static str, definition: Definition) -> Row {
    Row { text, agreement: Agreement::F32, definition }
}

pub(crate) fn f64_row(text: &'static str, definition: Definition) -> Row {
    Row { text, agreement: Agreement::F64, definition }
}

pub(crate) fn near(text: &'static str, units: u32, definition: Definition) -> Row {
    Row { text, agreement: Agreement::F32Within(units), definition }
}

pub(crate) struct Rows {
    pub(crate) kernel: &'static str,
    /// Every combination of as many of these as there are sources is tried, then as many random ones.
    pub(crate) values: Vec<u64>,
    pub(crate) sources: u32,
    pub(crate) rows: Vec<Row>,
}

impl Rows {
    pub(crate) fn kernel(&self) -> String {
        let mut text = format!(
            "
.visible .entry {}(.param .align 8 .b8 args[16])
{{
  .reg .b64 %in, %out, %at, %a64, %b64, %c64, %d64;
  .reg .b32 %index, %threads, %block, %a32, %b32, %c32, %d32;
  .reg .b16 %a16, %b16, %c16, %d16;
  .reg .pred %ap, %bp, %cp, %dp;
  ld.param.u64 %in, [args];
  ld.param.u64 %out, [args+8];
  mov.u32 %block, %ctaid.x;
  mov.u32 %threads, %ntid.x;
  mov.u32 %index, %tid.x;
  mad.lo.u32 %index, %block, %threads, %index;
  mul.wide.u32 %at, %index, 24;
  add.u64 %in, %in, %at;
  mul.wide.u32 %at, %index, {};
  add.u64 %out, %out, %at;
",
            self.kernel,
            self.rows.len() * 8
        );
        for (number, source) in ["a", "b", "c"].into_iter().enumerate() {
            let offset = number * 8;
            write!(
                text,
                "  ld.global.u64 %{source}64, [%in+{offset}];
  cvt.u32.u64 %{source}32, %{source}64;
  cvt.u16.u64 %{source}16, %{source}64;
  and.b64 %d64, %{source}64, 1;
  setp.ne.u64 %{source}p, %d64, 0;
"
            )
            .unwrap();
        }
        for (number, row) in self.rows.iter().enumerate() {
            let widen = match row.result() {
                "%dp" => "selp.u64 %d64, 1, 0, %dp;",
                "%d16" => "cvt.u64.u16 %d64, %d16;",
                "%d32" => "cvt.u64.u32 %d64, %d32;",
                _ => "",
            };
            writeln!(text, "  {}\n  {widen} st.global.u64 [%out+{}], %d64;", row.text, number * 8).unwrap();
        }
        text + "  ret;\n}\n"
    }

    /// Runs the kernel and compares every result.
    pub(crate) fn check(&self) {
        const THREADS: usize = 128;
        let inputs = self.inputs(THREADS);
        let count = self.rows.len();
        let blocks = (inputs.len() / THREADS) as u32;
        let device = device();
        let input = device.upload(&inputs);
        let output = device.upload(&vec![0u64; inputs.len() * count]);
        let mut args = [input, output];
        device.launch(self.kernel, [blocks, THREADS as u32], 0, &mut [(&raw mut args).cast()]);
        let results: Vec<u64> = device.download(output, inputs.len() * count);
        drop(device);
        let mut wrong = vec![];
        for (number, row) in self.rows.iter().enumerate() {
            let found = inputs.iter().enumerate().find_map(|(thread, &[a, b, c])| {
                let (result, expected) = (results[thread * count + number], (row.definition)(a, b, c));
                let message = format!("{} of {a:#x} {b:#x} {c:#x}: {result:#x}, not {expected:#x}", row.text);
                (!row.agreement.accepts(result, expected)).then_some(message)
            });
            wrong.extend(found);
        }
        assert!(wrong.is_empty(), "{} instructions are wrong:\n{}", wrong.len(), wrong.join("\n"));
    }

    fn inputs(&self, multiple: usize) -> Vec<[u64; 3]> {
        let values = &self.values;
        // The digits of a combination's number are its values' places; sources past the last repeat the first.
        let value = |number: usize, source: u32| {
            values[number / values.len().pow(source % self.sources) % values.len()]
        };
        let combinations = 0..values.len().pow(self.sources);
        let mut inputs: Vec<_> =
            combinations.map(|number| [0, 1, 2].map(|source| value(number, source))).collect();
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let total = (inputs.len() * 2).next_multiple_of(multiple);
        inputs.resize_with(total, || [random(), random(), random()]);
        inputs
    }
}

impl Row {
    fn result(&self) -> &'static str {
        ["%dp", "%d16", "%d32", "%d64"]
            .into_iter()
            .find(|d| self.text.contains(d))
            .expect("a row has a result")
    }
}

impl Agreement {
    fn accepts(self, result: u64, expected: u64) -> bool {
        let (result32, expected32) = (f32::from_bits(result as u32), f32::from_bits(expected as u32));
        match self {
            Self::Bits => result == expected,
            Self::F32 => result == expected || (result32.is_nan() && expected32.is_nan()),
            Self::F64 => {
                result == expected || (f64::from_bits(result).is_nan() && f64::from_bits(expected).is_nan())
            }
            Self::F32Within(units) => {
                result == expected
                    || (result32.is_nan() && expected32.is_nan())
                    || ordered(result32).abs_diff(ordered(expected32)) <= units.into()
            }
        }
    }
}

/// Floats as integers in the same order; neighbours differ by one.
fn ordered(x: f32) -> i64 {
    let magnitude = i64::from(x.to_bits() & 0x7fff_ffff);
    if x.is_sign_negative() { -magnitude } else { magnitude }
}
