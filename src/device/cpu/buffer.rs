//! Memory of the CPU.

use crate::error::{Error, Result};
use memmap2::{MmapMut, MmapOptions};

/// Zeroed memory straight from the system, aligned to its pages.
pub struct CpuBuffer {
    pub(super) address: *mut u8,
    pub(super) map: MmapMut,
}

// SAFETY: the buffer owns its memory; who may touch it is decided by the views' borrows.
unsafe impl Send for CpuBuffer {}
// SAFETY: as above.
unsafe impl Sync for CpuBuffer {}

impl CpuBuffer {
    pub(super) fn new(bytes: usize, purpose: &str) -> Result<Self> {
        // An empty mapping is refused by some systems; one page is always to be had.
        let map = MmapOptions::new().len(bytes.max(1)).map_anon();
        let mut map = map.map_err(|_| Error::out_of_memory(bytes, purpose))?;
        // Weights are streamed from end to end in every pass: with large pages, address translation
        // costs nothing. Where the system has none, small ones serve as well.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { address: map.as_mut_ptr(), map })
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.map
    }
}
