//! The losses of a run, step by step: `metrics.jsonl`.

use super::measures::{Measure, Measured};
use crate::error::{Error, Result};
use crate::input;
use crate::output::{counted, path_aside, write_atomically};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Name of the file.
pub(super) const FILE_NAME: &str = "metrics.jsonl";

/// Longest line of the file that is read, in bytes.
const LINE_BYTES: u64 = 1 << 20;
/// What the name of a file begins with that had lines which cannot be read.
const DAMAGED: &str = "damaged-";

/// What is recorded of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Record {
    /// Counted from 1.
    pub step: usize,
    /// The loss that was differentiated.
    pub loss: f64,
    /// What the objective measured besides.
    #[serde(flatten)]
    pub measured: Measured,
    /// Before it was clipped.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
}

impl Record {
    /// What the line `json` of the file says, if it is one about a step of an objective with these measures.
    fn from_json(json: &Value, measures: &'static [Measure]) -> Option<Self> {
        let number = |name: &str| json[name].as_f64();
        let values = measures.iter().map(|measure| number(measure.name)).collect::<Option<Vec<_>>>()?;
        Some(Self {
            step: json["step"].as_u64()?.try_into().ok()?,
            loss: number("loss")?,
            measured: Measured::new(measures, values),
            grad_norm: number("grad_norm")?,
            lr: number("lr")?,
        })
    }
}

/// A line of the file about a step.
#[derive(Serialize)]
pub(super) struct Line<'a> {
    pub(super) event: &'static str,
    pub(super) epoch: u64,
    pub(super) samples_seen: usize,
    #[serde(flatten)]
    pub(super) record: &'a Record,
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
    /// Opens the file at `path` of a run whose objective has these measures, and that goes on after step `saved`, or
    /// that begins. Of a file that is there, what was written later goes: those steps are done again. Where lines are
    /// damaged, `warn` is told by what name the file stays as it was.
    ///
    /// # Errors
    /// Fails if the run begins though the file tells of a checkpoint, if it is not a file of the run's own, and if it
    /// cannot be read or written.
    pub(super) fn open(
        path: PathBuf,
        measures: &'static [Measure],
        saved: Option<usize>,
        warn: &mut dyn FnMut(String),
    ) -> Result<Self> {
        let history = if input::exists(&path) { rewind(&path, measures, saved, warn)? } else { Vec::new() };
        let file = OpenOptions::new().append(true).create(true).open(&path);
        let file = file.map_err(|error| Error::io(&path, "write", error))?;
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

/// Removes from the file the lines after step `saved`, all if there is none, and what is damaged; returns what the
/// others say of steps.
fn rewind(
    path: &Path,
    measures: &'static [Measure],
    saved: Option<usize>,
    warn: &mut dyn FnMut(String),
) -> Result<Vec<Record>> {
    let cannot_read = |error| Error::io(path, "read", error);
    let (file, length) = input::open_own(path)?;
    let mut lines = BufReader::new(file.take(length));
    let mut history = Vec::new();
    let (mut kept, mut damaged): (Vec<Range<u64>>, usize) = (Vec::new(), 0);
    let (mut begin, mut line) = (0, Vec::new());
    while begin < length {
        line.clear();
        let read = lines.by_ref().take(LINE_BYTES).read_until(b'\n', &mut line).map_err(cannot_read)?;
        let end = begin + read as u64;
        if read == 0 || (end == length && !line.ends_with(b"\n")) {
            // The last line of a run that was killed.
            break;
        }
        match serde_json::from_slice::<Value>(&line) {
            Err(_) => damaged += 1,
            Ok(json) => {
                if saved.is_none() && json["event"] == "checkpoint" {
                    return Err(Error::input(path, checkpoints_lost(&json)));
                }
                if saved.is_some_and(|saved| json["step"].as_u64().is_none_or(|step| step <= saved as u64)) {
                    if json["event"] == "train_step" {
                        history.extend(Record::from_json(&json, measures));
                    }
                    match kept.last_mut() {
                        Some(last) if last.end == begin => last.end = end,
                        _ => kept.push(begin..end),
                    }
                }
            }
        }
        begin = end;
    }
    if damaged > 0 {
        let aside = path_aside(path, DAMAGED);
        let put_aside = fs::hard_link(path, &aside).or_else(|_| fs::copy(path, &aside).map(drop));
        put_aside.map_err(|error| Error::io(&aside, "write", error))?;
        let (damaged, aside) = (counted(damaged, "line"), aside.file_name().unwrap_or_default().display());
        warn(format!("{}: left out {damaged} that cannot be read; {aside} is as it was", path.display()));
    }
    if kept.iter().map(|range| range.end - range.start).sum::<u64>() != length {
        let mut file = lines.into_inner().into_inner();
        write_atomically(path, |new| {
            kept.into_iter().try_for_each(|Range { start, end }| {
                file.seek(SeekFrom::Start(start)).map_err(cannot_read)?;
                let copied = std::io::copy(&mut (&file).take(end - start), new);
                copied.map(drop).map_err(|error| Error::io(path, "write", error))
            })
        })?;
    }
    Ok(history)
}

fn checkpoints_lost(event: &Value) -> String {
    format!(
        "tells of the checkpoint after step {}, but the run's checkpoints are gone; put them back, or begin another run in \
         another folder",
        event["step"]
    )
}
