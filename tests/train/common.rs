//! Running the program on a small data set.

pub(crate) use crate::program::{command, end};
use qformer::params::safetensors::{Dtype, NewTensor, write};
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;
use tempfile::TempDir;

/// Images of the small data set.
const IMAGES: usize = 10;
/// N and W of its features, as the preset "tiny" reads them.
pub(crate) const TOKENS: usize = 17;
pub(crate) const WIDTH: usize = 64;

/// A folder with a data set, and room for runs.
pub(crate) struct Workplace {
    folder: TempDir,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        let place = Self { folder: TempDir::new().unwrap() };
        let shape = [IMAGES, TOKENS, WIDTH];
        let values = values();
        let features = NewTensor::from_slice("vision_output", Dtype::F32, &shape, &values);
        write(&place.path("features.safetensors"), &BTreeMap::new(), vec![features]).unwrap();
        let colours = ["red", "green", "blue", "black", "white"];
        let caption = |i: usize| {
            let (first, second) = (colours[i % 5], colours[(i / 2) % 5]);
            format!(
                "{{\"image\": \"image {i}\", \"caption\": [\"a {first} cat\", \"a {second} dog in the {first} snow\"]}}\n"
            )
        };
        fs::write(place.path("captions.jsonl"), (0..IMAGES).map(caption).collect::<String>()).unwrap();
        place
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run of `tiny` from the data set into the folder `output`, with everything random there is.
    pub(crate) fn train(&self, output: &str, steps: usize, more: &[&str]) -> Command {
        let mut command = command();
        command.args(["train", "stage1", "--preset", "tiny", "--log-every-n-steps", "1"]);
        let defaults =
            [("--batch-size", "4"), ("--accum-freq", "2"), ("--lr", "1e-3"), ("--save-frequency", "3")];
        for (flag, value) in defaults {
            if !more.contains(&flag) {
                command.args([flag, value]);
            }
        }
        command.arg("--steps").arg(steps.to_string());
        command.arg("--features").arg(self.path("features.safetensors"));
        command.arg("--captions").arg(self.path("captions.jsonl"));
        command.arg("--output").arg(self.path(output)).args(more);
        command
    }

    /// The same run, continued by no other flag.
    pub(crate) fn resume(&self, output: &str) -> Command {
        let mut command = command();
        command.args(["train", "stage1", "--resume", "--output"]).arg(self.path(output));
        command
    }

    pub(crate) fn checkpoint(&self, output: &str, step: usize) -> PathBuf {
        self.path(output).join(format!("checkpoints/step-{step:08}"))
    }

    /// The checkpoints of a run, and whatever else is in their folder.
    pub(crate) fn checkpoints(&self, output: &str) -> Vec<String> {
        self.entries(&format!("{output}/checkpoints"))
    }

    /// What is in a folder, sorted.
    pub(crate) fn entries(&self, folder: &str) -> Vec<String> {
        let entries = self.path(folder).read_dir().unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// All that a run of so many steps computed: files of its last checkpoint, and the numbers of its
    /// steps but for times.
    pub(crate) fn result(&self, output: &str, steps: usize) -> (Vec<(String, Vec<u8>)>, Vec<Value>) {
        let folder = self.checkpoint(output, steps);
        let mut files: Vec<(String, Vec<u8>)> = folder
            .read_dir()
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        (files, self.steps(output))
    }

    /// The lines about steps in a run's metrics, without times.
    pub(crate) fn steps(&self, output: &str) -> Vec<Value> {
        let mut steps = lines(&self.path(output).join("metrics.jsonl"));
        steps.retain(|line| line["event"] == "train_step");
        for step in &mut steps {
            let step = step.as_object_mut().unwrap();
            for name in ["samples_per_second", "data_time_s", "step_time_s", "wall_time"] {
                assert!(step.remove(name).unwrap().as_f64().unwrap() >= 0.0);
            }
        }
        steps
    }
}

/// Changes what a checkpoint's trainer_state.json says, and its checksum with it.
pub(crate) fn change_state(checkpoint: &Path, change: impl FnOnce(&mut Value)) {
    let path = checkpoint.join("trainer_state.json");
    let mut state: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    state.as_object_mut().unwrap().remove("crc32").unwrap();
    change(&mut state);
    let sum = crc32fast::hash(state.to_string().as_bytes());
    state["crc32"] = format!("{sum:08x}").into();
    fs::write(path, state.to_string()).unwrap();
}

/// Features as an image encoder might leave them.
pub(crate) fn values() -> Vec<f32> {
    (0..IMAGES * TOKENS * WIDTH).map(|i| ((i * i) as f32 * 0.37).sin()).collect()
}

/// The objects in a file of one a line; every line has to be whole.
pub(crate) fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        assert!(output.stdout.is_empty(), "{output:?}");
        Self { code: output.status.code(), stderr: String::from_utf8(output.stderr).unwrap() }
    }

    /// A run that ends with this code and tells all the `fragments`.
    #[track_caller]
    pub(crate) fn with(self, code: i32, fragments: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        for fragment in fragments {
            assert!(self.stderr.contains(fragment), "{fragment:?} is not in\n{}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        self
    }
}

/// Runs it to its end.
pub(crate) fn run(command: &mut Command) -> Ended {
    Ended::of(command.output().unwrap())
}

/// Starts it, and waits until its metrics at `output` have so many lines.
pub(crate) fn start(command: &mut Command, output: &Path, lines: usize) -> Child {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    await_lines(&mut child, output, lines);
    child
}

/// Waits until the metrics at `output` of a run that was started have so many lines.
pub(crate) fn await_lines(child: &mut Child, output: &Path, lines: usize) {
    let seen = || fs::read_to_string(output.join("metrics.jsonl")).map_or(0, |text| text.lines().count());
    while seen() < lines {
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none(), "{ended:?} before it had so many lines: {}", told(child));
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// What a process that ended has left on its standard error.
fn told(child: &mut Child) -> String {
    let mut text = String::new();
    child.stderr.take().map(|mut stderr| stderr.read_to_string(&mut text).unwrap());
    text
}

/// Sends the process a signal.
pub(crate) fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

/// Copies a folder with all that is in it; links stay links.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    let status = Command::new("cp").args([OsStr::new("-a"), from.as_os_str(), to.as_os_str()]).status();
    assert!(status.unwrap().success());
}
