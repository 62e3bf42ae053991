//! Images, functions and launches: what does not fit is refused as a real driver refuses it.

use crate::api::{
    Device, Grid, Handle, INVALID_IMAGE, INVALID_VALUE, LAUNCH_OUT_OF_RESOURCES, LaunchAttribute,
    LaunchConfig, NO_BINARY_FOR_GPU, NOT_FOUND, PLANTED, SCALE, SUCCESS,
};
use std::{ffi::CString, ptr::null_mut};

const SM_80: &[u8] = include_bytes!("../ptx/scale.sm_80.cubin");
const SM_90: &[u8] = include_bytes!("../ptx/scale.sm_90.cubin");
/// Its kernel has a larger parameter than the PTX that the device was built from.
const LONGER: &[u8] = include_bytes!("../ptx/scale_longer.sm_90.cubin");

const MAX_THREADS: i32 = 0;
const STATIC_SHARED: i32 = 1;
const REGISTERS: i32 = 4;
const MAX_DYNAMIC_SHARED: i32 = 8;

/// As in scale.cu.
#[repr(C)]
struct ScaleArgs {
    x: u64,
    out: u64,
    count: u32,
    factor: [f32; 3],
}

fn load(device: &Device, image: &[u8]) -> (i32, Handle) {
    let mut module = null_mut();
    (device.cuModuleLoadData(&mut module, image.as_ptr().cast()), module)
}

fn scale(device: &Device, image: &[u8]) -> Handle {
    let (answer, module) = load(device, image);
    assert_eq!(answer, SUCCESS);
    let mut function = null_mut();
    let name = CString::new("scale").unwrap();
    assert_eq!(device.cuModuleGetFunction(&mut function, module, name.as_ptr().cast()), SUCCESS);
    function
}

fn attribute(device: &Device, function: Handle, attribute: i32) -> i32 {
    let mut value = 0;
    assert_eq!(device.cuFuncGetAttribute(&mut value, attribute, function), SUCCESS);
    value
}

#[test]
fn a_cubin_runs_as_its_ptx() {
    let ptx = CString::new(SCALE).unwrap();
    for image in [SM_90, ptx.as_bytes_with_nul()] {
        let device = Device::new(&[]);
        let function = scale(&device, image);
        let values: Vec<f32> = (0..300).map(|i| i as f32).collect();
        let (x, out) = (device.upload(&values), device.upload(&[0.0f32; 300]));
        let args = ScaleArgs { x, out, count: 300, factor: [2.0, 0.5, -1.0] };
        let grid = Grid { blocks: 2, threads: [192, 1], shared: 0 };
        assert_eq!(device.launch(function, grid, null_mut(), &args), SUCCESS);
        let expected: Vec<f32> = (0..300).map(|i| i as f32 * [2.0, 0.5, -1.0][i % 3]).collect();
        assert_eq!(device.download::<f32>(out, 300), expected);
    }
}

#[test]
fn a_function_knows_what_its_cubin_says() {
    let device = Device::new(&[]);
    let function = scale(&device, SM_90);
    assert_eq!(attribute(&device, function, MAX_THREADS), 192);
    assert_eq!(attribute(&device, function, STATIC_SHARED), 768);
    assert_eq!(attribute(&device, function, MAX_DYNAMIC_SHARED), 48 * 1024 - 768);
    let registers = attribute(&device, function, REGISTERS);
    assert!((8..64).contains(&registers), "{registers}");
    let mut blocks = 0;
    assert_eq!(device.cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, 192, 0), SUCCESS);
    assert_eq!(blocks, 10, "2048 threads of an SM hold ten blocks of 192");
    assert_eq!(
        device.cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut blocks, function, 192, 100_000),
        SUCCESS
    );
    assert_eq!(blocks, 2, "228 KiB hold two blocks of 101 KiB");
}

#[test]
fn a_cubin_of_another_architecture_is_refused() {
    assert_eq!(load(&Device::new(&[]), SM_80).0, NO_BINARY_FOR_GPU);
    for (capability, image, answer) in [
        ("80", SM_80, SUCCESS),
        ("86", SM_80, SUCCESS),
        ("90", SM_80, NO_BINARY_FOR_GPU),
        ("89", SM_90, NO_BINARY_FOR_GPU),
        ("100", SM_90, NO_BINARY_FOR_GPU),
        ("120", SM_80, NO_BINARY_FOR_GPU),
    ] {
        let device = Device::new(&[("SIMGPU_CC", capability)]);
        assert_eq!(load(&device, image).0, answer, "on sm_{capability}");
    }
}

#[test]
fn ptx_of_a_newer_architecture_is_refused() {
    let image = CString::new(crate::api::HOPPER).unwrap();
    let device = Device::new(&[("SIMGPU_CC", "89")]);
    assert_eq!(load(&device, image.as_bytes_with_nul()).0, NO_BINARY_FOR_GPU);
}

#[test]
fn a_cubin_with_other_parameters_than_the_ptx_is_refused() {
    assert_eq!(load(&Device::new(&[]), LONGER).0, INVALID_IMAGE);
}

#[test]
fn what_is_no_image_is_refused() {
    assert_eq!(load(&Device::new(&[]), b"no image\0").0, INVALID_IMAGE);
}

#[test]
fn a_kernel_that_is_not_there_is_not_found() {
    let device = Device::new(&[]);
    let (_, module) = load(&device, SM_90);
    let name = CString::new("no_such_kernel").unwrap();
    assert_eq!(device.cuModuleGetFunction(&mut null_mut(), module, name.as_ptr().cast()), NOT_FOUND);
}

#[test]
fn launches_beyond_their_bounds_are_refused() {
    let device = Device::new(&[]);
    let function = scale(&device, SM_90);
    let args = ScaleArgs { x: 0, out: 0, count: 0, factor: [0.0; 3] };
    let launch = |blocks, x, y, shared| {
        device.launch(function, Grid { blocks, threads: [x, y], shared }, null_mut(), &args)
    };
    assert_eq!(launch(1, 193, 1, 0), LAUNCH_OUT_OF_RESOURCES, "__launch_bounds__ is 192");
    assert_eq!(launch(1, 1025, 1, 0), INVALID_VALUE);
    assert_eq!(launch(0, 32, 1, 0), INVALID_VALUE);
    assert_eq!(launch(1, 32, 0, 0), INVALID_VALUE);
    assert_eq!(launch(1, 192, 1, 0), SUCCESS);
}

#[test]
fn more_than_48_kib_of_shared_memory_must_be_asked_for() {
    let device = Device::new(&[]);
    let function = scale(&device, SM_90);
    let args = ScaleArgs { x: 0, out: 0, count: 0, factor: [0.0; 3] };
    let launch =
        |shared| device.launch(function, Grid { blocks: 1, threads: [32, 1], shared }, null_mut(), &args);
    assert_eq!(launch(48 * 1024), INVALID_VALUE, "768 bytes are the kernel's own");
    assert_eq!(launch(48 * 1024 - 768), SUCCESS);
    assert_eq!(device.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, 232_448), INVALID_VALUE);
    assert_eq!(device.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, 200_000), SUCCESS);
    assert_eq!(launch(200_000), SUCCESS);
    assert_eq!(launch(200_001), INVALID_VALUE);
    assert_eq!(device.cuCtxSynchronize(), SUCCESS);
}

#[test]
fn programmatic_launches_are_taken() {
    const PROGRAMMATIC_STREAM_SERIALIZATION: i32 = 6;
    let device = Device::new(&[]);
    let kernel = device.function(PLANTED, "vector_load_NONE");
    let (x, out) = (device.upload(&[1.5f32; 32]), device.upload(&[0.0f32; 8]));
    let mut attribute = LaunchAttribute { id: PROGRAMMATIC_STREAM_SERIALIZATION, padding: 0, value: [0; 16] };
    attribute.value[0] = 1;
    let config = LaunchConfig {
        grid: [1; 3],
        block: [8, 1, 1],
        shared: 0,
        stream: null_mut(),
        attributes: &attribute,
        attribute_count: 1,
    };
    let args = [x, 0, out, 0, 0];
    let mut params = [args.as_ptr().cast()];
    assert_eq!(device.cuLaunchKernelEx(&config, kernel, params.as_mut_ptr(), null_mut()), SUCCESS);
    assert_eq!(device.download::<f32>(out, 8), [6.0; 8]);
}

#[test]
fn the_device_is_an_h200_unless_told_otherwise() {
    const MULTIPROCESSORS: i32 = 16;
    const SHARED_OPTIN: i32 = 97;
    const MAJOR: i32 = 75;
    for (environment, expected) in
        [(vec![], [132, 232_448, 9]), (vec![("SIMGPU_CC", "86")], [84, 101_376, 8])]
    {
        let device = Device::new(&environment);
        let values = [MULTIPROCESSORS, SHARED_OPTIN, MAJOR].map(|attribute| {
            let mut value = 0;
            assert_eq!(device.cuDeviceGetAttribute(&mut value, attribute, 0), SUCCESS);
            value
        });
        assert_eq!(values, expected);
    }
}
