//! `tests/golden/stage1` as a user would repeat it.

use crate::common::*;
use crate::paths::path;
use qformer::params::safetensors::Checkpoint;
use std::path::{Path, PathBuf};

pub(crate) fn folder() -> PathBuf {
    path("tests/golden/stage1")
}

/// Ten steps as training.json has them.
pub(crate) fn train(place: &Workplace, output: &str) -> Ended {
    train_from(&folder(), place, output)
}

/// The same from another model.
pub(crate) fn train_from(model: &Path, place: &Workplace, output: &str) -> Ended {
    let golden = folder();
    let mut command = command();
    command.args(["train", "stage1", "--model"]).arg(model);
    command.arg("--features").arg(golden.join("batch.safetensors"));
    command.arg("--captions").arg(golden.join("captions.jsonl"));
    command.args(["--order", "given", "--negatives", "hardest", "--dropout", "0", "--text-length", "16"]);
    command.args(["--lr", "3e-4", "--lr-scheduler", "const", "--warmup", "0", "--wd", "0.05"]);
    run(command.args(["--steps", "10", "--batch-size", "5", "--output"]).arg(place.path(output)))
}

#[test]
fn ten_steps_from_the_command_line_have_the_losses_of_lavis() {
    let place = Workplace::new();
    train(&place, "run").with(0, &["step 10/10", "note: steps take"]);
    let checkpoint = Checkpoint::open(&folder().join("expected.safetensors")).unwrap();
    let mut expected = Vec::new();
    checkpoint.read_f32("losses", |_, values| expected.extend_from_slice(values)).unwrap();
    let steps = place.steps("run");
    assert_eq!(steps.len(), 10);
    for (step, expected) in steps.iter().zip(expected.chunks(4)) {
        for (name, &expected) in ["loss", "loss_itc", "loss_itm", "loss_lm"].iter().zip(expected) {
            let found = step[name].as_f64().unwrap();
            // As tests/stage1.rs: rounding grows from step to step.
            assert!((found - f64::from(expected)).abs() < 1e-3 * f64::from(expected), "{step}: {expected}");
        }
        assert_eq!(step["lr"], 3e-4);
    }
}
