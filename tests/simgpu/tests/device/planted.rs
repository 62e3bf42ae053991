//! Every planted mistake is reported, with its line, in whatever order threads run; the same kernel without it is not.

use crate::api::{Device, Grid, ILLEGAL_ADDRESS, LAUNCH_FAILED, MISALIGNED_ADDRESS, PLANTED, SUCCESS};

const SCHEDULES: [&str; 5] = ["forward", "reverse", "random", "ahead", "behind"];
const ASYNC: [&str; 2] = ["lazy", "eager"];

/// As in planted.cu.
#[repr(C)]
struct Args {
    x: u64,
    y: u64,
    out: u64,
    counter: u64,
    count: u32,
}

/// The kernels' common stage: 512 numbers in, what comes out of `body`, and the driver's answer.
fn run(body: &str, bug: &str, environment: &[(&str, &str)]) -> (i32, Vec<f32>, String) {
    let device = Device::new(environment);
    let kernel = device.function(PLANTED, &format!("{body}_{bug}"));
    let numbers: Vec<f32> = (0..1024).map(|i| ((i * 7) % 23) as f32 - 11.0).collect();
    let grid = |blocks, x, y| Grid { blocks, threads: [x, y], shared: 0 };
    let (grid, count, inputs, outputs) = match body {
        "block_sum" => (grid(2, 256, 1), 500, 500, 2),
        "transpose" => (grid(1, 32, 8), 0, 1024, 1024),
        "exchange" => (grid(1, 32, 1), 0, 32, 32),
        "last_block_sum" => (grid(8, 32, 1), 0, 256, 9),
        "named_barrier" => (grid(1, 128, 1), 0, 64, 64),
        "vector_load" => (grid(1, 8, 1), 0, 40, 8),
        "pipeline" => (grid(1, 64, 1), 64, 16 * 64, 256),
        _ => unreachable!(),
    };
    let (x, y) = if body == "pipeline" {
        let halves: Vec<u16> = numbers.iter().map(|&v| (v.to_bits() >> 16) as u16).collect();
        (device.upload(&halves), device.upload(&halves[..16 * 64]))
    } else {
        (device.upload(&numbers[..inputs]), 0)
    };
    let (out, counter) = (device.upload(&vec![0.0f32; outputs]), device.upload(&[0u32]));
    let answer = device.run(kernel, grid, &Args { x, y, out, counter, count });
    let result = if answer == SUCCESS { device.download(out, outputs) } else { vec![] };
    (answer, result, device.reports())
}

fn expected(body: &str) -> Vec<f32> {
    let x: Vec<f32> = (0..1024).map(|i| ((i * 7) % 23) as f32 - 11.0).collect();
    match body {
        "block_sum" => x[..500].chunks(256).map(|c| c.iter().sum()).collect(),
        "transpose" => (0..1024).map(|i| x[i % 32 * 32 + i / 32]).collect(),
        "exchange" => (0..32).map(|i| x[(i + 1) % 32]).collect(),
        "last_block_sum" => {
            let sums = x[..256].chunks(32).map(|c| c.iter().sum());
            [x[..256].iter().sum()].into_iter().chain(sums).collect()
        }
        "named_barrier" => (0..64).map(|i| x[63 - i]).collect(),
        "vector_load" => x[..32].chunks(4).map(|c| c.iter().sum()).collect(),
        "pipeline" => {
            (0..256).map(|i| (0..64).map(|k| x[i / 16 * 64 + k] * x[i % 16 * 64 + k]).sum()).collect()
        }
        _ => unreachable!(),
    }
}

#[test]
fn correct_kernels_are_right_and_not_reported_in_any_order() {
    for schedule in SCHEDULES {
        for when in ASYNC {
            for body in [
                "block_sum",
                "transpose",
                "exchange",
                "last_block_sum",
                "named_barrier",
                "vector_load",
                "pipeline",
            ] {
                for checks in ["on", "off"] {
                    let environment =
                        [("SIMGPU_SCHEDULE", schedule), ("SIMGPU_ASYNC", when), ("SIMGPU_CHECKS", checks)];
                    let (answer, result, reports) = run(body, "NONE", &environment);
                    assert_eq!((answer, &*reports), (SUCCESS, ""), "{body} {environment:?}");
                    assert_eq!(result, expected(body), "{body} {environment:?}");
                }
            }
        }
    }
}

/// Asserts that the mistake is reported as `kind` in every schedule, at a line of the source.
fn found(body: &str, bug: &str, kind: &str, fault: i32) {
    for schedule in SCHEDULES {
        for when in ASYNC {
            let environment = [("SIMGPU_SCHEDULE", schedule), ("SIMGPU_ASYNC", when)];
            let (answer, _, reports) = run(body, bug, &environment);
            assert_eq!(answer, fault, "{body}_{bug} {environment:?}\n{reports}");
            let kernel = format!("{kind} in kernel {body}_{bug}, block (");
            assert!(reports.contains(&kernel), "{body}_{bug} {environment:?}\n{reports}");
            assert!(reports.contains("planted.cu:"), "{body}_{bug} {environment:?}\n{reports}");
        }
    }
}

#[test]
fn missing_barrier_is_a_race() {
    found("block_sum", "NO_BARRIER", "", LAUNCH_FAILED);
    found("transpose", "NO_BARRIER", "", LAUNCH_FAILED);
    found("pipeline", "NO_BARRIER", "race in shared memory", LAUNCH_FAILED);
    found("exchange", "NO_WARP_BARRIER", "", LAUNCH_FAILED);
}

#[test]
fn reused_stage_without_barrier_is_a_race() {
    found("pipeline", "NO_REUSE_BARRIER", "race in shared memory", LAUNCH_FAILED);
}

#[test]
fn asynchronous_copy_read_before_its_wait_is_found() {
    found("pipeline", "NO_WAIT", "race in shared memory", LAUNCH_FAILED);
}

#[test]
fn accesses_out_of_bounds_are_found() {
    found("transpose", "SHARED_BOUNDS", "access outside shared variables", ILLEGAL_ADDRESS);
    found("pipeline", "SHARED_BOUNDS", "access outside shared variables", ILLEGAL_ADDRESS);
    found("block_sum", "GLOBAL_BOUNDS", "illegal address", ILLEGAL_ADDRESS);
    found("pipeline", "GLOBAL_BOUNDS", "illegal address", ILLEGAL_ADDRESS);
}

#[test]
fn shared_memory_never_written_is_found() {
    found("block_sum", "NOT_WRITTEN", "uninitialised shared memory", LAUNCH_FAILED);
}

#[test]
fn misaligned_vector_is_found() {
    found("vector_load", "MISALIGNED", "misaligned address", MISALIGNED_ADDRESS);
}

#[test]
fn divergence_at_barriers_is_found() {
    found("block_sum", "DIVERGENT_BARRIER", "barrier divergence", LAUNCH_FAILED);
    found("block_sum", "EARLY_EXIT", "", LAUNCH_FAILED);
    found("named_barrier", "WRONG_COUNT", "deadlock", LAUNCH_FAILED);
}

#[test]
fn divergence_in_a_warp_is_found() {
    found("exchange", "WRONG_MASK", "divergence", LAUNCH_FAILED);
    found("exchange", "ENDED_LANE", "divergence", LAUNCH_FAILED);
}

#[test]
fn blocks_that_meet_without_atomics_and_fences_race() {
    found("block_sum", "SAME_PLACE", "race in device memory", LAUNCH_FAILED);
    found("last_block_sum", "NO_FENCE", "race in device memory", LAUNCH_FAILED);
    found("last_block_sum", "NO_COUNTER", "race in device memory", LAUNCH_FAILED);
}
