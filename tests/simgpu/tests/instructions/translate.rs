//! What has no translation is an error that names the line: nothing is left out silently.

use simgpu::translate;

/// The reasons for which a kernel of these instructions is refused, each with its line in the kernel.
fn refusals(instructions: &str) -> Vec<(usize, String)> {
    let head = ".version 8.0\n.target sm_90a\n.address_size 64\n.visible .entry kernel()\n{\n";
    let registers = ".reg .b32 %r<8>; .reg .f32 %f<64>; .reg .b64 %rd<4>; .reg .pred %p<2>;\n";
    let refused =
        translate("unit", &format!("{head}{registers}{instructions}\n}}\n")).err().unwrap_or_default();
    refused.into_iter().map(|refusal| (refusal.line - 6, refusal.to_string())).collect()
}

#[test]
fn a_known_kernel_is_translated() {
    assert_eq!(refusals("add.u32 %r0, %r1, %r2;\nret;"), []);
}

#[test]
fn every_unknown_instruction_is_named_with_its_line() {
    let found =
        refusals("add.u32 %r0, %r1, %r2;\nfrobnicate.b32 %r0, %r1;\n@%p0 tex.1d.v4.f32.f32 %f0, %f1;\nret;");
    let lines: Vec<_> = found.iter().map(|(line, _)| *line).collect();
    assert_eq!(lines, [2, 3]);
    assert!(found[0].1.contains("frobnicate.b32"), "{}", found[0].1);
    assert!(found[1].1.contains("tex.1d"), "{}", found[1].1);
}

#[test]
fn an_unknown_modifier_is_refused() {
    for instruction in [
        "add.sat.u32 %r0, %r1, %r2;",
        "cvt.rni.satfinite.f32.f32 %f0, %f1;",
        "ld.global.secret.u32 %r0, [%rd0];",
        "bar.sync.slowly 0;",
        "fma.rna.f32 %f0, %f1, %f2, %f3;",
        "fence.proxy.texture;",
        "shfl.bfly.b32 %r0, %r1, 1, 31;",
        "mma.sync.aligned.m16n8k16.row.row.f32.bf16.bf16.f32 {%f0,%f1,%f2,%f3}, {%r0,%r1,%r2,%r3}, {%r4,%r5}, {%f0,%f1,%f2,%f3};",
    ] {
        assert_eq!(refusals(instruction).len(), 1, "{instruction}");
    }
}

#[test]
fn wrong_operands_are_refused() {
    for instruction in [
        "add.u32 %r0, %r1;",
        "add.u32 %r0, %r1, %unknown;",
        "add.u64 %rd0, %r1, %rd1;",
        "add.u32 %r0, %p0, %r1;",
        "setp.lt.s32 %r0, %r1, %r2;",
        "and.b32 %r0, %r1, 0x100000000;",
        "bra $L_nowhere;",
        "call nobody, ();",
        "@%r0 ret;",
    ] {
        assert_eq!(refusals(instruction).len(), 1, "{instruction}");
    }
}

/// wgmma writes its accumulators late, in a piece of one array: two instructions must agree on their order.
#[test]
fn accumulators_in_two_orders_are_refused() {
    let multiply = |registers: &str| {
        format!(
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {{{registers}}}, %rd0, %rd1, %p0, 1, 1, 0, 0;\n"
        )
    };
    let straight = multiply("%f0, %f1, %f2, %f3");
    assert_eq!(refusals(&(straight.clone() + &straight + &multiply("%f7, %f6, %f5, %f4"))), []);
    let found = refusals(&(straight + &multiply("%f3, %f2, %f1, %f0")));
    assert_eq!(found.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2]);
}

#[test]
fn text_that_is_not_ptx_is_refused() {
    for text in [
        "?",
        ".version",
        ".visible .entry kernel( {",
        ".visible .entry kernel() { .reg .b7 %r; }",
        ".func f() {",
    ] {
        assert_eq!(translate("unit", text).map_err(|refusals| refusals.len()), Err(1), "{text}");
    }
}
