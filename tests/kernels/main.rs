//! What the compiler made of the kernels, read from the cubins: no GPU is needed for it, and none shows it.
//!
//! `UPDATE_KERNEL_TABLE=1 cargo test --test kernels` writes it to benches/KERNELS.md.

mod elf;
mod sass;
mod table;

use elf::Kernel;
use qformer::device::cuda::{COMPILER, Image, UNITS, Unit};
use sass::Counts;
use std::fs;
use std::path::{Path, PathBuf};

/// Kernels that multiply matrices, by the beginnings of `unit/kernel`.
const MATRIX_PRODUCTS: [&str; 9] = [
    "gemm/gemm_forward",
    "gemm/gemm_input",
    "gemm/gemm_weight",
    "attention/attention_forward",
    "attention/attention_backward",
    "absorbed_attention/",
    "similarity/similarity_all_forward",
    "contrastive/contrastive_forward",
    "contrastive/contrastive_backward",
];
/// The same by `wgmma`, which only Hopper has.
const HOPPER_PRODUCTS: [&str; 3] = ["gemm_sm90a/", "contrastive_sm90a/", "contrastive_backward_sm90a/"];
/// Kernels without a matrix product that do not read 16 bytes at a time, each with the reason.
const SINGLE_LOADS: [(&str, &str); 12] = [
    ("attention/attention_combine", "a few numbers of each split of the keys"),
    ("contrastive/contrastive_dtemperature", "a number a text"),
    ("contrastive/contrastive_lines", "a thread a line, of a few parts"),
    ("contrastive/contrastive_loss", "a few numbers a line"),
    ("cross_entropy/cross_entropy_mean", "three numbers a row of logits"),
    ("layer_norm/layer_norm_parameters", "a warp reads 128 bytes of each block's sums"),
    ("matching/matching_backward", "three numbers a pair"),
    ("matching/matching_forward", "three numbers a pair"),
    ("pairs/pairs_list", "two numbers an image"),
    ("pairs/pairs_stream", "texts of a few tokens, which begin anywhere"),
    ("rms_norm/rms_norm_parameters", "a warp reads 128 bytes of each block's sums"),
    ("top_k/top_k_combine", "a few numbers of each part of a row"),
];

/// The units, which are there.
fn units() -> &'static [Unit] {
    if let Err(why) = COMPILER {
        panic!("there are no kernels to test: {why}");
    }
    UNITS
}

/// Names of the kernels in an image, sorted.
fn names(image: &Image) -> Vec<&str> {
    if !image.is_ptx() {
        return elf::kernels(image.code, capability(image)).iter().map(|kernel| kernel.name).collect();
    }
    let text = std::str::from_utf8(image.code).unwrap();
    let entry = |line: &'static str| Some(line.split_once(".entry ")?.1.split_once('(')?.0);
    let mut names: Vec<_> = text.lines().filter_map(entry).collect();
    names.sort();
    names
}

/// Compute capability as a number: 90 for "sm_90a".
fn capability(image: &Image) -> u32 {
    image.architecture.trim_start_matches("sm_").trim_end_matches('a').parse().unwrap()
}

/// Calls `look(unit/kernel, architecture, kernel, counts)` for every kernel in every cubin.
fn for_each_kernel(mut look: impl FnMut(&str, &str, &Kernel<'_>, &Counts)) {
    let mut seen = 0;
    for unit in units() {
        for image in unit.images.iter().filter(|image| !image.is_ptx()) {
            for kernel in elf::kernels(image.code, capability(image)) {
                let path = format!("{}/{}", unit.name, kernel.name);
                look(&path, image.architecture, &kernel, &Counts::of(kernel.code));
                seen += 1;
            }
        }
    }
    assert!(seen >= units().len(), "{seen} kernels in {} units", units().len());
}

#[test]
fn every_architecture_has_the_same_kernels() {
    for unit in units() {
        let wanted = names(&unit.images[0]);
        assert!(!wanted.is_empty(), "{} has no kernels", unit.name);
        for image in unit.images {
            assert_eq!(names(image), wanted, "{} for {}", unit.name, image.architecture);
        }
    }
}

#[test]
fn every_kernel_is_named_where_it_is_launched() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    for unit in units() {
        for name in names(&unit.images[0]) {
            let quoted = format!("\"{name}\"");
            assert!(sources.iter().any(|text| text.contains(&quoted)), "nothing launches {name}");
        }
    }
}

/// The texts of the Rust files below a folder.
fn sources(folder: &Path) -> Vec<String> {
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let (folders, files): (Vec<PathBuf>, Vec<PathBuf>) = paths.partition(|path| path.is_dir());
    let files = files.iter().filter(|path| path.extension().is_some_and(|e| e == "rs"));
    let mut texts: Vec<_> = files.map(|path| fs::read_to_string(path).unwrap()).collect();
    texts.extend(folders.iter().flat_map(|folder| self::sources(folder)));
    texts
}

#[test]
fn the_reader_agrees_with_the_sources() {
    let mut seen = 0;
    for_each_kernel(|path, architecture, kernel, counts| {
        // What kernels/norm.cu declares: a struct of 32 bytes, 256 threads, and a number for each warp.
        if path == "norm/norm_total" {
            let shape = (kernel.parameter_bytes, kernel.threads, kernel.shared_bytes);
            assert_eq!(shape, (32, 256, 32), "{architecture}");
            assert_eq!(
                (counts.vector_loads, counts.vector_stores, counts.barriers),
                (1, 0, 1),
                "{architecture}"
            );
            seen += 1;
        }
    });
    assert!(seen > 0, "no cubin was compiled");
}

#[test]
fn no_kernel_keeps_registers_in_memory() {
    let mut spilled = Vec::new();
    for_each_kernel(|path, architecture, kernel, counts| {
        let (bytes, accesses) = (kernel.stack_bytes, counts.local);
        if (bytes, accesses) != (0, 0) {
            spilled.push(format!("{path} for {architecture}: {bytes} bytes a thread, {accesses} accesses"));
        }
    });
    assert!(spilled.is_empty(), "{spilled:#?}");
}

#[test]
fn blocks_fit_on_a_multiprocessor() {
    for_each_kernel(|path, architecture, kernel, _| {
        // Registers are given out to warps by 256, of 65536 in all.
        let registers = kernel.threads.div_ceil(32) * (kernel.registers * 32).next_multiple_of(256);
        assert!(registers <= 65_536, "{path} for {architecture} needs {registers} registers");
        assert!(kernel.shared_bytes <= 48 << 10, "{path} for {architecture}");
        assert!(kernel.parameter_bytes <= 4096, "{path} for {architecture}: more than old drivers take");
    });
}

#[test]
fn matrix_products_use_tensor_cores_and_the_rest_loads_vectors() {
    let mut unused: Vec<&str> = MATRIX_PRODUCTS.into_iter().chain(HOPPER_PRODUCTS).collect();
    unused.extend(SINGLE_LOADS.iter().map(|(path, _)| path));
    let mut slow = Vec::new();
    for_each_kernel(|path, architecture, _, counts| {
        let listed = |list: &[&str]| list.iter().any(|start| path.starts_with(start));
        unused.retain(|start| !path.starts_with(start));
        let is_fast = if listed(&HOPPER_PRODUCTS) {
            counts.wgmma > 0
        } else if listed(&MATRIX_PRODUCTS) {
            counts.mma > 0
        } else {
            let excused = SINGLE_LOADS.iter().any(|(single, _)| *single == path);
            excused || counts.vector_loads + counts.async_copies > 0
        };
        if !is_fast {
            slow.push(format!("{path} for {architecture}: {counts:?}"));
        }
    });
    assert!(slow.is_empty(), "{slow:#?}");
    assert!(unused.is_empty(), "no such kernels: {unused:?}");
}

#[test]
fn the_committed_table_names_every_kernel() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/KERNELS.md");
    if std::env::var_os("UPDATE_KERNEL_TABLE").is_some() {
        fs::write(&path, table::text(units())).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap();
    for architecture in table::ARCHITECTURES {
        assert_eq!(
            table::kernels(&committed, architecture),
            table::wanted(units(), architecture),
            "benches/KERNELS.md for {architecture}: run UPDATE_KERNEL_TABLE=1 cargo test --test kernels"
        );
    }
}
