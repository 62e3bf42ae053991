//! The GPU that tests run on: the machine's own, or a simulated one where there is none.

#[path = "simulated.rs"]
mod simulated;

use qformer::device::Cuda;
use std::sync::OnceLock;

/// Opened once for all tests of a binary.
pub(crate) fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        Cuda::open(0).unwrap_or_else(|_| {
            simgpu::load(&simulated::driver()).unwrap_or_else(|why| panic!("{why}"));
            Cuda::open(0).unwrap()
        })
    })
}
