//! A batch from a file.

use crate::passes::step::Inputs;
use qformer::params::safetensors::Checkpoint;
use qformer::tensor::HostTensor;
use qformer::{Error, Result};
use std::path::Path;

/// `vision_output` [B, N, W], and `input_ids` [B, T] where `attention_mask` [B, T] is 1.
pub(super) fn read(file: &Path) -> Result<Inputs> {
    let tensors = Checkpoint::open(file)?;
    let tensor = |name: &str| {
        let info = tensors.get(name).ok_or_else(|| {
            Error::input(
                file,
                format!("there is no tensor {name}; a batch has vision_output, input_ids and attention_mask"),
            )
        })?;
        let mut values = vec![0.0; info.elements()];
        tensors.read_f32(name, |first, part| values[first..first + part.len()].copy_from_slice(part))?;
        HostTensor::new(&info.shape, values)
    };
    let vision_output = tensor("vision_output")?;
    let (ids, mask) = (tensor("input_ids")?, tensor("attention_mask")?);
    if ids.shape() != mask.shape() || ids.shape().len() != 2 {
        let [ids, mask] = [ids.shape(), mask.shape()];
        let what =
            format!("input_ids have shape {ids:?}, attention_mask {mask:?}; both are to be [batch, tokens]");
        return Err(Error::input(file, what));
    }
    let width = ids.shape()[1].max(1);
    let texts = ids.values().chunks(width).zip(mask.values().chunks(width)).map(|(ids, mask)| {
        ids.iter().zip(mask).filter(|(_, mask)| **mask == 1.0).map(|(&id, _)| id as u32).collect()
    });
    Ok(Inputs { vision_output, texts: texts.collect() })
}
