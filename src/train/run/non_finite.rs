//! What is left behind where a loss or a gradient is not finite.

use crate::error::{Error, Result};
use crate::params::safetensors::{Dtype, NewTensor, write};
use crate::train::{Batch, Losses};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Writes what step `step` was to learn from to a file in `folder`: `vision_output` [B, N, W], `input_ids` and
/// `attention_mask` [B, T], `image_ids` [B], and the examples' names in the metadata; returns its path.
pub(super) fn write_batch(
    folder: &Path,
    step: usize,
    batches: &[Batch],
    names: &[String],
) -> Result<PathBuf> {
    let path = folder.join(format!("non-finite-step-{step}.safetensors"));
    let images: usize = batches.iter().map(Batch::images).sum();
    let values = batches.iter().flat_map(|batch| batch.vision_output.values().iter().copied());
    let vision_output: Vec<f32> = values.collect();
    let texts: Vec<&Vec<u32>> = batches.iter().flat_map(|batch| &batch.texts).collect();
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    let padded = |of: fn(u32) -> f32| -> Vec<f32> {
        let row = |text: &&Vec<u32>| (0..longest).map(|i| text.get(i).map_or(0.0, |&id| of(id))).collect();
        texts.iter().flat_map(|text| -> Vec<f32> { row(text) }).collect()
    };
    let (input_ids, attention_mask) = (padded(|id| id as f32), padded(|_| 1.0));
    let image_ids: Vec<f32> =
        batches.iter().flat_map(|batch| batch.image_ids.iter().map(|&id| id as f32)).collect();
    let [_, tokens, width] = *batches[0].vision_output.shape() else { unreachable!("as Batch has it") };
    let new = |name: &str, shape: &[usize], values| NewTensor::from_slice(name, Dtype::F32, shape, values);
    let tensors = vec![
        new("vision_output", &[images, tokens, width], &vision_output[..]),
        new("input_ids", &[images, longest], &input_ids),
        new("attention_mask", &[images, longest], &attention_mask),
        new("image_ids", &[images], &image_ids),
    ];
    let names = BTreeMap::from([("names".to_owned(), serde_json::Value::from(names).to_string())]);
    write(&path, &names, tensors)?;
    Ok(path)
}

/// Tells of it.
pub(super) fn error(step: usize, losses: Losses, batch: &Path, saved: Option<&Path>) -> Error {
    let Losses { contrastive, matching, captioning, .. } = losses;
    let go_on = match saved {
        Some(folder) => format!("the last checkpoint is {}", folder.display()),
        None => "no checkpoint was written yet".to_owned(),
    };
    Error::value(format!(
        "step {step} is not finite (ITC {contrastive}, ITM {matching}, ITG {captioning}; or else the gradient); \
         its batch is in {}: look for values that are infinite or not a number, or lower --lr; {go_on}",
        batch.display()
    ))
}
