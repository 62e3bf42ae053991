//! Training on a GPU, the machine's own or a simulated one.

use crate::common::*;
use crate::simulated;
use qformer::Cuda;
use std::fs;
use std::process::Command;

/// The same on a GPU.
fn on_gpu(mut command: Command) -> Command {
    command.env_remove("QFORMER_DEVICE");
    if Cuda::open(0).is_err() {
        command.env("LD_LIBRARY_PATH", simulated::driver());
    }
    command
}

#[test]
fn steps_on_a_gpu_have_the_losses_of_the_cpu() {
    let place = Workplace::new();
    // Without chance in the choice of negatives, which a rounding may turn.
    let more = ["--negatives", "hardest", "--dropout", "0", "--accum-freq", "1"];
    run(&mut place.train("cpu", 2, &more)).with(0, &[]);
    let more = [&more[..], &["--device", "cuda"]].concat();
    run(&mut on_gpu(place.train("gpu", 2, &more))).with(0, &["step 2/2"]);
    for (gpu, cpu) in place.steps("gpu").iter().zip(place.steps("cpu")) {
        for name in ["loss_itc", "loss_itm", "loss_lm"] {
            let [gpu, cpu] = [gpu, &cpu].map(|step| step[name].as_f64().unwrap());
            // Means over many roundings to bf16, 2^-9 of a value each; 0.0016 was measured.
            assert!((gpu - cpu).abs() < 0.005 * cpu, "{name}: {gpu} on the GPU, {cpu} on the CPU");
        }
    }
}

#[test]
fn a_run_on_a_gpu_goes_on_bit_for_bit() {
    let place = Workplace::new();
    // Everything random that there is.
    run(&mut on_gpu(place.train("whole", 4, &["--device", "cuda"]))).with(0, &[]);
    copy_folder(&place.path("whole"), &place.path("run"));
    fs::remove_dir_all(place.checkpoint("run", 4)).unwrap();
    run(&mut on_gpu(place.resume("run"))).with(0, &["continuing from", "step 4/4"]);
    assert!(place.result("run", 4) == place.result("whole", 4));
}
