//! Running the program, and checkpoints made from the golden one.

use crate::paths::path;
pub(crate) use crate::program::command;
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use qformer::tensor::HostTensor;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use tempfile::TempDir;

/// ‖found − expected‖ / ‖expected‖ allowed of a float32 implementation against float64 values.
pub(crate) const TOLERANCE: f64 = 1e-4;

pub(crate) const TEXTS: [&str; 5] = [
    "a red cat sits on a table",
    "two dogs run in the snow near a house",
    "a cup of coffee",
    "a smiling astronaut in an orange suit",
    "a rocket on a launch pad at night",
];

pub(crate) fn golden() -> PathBuf {
    path("tests/golden/retrieval")
}

pub(crate) fn model() -> PathBuf {
    golden().join("model")
}

pub(crate) fn images() -> [PathBuf; 3] {
    ["astronaut", "chelsea", "coffee"].map(|name| golden().join(format!("images/{name}.png")))
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

pub(crate) fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Run {
    ended(command().args(arguments).output().unwrap())
}

pub(crate) fn ended(output: Output) -> Run {
    Run {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

impl Run {
    /// The standard output of a run without a complaint.
    #[track_caller]
    pub(crate) fn succeeds(self) -> String {
        assert_eq!((self.code, self.stderr.as_str()), (Some(0), ""), "{self:?}");
        self.stdout
    }

    /// A run that ends with one line of error, which tells all the `fragments`.
    #[track_caller]
    pub(crate) fn fails(self, fragments: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(1), ""), "{self:?}");
        assert!(self.stderr.starts_with("error: ") && self.stderr.lines().count() == 1, "{self:?}");
        self.tells(fragments);
    }

    /// A run that asks for what cannot be done.
    #[track_caller]
    pub(crate) fn misuses(self, fragments: &[&str]) {
        assert_eq!((self.code, self.stdout.as_str()), (Some(2), ""), "{self:?}");
        assert!(self.stderr.starts_with("error: "), "{self:?}");
        self.tells(fragments);
    }

    #[track_caller]
    pub(crate) fn tells(&self, fragments: &[&str]) {
        for fragment in fragments {
            assert!(self.stderr.contains(fragment), "{fragment:?} is not in {self:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{self:?}");
    }
}

/// Arguments of `embed` with all golden images and texts.
pub(crate) fn embed_all(model: &Path, output: &Path) -> Vec<String> {
    let mut arguments = vec!["embed".to_owned(), "--model".into(), shown(model), "--images".into()];
    arguments.extend(images().iter().map(|path| shown(path)));
    arguments.extend(["--output".into(), shown(output), "--text".into()]);
    arguments.extend(TEXTS.map(str::to_owned));
    arguments
}

pub(crate) fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub(crate) fn read(path: &Path, name: &str) -> HostTensor {
    let checkpoint = Checkpoint::open(path).unwrap();
    let mut values = Vec::new();
    checkpoint.read_f32(name, |_, block| values.extend_from_slice(block)).unwrap();
    HostTensor::new(&checkpoint.get(name).unwrap().shape, values).unwrap()
}

/// A tensor of the golden results.
pub(crate) fn expected(name: &str) -> HostTensor {
    read(&golden().join("expected.safetensors"), name)
}

pub(crate) fn relative_error(found: &HostTensor, expected: &HostTensor) -> f64 {
    assert_eq!(found.shape(), expected.shape());
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&f, &e) in found.values().iter().zip(expected.values()) {
        difference += (f64::from(f) - f64::from(e)).powi(2);
        norm += f64::from(e).powi(2);
    }
    (difference / norm).sqrt()
}

/// The numbers in a JSON array, however deep.
pub(crate) fn numbers(json: &Value) -> Vec<f32> {
    match json {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        number => vec![number.as_f64().unwrap() as f32],
    }
}

/// The golden model in a folder of its own, where it can be changed, beside a folder for output.
pub(crate) struct Workplace {
    folder: TempDir,
    pub(crate) tensors: BTreeMap<String, HostTensor>,
}

impl Workplace {
    pub(crate) fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for name in ["model", "output"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        for entry in model().read_dir().unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), folder.path().join("model").join(entry.file_name())).unwrap();
        }
        let checkpoint = Checkpoint::open(&model()).unwrap();
        let tensors = checkpoint.names().map(|name| (name.to_owned(), read(&model(), name))).collect();
        Self { folder, tensors }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    pub(crate) fn weights(&self) -> PathBuf {
        self.model().join("model.safetensors")
    }

    /// Where a run's output goes: the folder's only file.
    pub(crate) fn output(&self) -> PathBuf {
        self.folder.path().join("output/features.safetensors")
    }

    /// Runs `embed` on all golden images and texts.
    pub(crate) fn embed(&self) -> Run {
        run(embed_all(&self.model(), &self.output()))
    }

    /// The bytes that `embed` writes.
    #[track_caller]
    pub(crate) fn embedded(&self) -> Vec<u8> {
        self.embed().succeeds();
        fs::read(self.output()).unwrap()
    }

    /// Writes the tensors anew.
    pub(crate) fn save(&self, dtype: Dtype) {
        let new = |(name, tensor): (&String, &'_ HostTensor)| {
            let values = tensor.values().to_vec();
            NewTensor::new(name, dtype, tensor.shape(), move |first, block: &mut [f32]| {
                block.copy_from_slice(&values[first..first + block.len()]);
                Ok(())
            })
        };
        write(&self.weights(), &BTreeMap::new(), self.tensors.iter().map(new).collect()).unwrap();
    }

    /// Changes config.json.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut Value)) {
        let path = self.model().join("config.json");
        let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }

    /// Gives every tensor the name that `rename` makes of its name.
    pub(crate) fn rename(&mut self, rename: impl Fn(&str) -> String) {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
    }

    #[track_caller]
    pub(crate) fn has_written_nothing(&self) {
        let left: Vec<_> = self.path().join("output").read_dir().unwrap().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}
