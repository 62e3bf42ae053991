//! The simulated GPU.

use qformer::device::cuda::{COMPILER, UNITS};
use std::path::{Path, PathBuf};

/// Folder of the simulated driver library, with this build's kernels.
pub(crate) fn driver() -> PathBuf {
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
