//! Reads cubins: ELF files in which NVIDIA's compiler leaves each kernel's code and what it takes to run.
//!
//! The format is documented nowhere; this is what `readelf` and NVIDIA's `cuobjdump --dump-elf` show.

use std::collections::BTreeMap;

/// A kernel for one architecture.
pub(crate) struct Kernel<'a> {
    pub(crate) name: &'a str,
    /// Registers of a thread.
    pub(crate) registers: u32,
    /// Bytes of a thread's stack, where spilled registers and arrays without a fixed index go.
    pub(crate) stack_bytes: u32,
    /// Bytes of shared memory that a block has before it asks for more.
    pub(crate) shared_bytes: u64,
    /// The most threads that a block may have.
    pub(crate) threads: u32,
    /// Bytes of its parameters.
    pub(crate) parameter_bytes: u32,
    /// Its instructions.
    pub(crate) code: &'a [u8],
}

// Attributes (EIATTR_…) in the sections .nv.info, of functions by their symbols, and .nv.info.NAME, of one kernel.
const MAX_THREADS: u8 = 0x05;
const FRAME_SIZE: u8 = 0x11;
const MIN_STACK_SIZE: u8 = 0x12;
const PARAMETER_SIZE: u8 = 0x19;
const REGISTER_COUNT: u8 = 0x2f;
/// The form of an attribute whose value has the given size; others are in place of the size.
const SIZED: u8 = 4;

/// Mark of a symbol that is a kernel (STO_CUDA_ENTRY).
const ENTRY: u8 = 0x10;

/// Shared memory at the start of every kernel's that the system uses, from compute capability 9.0 on.
const RESERVED: u64 = 1024;

struct Section<'a> {
    name: &'a str,
    bytes: &'a [u8],
    /// What it takes in memory, also if the file has none of it.
    size: u64,
}

struct Symbol<'a> {
    name: &'a str,
    is_kernel: bool,
    section: usize,
}

/// The kernels of a cubin for `sm_{capability}`, by name.
pub(crate) fn kernels(cubin: &[u8], capability: u32) -> Vec<Kernel<'_>> {
    assert!(cubin.starts_with(b"\x7fELF\x02\x01"), "not a little-endian 64-bit ELF file");
    let sections = sections(cubin);
    let find = |name: &str| sections.iter().find(|section| section.name == name);
    let symbols = symbols(&sections);
    let functions = attributes(find(".nv.info").expect("a cubin has attributes").bytes);
    // The attributes of all functions in a section: the kernel's, and those of what it calls.
    let of_section = |kind: u8, section: usize| {
        let here = functions.iter().filter(move |(attribute, _)| *attribute == kind);
        here.map(|(_, value)| (&symbols[word(value, 0) as usize], word(value, 4)))
            .filter(move |(symbol, _)| symbol.section == section)
            .map(|(_, value)| value)
    };
    let mut kernels = BTreeMap::new();
    for symbol in symbols.iter().filter(|symbol| symbol.is_kernel) {
        let (name, section) = (symbol.name, symbol.section);
        let own = find(&format!(".nv.info.{name}")).expect("a kernel has attributes");
        let own: BTreeMap<u8, &[u8]> = attributes(own.bytes).into_iter().collect();
        let stack = of_section(FRAME_SIZE, section).chain(of_section(MIN_STACK_SIZE, section));
        let reserved = if capability >= 90 { RESERVED } else { 0 };
        let kernel = Kernel {
            name,
            registers: of_section(REGISTER_COUNT, section).max().expect("a kernel has registers"),
            stack_bytes: stack.max().expect("a kernel has a frame"),
            shared_bytes: find(&format!(".nv.shared.{name}")).map_or(0, |s| s.size - reserved),
            threads: word(own.get(&MAX_THREADS).expect("a kernel declares its launch bounds"), 0),
            parameter_bytes: half(own.get(&PARAMETER_SIZE).expect("a kernel has parameters"), 0),
            code: sections[section].bytes,
        };
        assert_eq!(sections[section].name, format!(".text.{name}"));
        kernels.insert(name, kernel);
    }
    kernels.into_values().collect()
}

/// Kind and value of each attribute.
fn attributes(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut attributes = Vec::new();
    while !bytes.is_empty() {
        let (form, kind, size) = (bytes[0], bytes[1], half(bytes, 2) as usize);
        let end = if form == SIZED { 4 + size } else { 4 };
        attributes.push((kind, if form == SIZED { &bytes[4..end] } else { &bytes[2..4] }));
        bytes = &bytes[end..];
    }
    attributes
}

fn sections(file: &[u8]) -> Vec<Section<'_>> {
    const HEADER: usize = 64;
    const WITHOUT_BYTES: u32 = 8;
    let start = long(file, 0x28) as usize;
    let (count, names) = (half(file, 0x3c) as usize, half(file, 0x3e) as usize);
    let header = |index: usize| &file[start + index * HEADER..][..HEADER];
    let names = &file[long(header(names), 0x18) as usize..];
    let section = |index: usize| {
        let header = header(index);
        let (offset, size) = (long(header, 0x18), long(header, 0x20));
        let stored = if word(header, 0x04) == WITHOUT_BYTES { 0 } else { size };
        let bytes = &file[offset as usize..][..stored as usize];
        Section { name: text(names, word(header, 0)), bytes, size }
    };
    (0..count).map(section).collect()
}

fn symbols<'a>(sections: &[Section<'a>]) -> Vec<Symbol<'a>> {
    const ENTRY_BYTES: usize = 24;
    let find =
        |name| sections.iter().find(|section| section.name == name).expect("a cubin has symbols").bytes;
    let (table, names) = (find(".symtab"), find(".strtab"));
    let symbol = |entry: &'a [u8]| Symbol {
        name: text(names, word(entry, 0)),
        is_kernel: entry[5] & ENTRY != 0,
        section: half(entry, 6) as usize,
    };
    table.chunks_exact(ENTRY_BYTES).map(symbol).collect()
}

/// The text at `offset`, which a zero ends.
fn text(bytes: &[u8], offset: u32) -> &str {
    let bytes = &bytes[offset as usize..];
    let end = bytes.iter().position(|&byte| byte == 0).expect("a name ends");
    std::str::from_utf8(&bytes[..end]).expect("names are text")
}

fn half(bytes: &[u8], at: usize) -> u32 {
    u16::from_le_bytes(bytes[at..][..2].try_into().unwrap()).into()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..][..4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..][..8].try_into().unwrap())
}
