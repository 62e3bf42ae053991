//! What a run found out, step by step: `metrics.jsonl`.

use super::Losses;
use crate::error::{Error, Result};
use crate::output::write_atomically;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Name of the file.
pub(super) const FILE_NAME: &str = "metrics.jsonl";

/// What a step found out.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counted from 1.
    pub step: usize,
    /// The weighted sum of the three.
    pub loss: f64,
    /// ITC
    pub loss_itc: f64,
    /// ITM
    pub loss_itm: f64,
    /// ITG
    pub loss_lm: f64,
    /// Share of pairs that ITM tells right.
    pub itm_accuracy: f64,
    /// Share of images and texts whose most similar partner is theirs.
    pub itc_recall1: f64,
    /// What similarities were divided by.
    pub temp: f64,
    /// Before it was clipped.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
}

impl Record {
    pub(super) fn new(step: usize, losses: Losses, temp: f64, grad_norm: f64, lr: f64) -> Self {
        let [of_images, of_texts] = losses.recall;
        Self {
            step,
            loss: losses.total,
            loss_itc: losses.contrastive,
            loss_itm: losses.matching,
            loss_lm: losses.captioning,
            itm_accuracy: losses.matching_accuracy,
            itc_recall1: (of_images + of_texts) / 2.0,
            temp,
            grad_norm,
            lr,
        }
    }
}

/// A line of the file about a step.
#[derive(Serialize)]
pub(super) struct Line {
    pub(super) event: &'static str,
    pub(super) epoch: u64,
    pub(super) samples_seen: usize,
    #[serde(flatten)]
    pub(super) record: Record,
    pub(super) samples_per_second: f64,
    pub(super) data_time_s: f64,
    pub(super) step_time_s: f64,
    /// Of the device's memory, as far as it is the run's.
    pub(super) mem_peak_gib: f64,
    /// Seconds since 1970.
    pub(super) wall_time: f64,
}

/// The file, open for more lines.
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
    /// Of all steps so far.
    pub(super) history: Vec<Record>,
}

impl Metrics {
    /// Opens the file at `path` of a run that goes on after step `saved`, or that begins. Of a file that is
    /// there, what was written later goes: those steps are done again.
    pub(super) fn open(path: PathBuf, saved: Option<usize>) -> Result<Self> {
        let cannot_write = |error| Error::io(&path, "write", error);
        let history = match saved {
            Some(step) if path.exists() => rewind(&path, step)?,
            _ => {
                File::create(&path).map_err(cannot_write)?;
                Vec::new()
            }
        };
        let file = OpenOptions::new().append(true).open(&path).map_err(cannot_write)?;
        Ok(Self { path, file, history })
    }

    /// Adds a line; what was written is with the operating system when this returns.
    pub(super) fn write(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).expect("plain data");
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|error| Error::io(&self.path, "write", error))
    }

    /// Makes the lines outlast a loss of power.
    pub(super) fn synchronise(&self) -> Result<()> {
        self.file.sync_data().map_err(|error| Error::io(&self.path, "write", error))
    }
}

/// Removes from the file the lines after step `step`, and a last one that is torn; returns what the others
/// say of steps.
fn rewind(path: &Path, step: usize) -> Result<Vec<Record>> {
    let text = fs::read(path).map_err(|error| Error::io(path, "read", error))?;
    let mut history = Vec::new();
    let mut kept = Vec::new();
    for line in text.split_inclusive(|&byte| byte == b'\n') {
        let Ok(json) = serde_json::from_slice::<Value>(line) else { continue };
        let is_later = json["step"].as_u64().is_some_and(|of| of > step as u64);
        if is_later || !line.ends_with(b"\n") {
            continue;
        }
        if json["event"] == "train_step" {
            history.extend(serde_json::from_value::<Record>(json));
        }
        kept.extend_from_slice(line);
    }
    if kept != text {
        write_atomically(path, |file| {
            file.write_all(&kept).map_err(|error| Error::io(path, "write", error))
        })?;
    }
    Ok(history)
}
