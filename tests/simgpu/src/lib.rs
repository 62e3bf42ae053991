//! A CUDA device in software. PTX goes in, a `libcuda.so` comes out that runs it on the CPU; cudarc loads it like a
//! driver, so a machine without a GPU runs the real kernels, inline assembly included, with every check on.
//!
//! ```no_run
//! let ptx = std::fs::read_to_string("kernels/gelu.ptx").unwrap();
//! let units = [simgpu::Unit { name: "gelu", ptx: &ptx }];
//! let folder = simgpu::build(&units, std::path::Path::new("target/simgpu")).unwrap();
//! simgpu::load(&folder).unwrap(); // before the first CUDA call of the process
//! ```
//! A program that is not a test finds the same device with `LD_LIBRARY_PATH=<folder>`.

mod compile;
mod translate;

use std::path::Path;

pub use compile::{build, build_cublaslt};
pub use translate::{Untranslated, translate};

/// One PTX text, as NVRTC made it. Kernel names must be unique among the units of a device.
pub struct Unit<'a> {
    /// Names the unit in messages and in the cache.
    pub name: &'a str,
    /// The PTX; with `.loc` lines the reports name lines of the CUDA source.
    pub ptx: &'a str,
}

/// Loads the `libcuda.so` in `folder` for the rest of the process. A later `dlopen("libcuda.so")` (cudarc's) matches it
/// by its SONAME, so this wins even over an installed driver.
///
/// # Errors
/// What the dynamic loader says.
pub fn load(folder: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    let path = folder.join("libcuda.so");
    // SAFETY: the library was made by `build`; its initialisers only register kernels.
    let library = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
    std::mem::forget(library.map_err(|e| format!("{}: {e}", path.display()))?);
    Ok(())
}
