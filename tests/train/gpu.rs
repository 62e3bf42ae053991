//! Training on a GPU, the machine's own or a simulated one.

use crate::common::*;
use crate::features::{SHAPE, write_features};
use crate::simulated;
use qformer::Cuda;
use std::fs;
use std::process::Command;

/// Small steps with everything random that there is, each of them saved.
const MORE: [&str; 8] = ["--batch-size", "2", "--accum-freq", "1", "--lr", "1e-4", "--save-frequency", "1"];

/// The same on a GPU.
fn on_gpu(mut command: Command) -> Command {
    command.env("QFORMER_DEVICE", "cuda");
    if Cuda::open(0).is_err() {
        command.env("LD_LIBRARY_PATH", simulated::driver());
    }
    command
}

/// The losses of the run `gpu` are those of the run `cpu`, as far as bf16 is precise.
fn assert_near(place: &Workplace, gpu: &str, cpu: &str) {
    for (gpu, cpu) in place.steps(gpu).iter().zip(place.steps(cpu)) {
        // A cosine in bf16 is right to about 2^-9, of which the temperature makes 0.03; logits of words are
        // likewise about 10 times a value of that precision, and those of matches below 1.
        for (name, tolerance) in [("loss_itc", 0.03), ("loss_itm", 0.01), ("loss_lm", 0.03)] {
            let [gpu, cpu] = [gpu, &cpu].map(|step| step[name].as_f64().unwrap());
            assert!((gpu - cpu).abs() < tolerance, "{name}: {gpu} on the GPU, {cpu} on the CPU");
        }
    }
}

#[test]
fn a_run_on_a_gpu_has_the_losses_of_the_cpu_and_goes_on_bit_for_bit() {
    let place = Workplace::new();
    run(&mut place.train("cpu", 2, &MORE)).with(0, &[]);
    run(&mut on_gpu(place.train("whole", 2, &MORE))).with(0, &["step 2/2"]);
    assert_near(&place, "whole", "cpu");
    copy_folder(&place.path("whole"), &place.path("run"));
    fs::remove_dir_all(place.checkpoint("run", 2)).unwrap();
    run(&mut on_gpu(place.resume("run"))).with(0, &["continuing from", "step 2/2"]);
    assert!(place.result("run", 2) == place.result("whole", 2));
}

#[test]
fn features_of_any_shape_are_learnt_from_on_a_gpu() {
    let place = Workplace::new();
    write_features(&place.path("features.safetensors"), SHAPE);
    run(&mut place.train("cpu", 1, &MORE)).with(0, &[]);
    run(&mut on_gpu(place.train("gpu", 1, &MORE))).with(0, &["13 tokens of width 41", "step 1/1"]);
    assert_near(&place, "gpu", "cpu");
}
