//! The driver that tests talk to: the simulated one, or the machine's own where `SIMGPU` is `off`.

use libloading::os::unix::Library;
use std::{env, path::Path};

/// Whether tests run on the machine's own GPU.
pub(crate) fn is_real() -> bool {
    env::var("SIMGPU").is_ok_and(|value| value == "off")
}

/// Loads the driver; the simulated one with these kernels.
pub(crate) fn load(units: &[simgpu::Unit<'_>]) -> Library {
    let name = if is_real() {
        "libcuda.so.1"
    } else {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simgpu");
        simgpu::load(&simgpu::build(units, &cache).unwrap()).unwrap();
        // It is loaded already; this finds it by its name, as cudarc does.
        "libcuda.so"
    };
    // SAFETY: a driver's initialisation is its own.
    unsafe { Library::new(name) }.unwrap_or_else(|why| panic!("{name}: {why}"))
}
