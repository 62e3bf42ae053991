//! The GPU that tests run on: the machine's own, or a simulated one where there is none.

use qformer::device::Cuda;
use qformer::device::cuda::{COMPILER, UNITS};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Opened once for all tests of a binary.
pub(crate) fn cuda() -> &'static Cuda {
    static CUDA: OnceLock<Cuda> = OnceLock::new();
    CUDA.get_or_init(|| {
        Cuda::open(0).unwrap_or_else(|_| {
            simgpu::load(&simulated_driver()).unwrap_or_else(|why| panic!("{why}"));
            Cuda::open(0).unwrap()
        })
    })
}

/// Folder of the simulated driver library, with this build's kernels.
pub(crate) fn simulated_driver() -> PathBuf {
    if let Err(why) = COMPILER {
        panic!("there are no kernels to test: {why}");
    }
    let units: Vec<simgpu::Unit<'_>> = UNITS
        .iter()
        .map(|unit| {
            let image = unit.images.iter().find(|image| image.is_ptx());
            let image = image.unwrap_or_else(|| panic!("{} was not compiled to PTX", unit.name));
            simgpu::Unit { name: unit.name, ptx: std::str::from_utf8(image.code).unwrap() }
        })
        .collect();
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simgpu");
    simgpu::build(&units, &cache).unwrap_or_else(|why| panic!("{why}"))
}
