//! From PTX to a library: once, whoever asks, and with clear words when it cannot be.

use simgpu::{Unit, build};
use std::{fs, path::Path, thread};

const SCALE: &str = include_str!("ptx/scale.ptx");

/// One test: it changes the environment.
#[test]
fn several_builds_at_once_make_one_library_and_a_missing_compiler_is_named() {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("simgpu");
    let ask = || build(&[Unit { name: "scale", ptx: SCALE }], &cache).unwrap();
    let folders =
        thread::scope(|scope| [(); 3].map(|()| scope.spawn(ask)).map(|asked| asked.join().unwrap()));
    assert!(folders.iter().all(|folder| *folder == folders[0]));
    let library = folders[0].join("libcuda.so");
    let made = fs::metadata(&library).unwrap().modified().unwrap();
    assert_eq!(ask(), folders[0]);
    assert_eq!(fs::metadata(&library).unwrap().modified().unwrap(), made, "found, not made again");

    let other = SCALE.replace("mul.f32", "add.f32");
    assert_ne!(build(&[Unit { name: "scale", ptx: &other }], &cache).unwrap(), folders[0]);

    let unknown = SCALE.replace("mul.f32", "mul.f99");
    let error = build(&[Unit { name: "scale", ptx: &unknown }], &cache).unwrap_err();
    assert!(error.contains("scale.ptx: line ") && error.contains("mul.f99"), "{error}");

    // SAFETY: no other thread runs in this process now.
    unsafe { std::env::set_var("CXX", "no-such-compiler") };
    let error = build(&[Unit { name: "scale", ptx: SCALE }], &cache).unwrap_err();
    assert!(error.starts_with("the simulated device needs a C++ compiler: no-such-compiler"), "{error}");
}
