//! What a checkpoint's file may have at most, and reading at a place of it.

use std::fs::File;
use std::io;

/// Most tensors in a file.
pub(super) const TENSORS: usize = 1 << 16;

/// Most dimensions of a tensor.
pub(super) const DIMENSIONS: usize = 8;

/// Longest name of a tensor, in bytes.
pub(super) const NAME_BYTES: usize = 512;

/// Fills `bytes` from `offset` of `file`, leaving its cursor to others.
#[cfg(unix)]
pub(super) fn read_exact_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

/// Fills `bytes` from `offset` of `file`.
#[cfg(windows)]
pub(super) fn read_exact_at(file: &File, mut bytes: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => {
                bytes = &mut bytes[count..];
                offset += count as u64;
            }
        }
    }
    Ok(())
}
