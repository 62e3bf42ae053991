//! Memory in which the kernels of one operation leave each other results.

use super::{Cuda, In, Out, failure};
use crate::error::{Error, Result};
use crate::tensor::Element;
use cudarc::driver::{CudaStream, result, sys};
use std::sync::{Arc, Mutex, PoisonError};

/// Bytes of it.
const BYTES: usize = 32 << 20;

/// One allocation, made when it is first needed, for one operation at a time.
pub(super) struct Scratch {
    address: Mutex<Option<sys::CUdeviceptr>>,
    stream: Arc<CudaStream>,
}

/// The whole of it, for as long as an operation starts its kernels: whatever is started later uses it later.
pub(crate) struct Scratched {
    address: usize,
    used: usize,
}

impl Scratch {
    /// Numbers of 4 bytes that it holds.
    pub(super) const WORDS: usize = BYTES / 4;

    pub(super) fn new(stream: &Arc<CudaStream>) -> Self {
        Self { address: Mutex::new(None), stream: stream.clone() }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let address = self.address.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(address) = address
            && self.stream.context().bind_to_thread().is_ok()
        {
            // SAFETY: allocated on the same stream; what was started before uses it before it is freed.
            let _ = unsafe { result::free_async(address, self.stream.cu_stream()) };
        }
    }
}

impl Scratched {
    /// The next rows by cols numbers of 4 bytes: for the kernel that writes them, and for the one that reads them.
    pub(crate) fn matrix<'a, E: Element>(&mut self, rows: usize, cols: usize) -> (Out<'a, E>, In<'a, E>) {
        const { assert!(size_of::<E>() == 4) };
        // So that rows start at multiples of 16 bytes.
        let pitch = cols.next_multiple_of(4);
        let first = self.used;
        self.used += rows * pitch;
        assert!(self.used <= Scratch::WORDS, "{rows} by {cols} numbers beyond {first} of scratch memory");
        let matrix = Out::at((self.address + first * size_of::<E>()) as *mut E, pitch);
        let written = matrix.before();
        (matrix, written)
    }
}

impl Cuda {
    /// Numbers of 4 bytes that scratch memory holds.
    pub(crate) const SCRATCH_WORDS: usize = Scratch::WORDS;

    /// Calls `start`, which starts kernels that leave each other results in scratch memory.
    pub(crate) fn with_scratch(&self, start: impl FnOnce(&mut Scratched) -> Result<()>) -> Result<()> {
        let Scratch { address, stream } = &self.0.scratch;
        // The lock keeps another thread's kernels from coming in between these.
        let mut address = address.lock().unwrap_or_else(PoisonError::into_inner);
        let address = match *address {
            Some(address) => address,
            None => {
                self.bind()?;
                // SAFETY: the stream is alive; freed when the scratch memory is dropped.
                let allocated = unsafe { result::malloc_async(stream.cu_stream(), BYTES) };
                *address.insert(allocated.map_err(|error| match error.0 {
                    sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::out_of_memory(BYTES, "scratch memory"),
                    _ => failure(error, "allocate scratch memory"),
                })?)
            }
        };
        start(&mut Scratched { address: address as usize, used: 0 })
    }
}
