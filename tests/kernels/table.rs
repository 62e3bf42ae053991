//! benches/KERNELS.md: what each kernel takes and does, for an Ampere and a Hopper GPU.

use crate::elf::{self, Kernel};
use crate::sass::Counts;
use crate::{capability, names};
use qformer::device::cuda::{COMPILER, Unit};

pub(crate) const ARCHITECTURES: [&str; 2] = ["sm_80", "sm_90a"];

/// The ending of units for Hopper alone.
const HOPPER: &str = "_sm90a";

const TEXT: &str = "# What the compiler made of the kernels

Written by `UPDATE_KERNEL_TABLE=1 cargo test --test kernels`, from the code itself. Registers are those of a
thread; shared memory (bytes) is what a kernel declares, before what it is launched with. The rest counts
instructions as they stand in the code, wherever that is: products on tensor cores (`mma` or `wgmma`),
`ldmatrix`, asynchronous copies of 16 bytes (`cp.async`), TMA loads, loads and stores of 16 bytes of global
memory, barriers, and powers, roots and reciprocals. No kernel keeps registers in memory.
";

const HEADER: &str = "
| kernel | threads | registers | shared | products | ldmatrix | cp.async | TMA | loads | stores | barriers | special |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
";

/// The whole table, of this build.
pub(crate) fn text(units: &[Unit]) -> String {
    let mut text = format!("{TEXT}Compiled by {}.\n", COMPILER.expect("there are kernels"));
    for architecture in ARCHITECTURES {
        text += &format!("\n## {architecture}\n{HEADER}");
        for unit in units.iter().filter(|unit| is_for(unit, architecture)) {
            let image = unit.images.iter().find(|image| image.architecture == architecture);
            let image = image.unwrap_or_else(|| panic!("build with {architecture} to write the table"));
            for kernel in elf::kernels(image.code, capability(image)) {
                text += &row(unit.name, &kernel);
            }
        }
    }
    text
}

fn row(unit: &str, kernel: &Kernel<'_>) -> String {
    let counts = Counts::of(kernel.code);
    let numbers = [
        u64::from(kernel.threads),
        u64::from(kernel.registers),
        kernel.shared_bytes,
        (counts.mma + counts.wgmma) as u64,
        counts.ldmatrix as u64,
        counts.async_copies as u64,
        counts.tma_loads as u64,
        counts.vector_loads as u64,
        counts.vector_stores as u64,
        counts.barriers as u64,
        counts.special as u64,
    ];
    let numbers = numbers.map(|number| number.to_string()).join(" | ");
    format!("| {unit}/{} | {numbers} |\n", kernel.name)
}

/// The kernels that a table has for an architecture.
pub(crate) fn kernels(table: &str, architecture: &str) -> Vec<String> {
    let part = table.split("\n## ").find_map(|part| part.strip_prefix(architecture));
    let rows = part.unwrap_or_default().lines().filter_map(|line| line.strip_prefix("| ")?.split_once(" |"));
    rows.filter(|(name, _)| name.contains('/')).map(|(name, _)| name.to_owned()).collect()
}

/// The kernels that it ought to have, which a build for other architectures knows as well.
pub(crate) fn wanted(units: &[Unit], architecture: &str) -> Vec<String> {
    let units = units.iter().filter(|unit| is_for(unit, architecture));
    units
        .flat_map(|unit| names(&unit.images[0]).into_iter().map(|name| format!("{}/{name}", unit.name)))
        .collect()
}

fn is_for(unit: &Unit, architecture: &str) -> bool {
    architecture == "sm_90a" || !unit.name.ends_with(HOPPER)
}
