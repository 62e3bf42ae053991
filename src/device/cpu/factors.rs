//! Memory for the factors of a product, brought to the layout that they are multiplied in, and the tasks that it is
//! divided into.

use super::buffer::CpuBuffer;
use crate::error::Result;
use bytemuck::Pod;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// The right factor of the last product.
static RIGHT: Mutex<Option<CpuBuffer>> = Mutex::new(None);

thread_local! {
    /// A part of the left factor. Brought to its layout where it is multiplied, it does not leave the cache.
    static LEFT: RefCell<Option<CpuBuffer>> = const { RefCell::new(None) };
}

/// So many elements of `memory`, which is kept from one product to the next because fresh memory is slow at
/// first touch.
fn elements_in<T: Pod>(memory: &mut Option<CpuBuffer>, count: usize) -> Result<&mut [T]> {
    let bytes = count * size_of::<T>();
    if memory.as_mut().is_none_or(|memory| memory.bytes_mut().len() < bytes) {
        *memory = Some(CpuBuffer::new(bytes, "the factors of a product")?);
    }
    let memory = memory.as_mut().expect("taken above").bytes_mut();
    Ok(bytemuck::cast_slice_mut(&mut memory[..bytes]))
}

/// Calls `multiply` with memory for `count` elements of the right factor.
pub(super) fn with_right<T: Pod>(count: usize, multiply: impl FnOnce(&mut [T]) -> Result<()>) -> Result<()> {
    let kept = || RIGHT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut memory = kept().take();
    multiply(elements_in(&mut memory, count)?)?;
    *kept() = memory;
    Ok(())
}

/// Calls `work(blocks, panels, memory)` for every chunk of so many of the left factor's `blocks` at most and
/// every group of the right one's `panels`, with memory for `per_block` elements of each of its blocks.
pub(super) fn for_each_part<T: Pod>(
    [blocks, panels]: [usize; 2],
    chunk: usize,
    per_block: usize,
    work: impl Fn(Range<usize>, Range<usize>, &mut [T]) + Sync,
) -> Result<()> {
    let chunks = blocks.div_ceil(chunk);
    let groups = groups(chunks).min(panels);
    // The parts are of one size, but for a block or a panel.
    let share = |of: usize, index: usize, count: usize| index * of / count..(index + 1) * of / count;
    (0..chunks * groups).into_par_iter().try_for_each(|task| {
        let (blocks, panels) = (share(blocks, task / groups, chunks), share(panels, task % groups, groups));
        LEFT.with_borrow_mut(|memory| {
            let count = blocks.len() * per_block;
            work(blocks, panels, elements_in(memory, count)?);
            Ok(())
        })
    })
}

/// Rows of a chunk, each `row_bytes` long: few enough for `cache` bytes, and not so few that the columns are read
/// again and again.
pub(super) fn chunk_rows(rows: usize, row_bytes: usize, cache: usize) -> usize {
    let most = (cache / row_bytes.max(1)).max(128);
    rows.div_ceil(rows.div_ceil(most).max(1)).max(1)
}

/// Groups that the panels are divided into, so that tasks of so many chunks are a multiple of the threads:
/// as few as that needs, because every task brings its rows to their layout anew.
fn groups(chunks: usize) -> usize {
    let threads = rayon::current_num_threads();
    let (mut a, mut b) = (chunks, threads);
    while b > 0 {
        (a, b) = (b, a % b);
    }
    threads / a.max(1)
}
