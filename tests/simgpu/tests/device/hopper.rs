//! TMA, mbarriers and wgmma: what TMA lays out in shared memory, wgmma reads back, in every layout both know.

use crate::api::{Device, Grid, HOPPER, LAUNCH_FAILED, SUCCESS, TensorMap};

const MAX_DYNAMIC_SHARED: i32 = 8;
const BF16: u32 = 9;
const F32: u32 = 7;

fn tensor_map(
    device: &Device,
    data_type: u32,
    address: u64,
    sizes: &[u64],
    tile: &[u32],
    swizzle: u32,
) -> TensorMap {
    let bytes = if data_type == F32 { 4 } else { 2 };
    let mut map = TensorMap([0; 16]);
    let mut stride = bytes;
    let strides: Vec<u64> = sizes
        .iter()
        .map(|size| {
            stride *= size;
            stride
        })
        .collect();
    let (rank, steps) = (sizes.len() as u32, [1u32; 5]);
    let (sizes, strides, tile) = (sizes.as_ptr(), strides.as_ptr(), tile.as_ptr());
    let steps = steps.as_ptr();
    let answer = device.cuTensorMapEncodeTiled(
        &mut map, data_type, rank, address, sizes, strides, tile, steps, 0, swizzle, 0, 0,
    );
    assert_eq!(answer, SUCCESS);
    map
}

/// Whole numbers, so that every product is exact.
fn number(i: usize) -> f32 {
    ((i * 13) % 17) as f32 - 8.0
}

fn bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

/// As in hopper.cu.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Operand {
    map: TensorMap,
    boxes: u32,
    box_bytes: u32,
    box_width: u32,
    leading: u32,
    stride: u32,
    mode: u32,
}

/// As in hopper.cu.
#[repr(C, align(64))]
struct ProductArgs {
    a: Operand,
    b: Operand,
    a_pairs: u64,
    out: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum Major {
    K,
    Mn,
}

/// Swizzles as TMA counts them: none, 32, 64, 128 bytes.
const SWIZZLES: [u32; 4] = [0, 1, 2, 3];

/// A [rows, 16] operand for boxes of the swizzle's width. In memory its inner dimension is padded to 64.
fn operand(
    device: &Device,
    rows: usize,
    major: Major,
    swizzle: u32,
    value: impl Fn(usize, usize) -> f32,
) -> Operand {
    let width = 8 << swizzle;
    let (outer, inner) = if major == Major::K { (rows, 16) } else { (16, rows) };
    let padded: Vec<u16> = (0..outer * 64)
        .map(|i| {
            let (outer, inner) = (i / 64, i % 64);
            let (row, k) = if major == Major::K { (outer, inner) } else { (inner, outer) };
            bf16(if row < rows && k < 16 { value(row, k) } else { 99.0 })
        })
        .collect();
    let address = device.upload(&padded);
    let map = tensor_map(device, BF16, address, &[64, outer as u64], &[width, outer as u32], swizzle);
    let box_bytes = width * 2 * outer as u32;
    // Rows of an atom are as wide as the swizzle; without one, two kinds of stride change places.
    let (leading, stride) = match (major, swizzle) {
        (Major::Mn, 0) => (128, box_bytes),
        _ => (box_bytes, 8 * width * 2),
    };
    let boxes = (inner as u32).div_ceil(width);
    Operand { map, boxes, box_bytes, box_width: width, leading, stride, mode: (4 - swizzle) % 4 }
}

fn product(kernel: &str, majors: [Major; 2], swizzles: [u32; 2]) -> Vec<f32> {
    try_product(kernel, majors, swizzles).unwrap_or_else(|reports| panic!("{kernel} {swizzles:?}: {reports}"))
}

/// The product, or the device's reports.
fn try_product(kernel: &str, majors: [Major; 2], swizzles: [u32; 2]) -> Result<Vec<f32>, String> {
    let device = Device::new(&[]);
    let (a, b) = (|m: usize, k: usize| number(m * 16 + k), |n: usize, k: usize| number(n * 5 + k * 3));
    let pairs: Vec<u16> = (0..64 * 16).map(|i| bf16(a(i / 16, i % 16))).collect();
    let out = device.upload(&[0.0f32; 64 * 32]);
    let args = ProductArgs {
        a: operand(&device, 64, majors[0], swizzles[0], a),
        b: operand(&device, 32, majors[1], swizzles[1], b),
        a_pairs: device.upload(&pairs),
        out,
    };
    let grid = Grid { blocks: 1, threads: [128, 1], shared: 8192 + 4096 };
    match device.run(device.function(HOPPER, kernel), grid, &args) {
        SUCCESS => Ok(device.download(out, 64 * 32)),
        _ => Err(device.reports()),
    }
}

fn expected_product(sign: f32) -> Vec<f32> {
    let term = |i: usize, k: usize| number(i / 32 * 16 + k) * number(i % 32 * 5 + k * 3);
    (0..64 * 32).map(|i| (0..16).map(|k| sign * term(i, k)).sum()).collect()
}

#[test]
fn wgmma_reads_every_layout_that_tma_writes() {
    if !Device::new(&[]).is_hopper() {
        return;
    }
    let kernels = [
        ("product_k_k", [Major::K, Major::K]),
        ("product_mn_k", [Major::Mn, Major::K]),
        ("product_k_mn", [Major::K, Major::Mn]),
        ("product_mn_mn", [Major::Mn, Major::Mn]),
    ];
    for (kernel, majors) in kernels {
        for a in SWIZZLES {
            for b in SWIZZLES {
                assert_eq!(product(kernel, majors, [a, b]), expected_product(1.0), "{kernel} {a} {b}");
            }
        }
    }
}

#[test]
fn wgmma_negates_and_takes_registers() {
    if !Device::new(&[]).is_hopper() {
        return;
    }
    for (kernel, sign) in [("product_minus_a", -1.0), ("product_minus_b", -1.0), ("product_registers", 1.0)] {
        assert_eq!(product(kernel, [Major::K; 2], [3, 3]), expected_product(sign), "{kernel}");
    }
}

#[test]
fn accumulators_used_before_their_wait_are_found() {
    let reports = try_product("product_too_late", [Major::K; 2], [3, 3]).unwrap_err();
    assert!(reports.contains("used before wgmma.wait_group"), "{reports}");
}

/// As in hopper.cu.
#[repr(C, align(64))]
struct RingArgs {
    a: TensorMap,
    b: TensorMap,
    out: u64,
    count: u32,
}

/// A product of five stages' worth of columns; the driver's answer, the result and the reports.
fn ring(bug: &str, environment: &[(&str, &str)]) -> (i32, Vec<f32>, String) {
    const COUNT: usize = 5 * 64;
    let device = Device::new(environment);
    let matrix = |rows: usize| -> u64 {
        device.upload(&(0..rows * COUNT).map(|i| bf16(number(i))).collect::<Vec<u16>>())
    };
    let out = device.upload(&[0.0f32; 64 * 32]);
    let args = RingArgs {
        a: tensor_map(&device, BF16, matrix(64), &[COUNT as u64, 64], &[64, 64], 3),
        b: tensor_map(&device, BF16, matrix(32), &[COUNT as u64, 32], &[64, 32], 3),
        out,
        count: COUNT as u32,
    };
    let function = device.function(HOPPER, &format!("ring_{bug}"));
    let shared = 2 * (64 + 32) * 128;
    assert_eq!(device.cuFuncSetAttribute(function, MAX_DYNAMIC_SHARED, shared), SUCCESS);
    let grid = Grid { blocks: 1, threads: [256, 1], shared: shared as u32 };
    let answer = device.run(function, grid, &args);
    let result = if answer == SUCCESS { device.download(out, 64 * 32) } else { vec![] };
    (answer, result, device.reports())
}

#[test]
fn a_ring_of_stages_is_right_in_any_order_and_its_missing_waits_are_found() {
    let expected: Vec<f32> = (0..64 * 32)
        .map(|i| (0..320).map(|k| number(i / 32 * 320 + k) * number(i % 32 * 320 + k)).sum())
        .collect();
    for schedule in ["forward", "reverse", "random", "ahead", "behind"] {
        for when in ["lazy", "eager"] {
            let environment = [("SIMGPU_SCHEDULE", schedule), ("SIMGPU_ASYNC", when)];
            let (answer, result, reports) = ring("NONE", &environment);
            assert_eq!((answer, &*reports), (SUCCESS, ""), "{environment:?}");
            assert_eq!(result, expected, "{environment:?}");
            for bug in ["NO_FULL_WAIT", "NO_EMPTY_WAIT", "NO_PRODUCT_WAIT"] {
                let (answer, _, reports) = ring(bug, &environment);
                assert_eq!(answer, LAUNCH_FAILED, "{bug} {environment:?}");
                assert!(reports.contains(&format!("in kernel ring_{bug}")), "{environment:?} {reports}");
            }
        }
    }
}

/// As in hopper.cu.
#[repr(C, align(64))]
struct BoxArgs {
    from: TensorMap,
    to: TensorMap,
    at: [i32; 5],
    elements: u32,
    out: u64,
}

/// A box that sticks out of its tensor on several sides; what lay in shared memory, what was stored, the reports.
fn move_box(
    kernel: &str,
    sizes: &[u64],
    tile: &[u32],
    at: [i32; 5],
    swizzle: u32,
) -> (i32, Vec<f32>, Vec<f32>, String) {
    let device = Device::new(&[]);
    let (count, elements) = (sizes.iter().product::<u64>() as usize, tile.iter().product::<u32>());
    let values: Vec<f32> = (0..count).map(|i| i as f32 + 1.0).collect();
    let (from, to) = (device.upload(&values), device.upload(&vec![0.0f32; count]));
    let out = device.upload(&vec![0.0f32; elements as usize]);
    let args = BoxArgs {
        from: tensor_map(&device, F32, from, sizes, tile, swizzle),
        to: tensor_map(&device, F32, to, sizes, tile, swizzle),
        at,
        elements,
        out,
    };
    let grid = Grid { blocks: 1, threads: [128, 1], shared: elements * 4 };
    let answer = device.run(device.function(HOPPER, kernel), grid, &args);
    if answer != SUCCESS {
        return (answer, vec![], vec![], device.reports());
    }
    (answer, device.download(out, elements as usize), device.download(to, count), device.reports())
}

#[test]
fn boxes_of_any_rank_are_filled_with_zeros_outside_and_stored_inside_only() {
    if !Device::new(&[]).is_hopper() {
        return;
    }
    let (sizes, tile, at) = ([20u64, 5, 4, 3, 2], [8u32, 3, 2, 2, 2], [-4, 3, -1, 2, 1]);
    let swizzled = [(1, 8u32), (2, 16), (3, 32)].map(|(swizzle, width)| (2, swizzle, [width, 11, 1, 1, 1]));
    let plain = [1, 2, 3, 4, 5].map(|rank| (rank, 0, tile));
    for (rank, swizzle, tile) in plain.into_iter().chain(swizzled) {
        let (sizes, tile) = (&sizes[..rank], &tile[..rank]);
        let (answer, shared, stored, reports) = move_box(&format!("box_{rank}"), sizes, tile, at, swizzle);
        assert_eq!((answer, &*reports), (SUCCESS, ""));
        let mut expected_stored = vec![0.0; stored.len()];
        for i in 0..shared.len() {
            let (mut rest, mut place, mut stride, mut inside) = (i, 0, 1, true);
            for d in 0..rank {
                let c = i64::from(at[d]) + (rest % tile[d] as usize) as i64;
                rest /= tile[d] as usize;
                inside &= (0..sizes[d] as i64).contains(&c);
                place += c * stride;
                stride *= sizes[d] as i64;
            }
            // Units of 16 bytes change places by the address bits above the 128-byte line.
            let byte = i * 4;
            let at = (byte ^ ((byte >> 7) & ((1 << swizzle) - 1)) << 4) / 4;
            let value = if inside { place as f32 + 1.0 } else { 0.0 };
            assert_eq!(shared[at], value, "rank {rank}, swizzle {swizzle}, element {i}");
            if inside {
                expected_stored[place as usize] = 2.0 * value;
            }
        }
        assert_eq!(stored, expected_stored, "rank {rank}, swizzle {swizzle}");
    }
}

#[test]
fn a_store_without_its_fence_or_its_wait_is_found() {
    for (bug, kind) in
        [("NO_PROXY_FENCE", "missing fence.proxy.async"), ("NO_STORE_WAIT", "asynchronous operation")]
    {
        let (answer, _, _, reports) = move_box(&format!("box_{bug}"), &[20, 5], &[8, 3], [0; 5], 0);
        assert_eq!(answer, LAUNCH_FAILED, "{bug}");
        assert!(reports.contains(&format!("{kind} in kernel box_{bug}")), "{reports}");
    }
}
