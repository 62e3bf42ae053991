//! Products on AMX, Intel's matrix tiles.

#[cfg(target_arch = "x86_64")]
mod vectors;

use super::tile::{BLOCK, Block, Step, TILE, Tile};
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Bytes of a cache line.
const LINE: usize = 64;

/// How often a step asks for lines: in small portions, so that the loads of the product itself do not
/// wait behind them.
const ASKS: usize = 3;

/// Memory that is to be read after a panel: most often the next one.
pub(crate) struct Ahead {
    from: *const u8,
    /// Cache lines to ask for at a time.
    lines: usize,
}

impl Ahead {
    /// The same slice of the next panel, `panel_steps` steps on, to be asked for while `blocks` blocks of rows
    /// are multiplied by this one's `slice`.
    pub(crate) fn new(slice: &[Step], panel_steps: usize, blocks: usize) -> Self {
        let lines = (size_of::<Step>() / LINE).div_ceil(ASKS * blocks);
        Self { from: slice.as_ptr().wrapping_add(panel_steps).cast(), lines }
    }
}

/// Proof that the processor has the tiles and the system lets this process use them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Amx(());

impl Amx {
    /// Asks the processor and the system, once.
    pub(super) fn detect() -> Option<Self> {
        static PERMITTED: OnceLock<bool> = OnceLock::new();
        PERMITTED.get_or_init(permitted).then_some(Self(()))
    }

    /// Exchanges rows and columns of a tile.
    pub(super) fn transpose(self, tile: &mut Tile) {
        // SAFETY: `self` proves that the processor has the vectors too.
        unsafe { vectors::transpose(tile) }
    }

    /// Calls `work` with all of the vector instructions that come with the tiles; its closures must be inlined.
    pub(super) fn vectorised<R>(self, work: impl FnOnce() -> R) -> R {
        // SAFETY: `self` proves that the processor has them.
        unsafe { vectors::vectorised(work) }
    }

    /// hi and lo of numbers, neighbours in a word, the first in its low half.
    #[inline(always)]
    pub(super) fn split_neighbours(self, x: &[f32; 2 * TILE]) -> [[u32; TILE]; 2] {
        // SAFETY: `self` proves that the processor has the vectors too.
        unsafe { vectors::split_neighbours(x) }
    }

    /// hi and lo of numbers, `low` in the low half of a word and `high` in the other.
    #[inline(always)]
    pub(super) fn split_pairs(self, low: &[f32; TILE], high: &[f32; TILE]) -> [[u32; TILE]; 2] {
        // SAFETY: as above.
        unsafe { vectors::split_pairs(low, high) }
    }

    /// The calling thread's tiles.
    pub(crate) fn tiles(self) -> Tiles {
        // SAFETY: `self` proves that the processor may be given tiles.
        unsafe { configure() }
        Tiles(PhantomData)
    }
}

/// The tiles of this thread, set up until dropped.
pub(crate) struct Tiles(PhantomData<*mut ()>);

impl Tiles {
    /// y = a·b for a block of rows and a panel. Meanwhile, a share of what lies `ahead` is asked for.
    pub(crate) fn product(&self, a: &[Step], b: &[Step], ahead: &mut Ahead, y: &mut Block) {
        assert_eq!(a.len(), b.len(), "steps of both factors");
        if a.is_empty() {
            *y = Block([[0.0; BLOCK]; BLOCK]);
            return;
        }
        // SAFETY: both factors have as many steps, there is at least one, and this thread's tiles
        // are set up.
        unsafe { multiply(a.as_ptr(), b.as_ptr(), a.len(), ahead, y) }
        ahead.from = ahead.from.wrapping_add(a.len() * ASKS * ahead.lines * LINE);
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles are set up, and nothing uses them any more.
        unsafe { release() }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn permitted() -> bool {
    use std::arch::asm;
    use std::arch::x86_64::{__cpuid, __cpuid_count};
    /// arch_prctl and its request for a component of the state that is not every process's.
    const ARCH_PRCTL: isize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XFEATURE_XTILEDATA: usize = 18;
    const OSXSAVE: u32 = 1 << 27;
    const AMX_BF16_AND_TILE: u32 = 1 << 22 | 1 << 24;
    const TILE_STATE: u32 = 0b11 << 17;
    #[allow(unused_unsafe, reason = "cpuid was unsafe in older versions of Rust")]
    // SAFETY: every x86-64 processor has cpuid; leaf 7 is read if there is one.
    let present = unsafe {
        __cpuid(0).eax >= 7
            && __cpuid(1).ecx & OSXSAVE != 0
            && __cpuid_count(7, 0).edx & AMX_BF16_AND_TILE == AMX_BF16_AND_TILE
    };
    // No processor has tiles without the vectors.
    let vectors = is_x86_feature_detected!("avx512bw") && is_x86_feature_detected!("avx512bf16");
    if !present || !vectors {
        return false;
    }
    let state: u32;
    // SAFETY: OSXSAVE says that the system has enabled xgetbv.
    unsafe { asm!("xgetbv", in("ecx") 0, out("eax") state, out("edx") _, options(nomem, nostack)) };
    if state & TILE_STATE != TILE_STATE {
        return false;
    }
    let refused: isize;
    // SAFETY: this system call touches no memory of the process.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => refused,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    refused == 0
}

/// What `ldtilecfg` reads: all eight tiles of 16 rows of 64 bytes.
#[cfg(target_arch = "x86_64")]
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

#[cfg(target_arch = "x86_64")]
static TILE_CONFIG: TileConfig = {
    let mut config =
        TileConfig { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        config.row_bytes[tile] = 64;
        config.rows[tile] = TILE as u8;
        tile += 1;
    }
    config
};

/// Asks for `lines` cache lines, at least one, from `ahead` on.
#[cfg(target_arch = "x86_64")]
macro_rules! ask_ahead {
    () => {
        "mov {line}, {lines}
        3:
        prefetcht1 [{ahead}]
        add {ahead}, 64
        dec {line}
        jnz 3b"
    };
}

/// # Safety
/// An [`Amx`] must exist.
#[cfg(target_arch = "x86_64")]
unsafe fn configure() {
    // SAFETY: reads the configuration, which is valid.
    unsafe {
        std::arch::asm!(
            "ldtilecfg [{config}]",
            config = in(reg) &raw const TILE_CONFIG,
            options(nostack, readonly, preserves_flags),
        );
    }
}

/// # Safety
/// An [`Amx`] must exist.
#[cfg(target_arch = "x86_64")]
unsafe fn release() {
    // SAFETY: leaves the tiles unconfigured.
    unsafe { std::arch::asm!("tilerelease", options(nostack, nomem, preserves_flags)) }
}

/// y = a·b. Tiles 0 to 3 are y's; 4 and 5 take a's rows, 6 and 7 b's channels.
///
/// # Safety
/// `a` and `b` must be of `steps` steps, at least one, and the tiles must be configured.
#[cfg(target_arch = "x86_64")]
unsafe fn multiply(a: *const Step, b: *const Step, steps: usize, ahead: &Ahead, y: &mut Block) {
    // SAFETY: reads `steps` steps of a and b, reads and writes y; a prefetch is allowed on any address.
    unsafe {
        std::arch::asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            // lo·hi
            "tileloadd tmm6, [{b} + {row}]",
            "tileloadd tmm7, [{b} + {row} + 1024]",
            "tileloadd tmm4, [{a} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row} + 3072]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ask_ahead!(),
            // hi·hi
            "tileloadd tmm4, [{a} + {row}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {row} + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ask_ahead!(),
            // hi·lo
            "tileloadd tmm6, [{b} + {row} + 2048]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {row} + 3072]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            ask_ahead!(),
            // Keeps the wide vector unit awake: after half a microsecond's rest the stores would wait a
            // quarter of one for it.
            "vpaddd zmm0, zmm0, zmm0",
            "add {a}, 4096",
            "add {b}, 4096",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{y} + {y_row}], tmm0",
            "tilestored [{y} + {y_row} + 64], tmm1",
            "tilestored [{y} + {y_row} + 2048], tmm2",
            "tilestored [{y} + {y_row} + 2112], tmm3",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            row = in(reg) 64_usize,
            steps = inout(reg) steps => _,
            ahead = inout(reg) ahead.from => _,
            lines = in(reg) ahead.lines,
            line = out(reg) _,
            y = in(reg) y,
            y_row = in(reg) size_of::<[f32; BLOCK]>(),
            out("xmm0") _,
            out("tmm0") _,
            out("tmm1") _,
            out("tmm2") _,
            out("tmm3") _,
            out("tmm4") _,
            out("tmm5") _,
            out("tmm6") _,
            out("tmm7") _,
            options(nostack),
        );
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
fn permitted() -> bool {
    false
}

/// # Safety
/// An [`Amx`] must exist: never, on such a processor.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn configure() {
    unreachable!("there are no tiles to set up");
}

/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn release() {
    unreachable!("there are no tiles to release");
}

/// # Safety
/// As above.
#[cfg(not(target_arch = "x86_64"))]
unsafe fn multiply(_: *const Step, _: *const Step, _: usize, _: &Ahead, _: &mut Block) {
    unreachable!("there are no tiles to multiply");
}

#[cfg(not(target_arch = "x86_64"))]
mod vectors {
    //! Never called: without tiles there is no [`super::Amx`].

    use super::super::split::{TILE, Tile};

    pub(super) unsafe fn vectorised<R>(_: impl FnOnce() -> R) -> R {
        unreachable!("there are no vectors");
    }

    pub(super) unsafe fn split_neighbours(_: &[f32; 2 * TILE]) -> [[u32; TILE]; 2] {
        unreachable!("there are no vectors");
    }

    pub(super) unsafe fn split_pairs(_: &[f32; TILE], _: &[f32; TILE]) -> [[u32; TILE]; 2] {
        unreachable!("there are no vectors");
    }

    pub(super) unsafe fn transpose(_: &mut Tile) {
        unreachable!("there are no tiles to fill");
    }
}
