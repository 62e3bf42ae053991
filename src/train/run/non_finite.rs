//! What is left behind where a loss or a gradient is not finite.

use super::measures::Panel;
use super::objective::StepLoss;
use crate::error::{Error, Result};
use crate::params::safetensors::{NewTensor, write};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Writes what step `step` was to learn from to a file in `folder`: the tensors of its batches, and the examples'
/// names in the metadata; returns its path.
pub(super) fn write_batch(
    folder: &Path,
    step: usize,
    tensors: Vec<NewTensor<'_>>,
    names: &[String],
) -> Result<PathBuf> {
    let path = folder.join(format!("non-finite-step-{step}.safetensors"));
    let names = BTreeMap::from([("names".to_owned(), serde_json::Value::from(names).to_string())]);
    write(&path, &names, tensors)?;
    Ok(path)
}

/// Says that a loss or the gradient of step `step` is not finite.
pub(super) fn error(step: usize, found: &StepLoss, batch: &Path, saved: Option<&Path>) -> Error {
    let parts = found.measured.iter().filter_map(|(measure, value)| {
        let curve = measure.curve.as_ref().filter(|curve| curve.panel == Panel::Loss)?;
        Some(format!("{} {value}", curve.label))
    });
    let mut losses: Vec<String> = parts.collect();
    if losses.is_empty() {
        losses.push(format!("loss {}", found.loss));
    }
    let go_on = match saved {
        Some(folder) => format!("the last checkpoint is {}", folder.display()),
        None => "no checkpoint was written yet".to_owned(),
    };
    let what = format!(
        "step {step} is not finite ({}; or else the gradient); its batch is in {}: look for values that are infinite or \
         not a number, or lower `lr`; {go_on}",
        losses.join(", "),
        batch.display()
    );
    Error::value(what).naming(&["lr"])
}
