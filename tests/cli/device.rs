//! `--device`

use crate::common::*;
use crate::simulated;
use qformer::Cuda;
use qformer::device::Device;
use serde_json::Value;
use std::path::Path;
use std::process::Command;

fn score(device: &str, of: impl FnOnce(&mut Command)) -> Run {
    score_by(&model(), device, of)
}

fn score_by(model: &Path, device: &str, of: impl FnOnce(&mut Command)) -> Run {
    let mut command = command();
    let (model, image) = (shown(model), shown(&images()[0]));
    command.args([
        "score", "--model", &model, "--images", &image, "--text", TEXTS[0], "--json", "--device", device,
    ]);
    of(&mut command);
    ended(command.output().unwrap())
}

/// On the machine's GPU, or on a simulated one.
fn score_on_gpu(model: &Path) -> Run {
    score_by(model, "cuda", |command| {
        if Cuda::open(0).is_err() {
            command.env("LD_LIBRARY_PATH", simulated::driver());
        }
    })
}

/// ITC and both logits of ITM.
fn numbers_of(printed: &str) -> [f64; 3] {
    let scores: Value = serde_json::from_str(printed).unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    let logits = &scores["itm_logits"][0][0];
    [number(&scores["itc"][0][0]), number(&logits[0]), number(&logits[1])]
}

#[test]
fn without_a_gpu_it_is_said_what_is_missing_and_auto_takes_the_cpu() {
    match Cuda::open(0) {
        // A machine with a GPU: auto takes it.
        Ok(_) => assert_eq!(score("auto", |_| ()).succeeds(), score("cuda", |_| ()).succeeds()),
        Err(why) => {
            score("cuda", |_| ()).fails(&[&why.to_string()]);
            let Run { code, stdout, stderr } = score("auto", |_| ());
            assert_eq!(code, Some(0));
            // On a machine without NVIDIA's driver there is nothing to say.
            let note = format!("note: computing on the CPU, since {why}\n");
            assert_eq!(stderr, if Cuda::has_driver() { note } else { String::new() });
            assert_eq!(stdout, score("cpu", |_| ()).succeeds());
        }
    }
}

#[test]
fn a_gpu_that_cannot_be_used_is_one_clear_error_and_auto_takes_the_cpu() {
    // A real one's driver and capability are what they are.
    if Cuda::open(0).is_ok() {
        return;
    }
    let on_cpu = score("cpu", |_| ()).succeeds();
    for (setting, value, why) in [
        ("SIMGPU_DRIVER", "11080", "supports CUDA 11.8; install one for CUDA 12.0 or newer"),
        ("SIMGPU_DEVICES", "0", "CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)"),
        ("SIMGPU_CC", "75", "has compute capability 7.5; 8.0 (Ampere) or newer is needed"),
    ] {
        let score = |device| {
            score(device, |command| {
                command.env("LD_LIBRARY_PATH", simulated::driver()).env(setting, value);
            })
        };
        score("cuda").fails(&[why]);
        let Run { code, stdout, stderr } = score("auto");
        assert_eq!((code, &stdout), (Some(0), &on_cpu), "{stderr}");
        assert!(stderr.starts_with("note: computing on the CPU, since ") && stderr.contains(why), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[test]
fn heads_too_wide_for_the_gpu_are_refused_when_the_model_is_loaded() {
    let workplace = Workplace::new();
    workplace.configure(|json| json["qformer_config"]["num_attention_heads"] = 1.into());
    score_on_gpu(&workplace.model()).succeeds();
    workplace.configure(|json| json["qformer_config"]["hidden_size"] = 256.into());
    let wanted = ["heads of the Q-Former have 256 columns", "take 128 at most", "--device cpu"];
    score_on_gpu(&workplace.model()).fails(&wanted);
}

#[test]
fn the_gpu_scores_as_the_cpu_does() {
    let (gpu, cpu) =
        (numbers_of(&score_on_gpu(&model()).succeeds()), numbers_of(&score("cpu", |_| ()).succeeds()));
    for (gpu, cpu) in gpu.into_iter().zip(cpu) {
        // bf16 through the model: tests/retrieval.rs has its measure.
        assert!((gpu - cpu).abs() < 0.15 * cpu.abs().max(0.5), "{gpu} on the GPU, {cpu} on the CPU");
    }
}

#[test]
fn a_gpu_that_is_too_small_says_how_much_was_needed_and_how_much_would_fit() {
    // A real one's memory cannot be made small: there, more is asked for than it can have.
    if let Ok(cuda) = Cuda::open(0) {
        let refused = cuda.allocate(1 << 50, "a test").map(|_| ()).unwrap_err();
        assert!(refused.to_string().contains("cannot allocate 1048576.00 GiB"), "{refused}");
        return;
    }
    let run = score("cuda", |command| {
        // The model fits, what it works in does not.
        command.env("LD_LIBRARY_PATH", simulated::driver()).env("SIMGPU_MEMORY", "1790000");
    });
    run.fails(&[
        "cannot allocate",
        "MiB of memory for activations",
        "are free, enough for about 0 of the 1 images",
    ]);
}
