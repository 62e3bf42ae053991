//! Memory: its limits, its poison, copies and leaks.

use crate::api::{Device, ILLEGAL_ADDRESS, INVALID_VALUE, Memcpy2D, OUT_OF_MEMORY, PLANTED, SUCCESS};
use std::ptr::null_mut;

const HOST: u32 = 1;
const DEVICE: u32 = 2;

#[test]
fn memory_runs_out_at_the_size_that_was_asked_for() {
    let device = Device::new(&[("SIMGPU_MEMORY", "1000000")]);
    let (mut one, mut two, mut free, mut total) = (0, 0, 0, 0);
    assert_eq!(device.cuMemAlloc_v2(&mut one, 600_000), SUCCESS);
    assert_eq!(device.cuMemAlloc_v2(&mut two, 400_001), OUT_OF_MEMORY);
    assert_eq!(device.cuMemGetInfo_v2(&mut free, &mut total), SUCCESS);
    assert_eq!((free, total), (400_000, 1_000_000));
    // A free that is still queued is done first.
    assert_eq!(device.cuMemFreeAsync(one, device.stream()), SUCCESS);
    assert_eq!(device.cuMemAlloc_v2(&mut two, 1_000_000), SUCCESS);
}

#[test]
fn leaks_are_counted() {
    let device = Device::new(&[]);
    let (kept, freed) = (device.upload(&[0u8; 100]), device.upload(&[0u8; 50]));
    assert_eq!(device.cuMemFree_v2(freed), SUCCESS);
    let (mut launches, mut allocations, mut bytes) = (0, 0, 0);
    device.simgpu_statistics(&mut launches, &mut allocations, &mut bytes);
    assert_eq!((launches, allocations, bytes), (0, 1, 100));
    assert_eq!(device.cuMemFree_v2(kept), SUCCESS);
    device.simgpu_statistics(&mut launches, &mut allocations, &mut bytes);
    assert_eq!((allocations, bytes), (0, 0));
}

#[test]
fn frees_of_what_is_no_allocation_are_refused() {
    let device = Device::new(&[]);
    let data = device.upload(&[0u32; 8]);
    assert_eq!(device.cuMemFree_v2(data + 4), INVALID_VALUE);
    assert_eq!(device.cuMemFree_v2(data), SUCCESS);
    assert_eq!(device.cuMemFree_v2(data), INVALID_VALUE, "twice");
    assert_eq!(device.cuMemFreeAsync(12345, null_mut()), INVALID_VALUE);
    let queued = device.upload(&[0u32; 8]);
    assert_eq!(device.cuMemFreeAsync(queued, null_mut()), SUCCESS);
    assert_eq!(device.cuMemFreeAsync(queued, null_mut()), INVALID_VALUE, "twice, before the first was done");
}

#[test]
fn copies_out_of_bounds_are_refused() {
    let device = Device::new(&[]);
    let data = device.upload(&[0u32; 8]);
    let mut host = [0u32; 9];
    assert_eq!(device.cuMemcpyDtoH_v2(host.as_mut_ptr().cast(), data, 36), INVALID_VALUE);
    assert_eq!(device.cuMemcpyHtoD_v2(data + 4, host.as_ptr().cast(), 32), INVALID_VALUE);
    assert_eq!(device.cuMemsetD32Async(data, 0, 9, null_mut()), INVALID_VALUE);
}

#[test]
fn fresh_memory_is_not_a_number() {
    let device = Device::new(&[]);
    let mut data = 0;
    assert_eq!(device.cuMemAlloc_v2(&mut data, 64), SUCCESS);
    assert!(device.download::<f32>(data, 16).iter().all(|v| v.is_nan()));
}

#[test]
fn rows_are_copied_between_pitches() {
    let device = Device::new(&[]);
    let host: Vec<u32> = (0..12).collect();
    let data = device.upload(&[99u32; 15]);
    // Two columns from the second on, of three rows of four, to the fourth column on of rows of five.
    let copy = Memcpy2D {
        src_x: 4,
        src_y: 0,
        src_type: HOST,
        src_host: host.as_ptr().cast(),
        src_device: 0,
        src_array: null_mut(),
        src_pitch: 16,
        dst_x: 12,
        dst_y: 0,
        dst_type: DEVICE,
        dst_host: null_mut(),
        dst_device: data,
        dst_array: null_mut(),
        dst_pitch: 20,
        width: 8,
        height: 3,
    };
    assert_eq!(device.cuMemcpy2DAsync_v2(&copy, null_mut()), SUCCESS);
    let expected = [99, 99, 99, 1, 2, 99, 99, 99, 5, 6, 99, 99, 99, 9, 10];
    assert_eq!(device.download::<u32>(data, 15), expected);
    assert_eq!(device.cuMemcpy2DAsync_v2(&Memcpy2D { height: 4, ..copy }, null_mut()), INVALID_VALUE);
}

#[test]
fn an_error_of_a_kernel_stays_until_the_context_is_reset() {
    let device = Device::new(&[]);
    let kernel = device.function(PLANTED, "vector_load_NONE");
    let grid = crate::api::Grid { blocks: 1, threads: [8, 1], shared: 0 };
    let (freed, out) = (device.upload(&[0.0f32; 32]), device.upload(&[0.0f32; 8]));
    assert_eq!(device.cuMemFree_v2(freed), SUCCESS);
    assert_eq!(device.launch(kernel, grid, null_mut(), &[freed, 0, out, 0, 0]), SUCCESS);
    assert_eq!(device.cuCtxSynchronize(), ILLEGAL_ADDRESS);
    assert!(device.reports().contains("in a freed allocation of 128 bytes"), "{}", device.reports());
    assert_eq!(device.launch(kernel, grid, null_mut(), &[out, 0, out, 0, 0]), ILLEGAL_ADDRESS);
    let mut other = 0;
    assert_eq!(device.cuMemAlloc_v2(&mut other, 4), ILLEGAL_ADDRESS);
    assert_eq!(device.cuDevicePrimaryCtxReset_v2(0), SUCCESS);
    assert_eq!(device.cuMemAlloc_v2(&mut other, 4), SUCCESS);
}
