//! A run that is interrupted goes on as if nothing had happened.

use crate::common::*;
use crate::paths::path;
use crate::pictures::write_pictures;
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Kills at random moments the run that `train` begins or resumes, until it ends, and compares it with one that nothing
/// happened to; then once more, until there were so many `kills`, or `QFORMER_KILLS`. It is in the folder "killed".
fn is_unmoved_by_kills(
    place: &Workplace,
    steps: usize,
    kills: usize,
    train: impl Fn(&str, &[&str]) -> Command,
) {
    let kills = std::env::var("QFORMER_KILLS").map_or(kills, |kills| kills.parse().unwrap());
    let begun = SystemTime::now();
    run(&mut train("whole", &[])).with(0, &[&format!("step {steps}/{steps}")]);
    let time = begun.elapsed().unwrap();
    let expected = place.result("whole", steps);
    // Times that differ from test to test; a failure shows them.
    let mut random = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let mut killed = 0;
    while killed < kills {
        let _ = fs::remove_dir_all(place.path("killed"));
        let mut times = Vec::new();
        let is_done = loop {
            if killed == kills {
                break false;
            }
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let after = time.mul_f64(0.5 * f64::from(random) / f64::from(u32::MAX));
            let mut command = train("killed", &["--resume"]);
            let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            sleep(after);
            child.kill().unwrap();
            let code = child.wait().unwrap().code();
            assert!(matches!(code, None | Some(0)), "{code:?} after kills at {times:?} of {time:?}");
            if code.is_some() {
                break true;
            }
            times.push(after);
            killed += 1;
        };
        if !is_done {
            run(&mut train("killed", &["--resume"])).with(0, &[]);
        }
        let found = place.result("killed", steps);
        for (found, expected) in found.0.iter().zip(&expected.0) {
            assert!(found == expected, "{} differs after kills at {times:?} of {time:?}", found.0);
        }
        assert_eq!((found.0.len(), &found.1), (expected.0.len(), &expected.1), "{times:?} of {time:?}");
        let events = lines(&place.path("killed/metrics.jsonl"));
        let starts = events.iter().filter(|line| line["event"] == "run_start").count();
        assert_eq!(starts, 1, "{times:?} of {time:?}");
        // Nothing is left of what was being written.
        let left = place.entries("killed");
        assert!(!left.iter().any(|name| name.starts_with(".qformer-")), "{left:?}, {times:?} of {time:?}");
    }
}

#[test]
fn a_run_killed_at_random_times_ends_with_the_same_bytes() {
    const STEPS: usize = 30;
    let place = Workplace::new();
    is_unmoved_by_kills(&place, STEPS, 20, |output, more| place.train(output, STEPS, more));
    assert_eq!(place.checkpoints("killed"), ["latest", "step-00000027", "step-00000030"]);
    let latest = fs::read_link(place.path("killed/checkpoints/latest")).unwrap();
    assert_eq!(latest.to_str(), Some("step-00000030"));
}

#[test]
fn a_run_on_augmented_pictures_killed_at_random_times_ends_with_the_same_bytes() {
    const STEPS: usize = 10;
    let place = Workplace::new();
    write_pictures(&place);
    let mut data = OpenOptions::new().append(true).open(place.path("data.jsonl")).unwrap();
    data.write_all(b"{\"image\": \"captions.jsonl\", \"caption\": \"not a picture\"}\n").unwrap();
    is_unmoved_by_kills(&place, STEPS, 8, |output, more| {
        let mut command = command();
        command.args(["train", "stage1", "--augment", "blip-train", "--batch-size", "3", "--lr", "1e-3"]);
        command.args(["--save-frequency", "2", "--log-every-n-steps", "1", "--steps", &STEPS.to_string()]);
        command.arg("--model").arg(path("tests/golden/retrieval/model"));
        command.arg("--data").arg(place.path("data.jsonl")).arg("--output").arg(place.path(output));
        command.args(more);
        command
    });
    for output in ["whole", "killed"] {
        let events = lines(&place.path(output).join("metrics.jsonl"));
        let warnings: Vec<_> = events.iter().filter(|line| line["event"] == "warning").collect();
        assert!(warnings.len() == 1 && warnings[0]["message"].as_str().unwrap().contains("captions.jsonl"));
        assert_eq!(events.last().unwrap()["bad_samples"], 1);
    }
}

#[test]
fn sigterm_saves_and_tells_how_to_go_on() {
    let place = Workplace::new();
    let output = place.path("run");
    let mut last = 0;
    for (attempt, more) in [&[][..], &["--resume"]].iter().enumerate() {
        // Two lines of beginnings, three checkpoints at most, and a step or more each time.
        let child = start(&mut place.train("run", 100_000, more), &output, last + 6 * (attempt + 1));
        signal(&child, if attempt == 0 { "-TERM" } else { "-INT" });
        let ended = Ended::of(child.wait_with_output().unwrap());
        let resume = format!("qformer train stage1 --output {} --resume", output.display());
        ended.with(75, &["stopping after this step", &resume]);
        let steps = place.steps("run");
        assert!(steps.len() > last);
        last = steps.len();
        assert!(steps.iter().zip(1..).all(|(line, step)| line["step"] == step));
        assert!(place.checkpoint("run", last).join("trainer_state.json").exists());
    }
    let events = lines(&output.join("metrics.jsonl"));
    assert_eq!(events.last().unwrap()["reason"], "stopped");
    assert_eq!(events.iter().filter(|line| line["event"] == "run_resume").count(), 1);
}

#[test]
fn a_second_interrupt_ends_at_once() {
    let place = Workplace::new();
    let output = place.path("run");
    // Steps long enough for two signals: their batches are large.
    let mut command = command();
    command.args(["train", "stage1", "--preset", "tiny", "--batch-size", "1500", "--steps", "3"]);
    command.arg("--features").arg(place.path("features.safetensors"));
    command.arg("--captions").arg(place.path("captions.jsonl"));
    command.arg("--output").arg(&output);
    // Between two steps the first signal already ends the run: then it is begun again.
    let code = (0..20).find_map(|_| {
        let _ = fs::remove_dir_all(&output);
        let mut child = start(&mut command, &output, 1);
        // The first step has begun, most likely, and takes longer than this.
        sleep(Duration::from_millis(200));
        signal(&child, "-INT");
        let mut told = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(told.any(|line| line.contains("once more to stop at once")));
        signal(&child, "-INT");
        let code = child.wait().unwrap().code();
        (code != Some(75)).then_some(code)
    });
    assert_eq!(code, Some(Some(130)));
    assert!(!output.join("checkpoints").exists());
}

#[test]
fn a_finished_run_has_nothing_left_to_do() {
    let place = Workplace::new();
    run(&mut place.train("run", 3, &[])).with(0, &[]);
    let result = place.result("run", 3);
    run(&mut place.resume("run")).with(0, &["continuing from", "done; the model is"]);
    assert!(result == place.result("run", 3));
}
