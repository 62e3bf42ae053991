//! What a measured step learns from.

use crate::work::{random_tensor, random_texts};
use qformer::config::Config;
use qformer::params::safetensors::Checkpoint;
use qformer::tensor::HostTensor;
use qformer::train::Batch;
use qformer::{Error, Result};
use std::path::Path;

/// Images with a caption each.
pub(super) struct Inputs {
    /// [B, N, W]
    pub(super) vision_output: HostTensor,
    pub(super) texts: Vec<Vec<u32>>,
}

impl Inputs {
    /// `count` random images of `image_tokens` tokens with captions of 9 to 16.
    pub(super) fn random(config: &Config, count: usize, image_tokens: usize) -> Self {
        let shape = [count, image_tokens, config.vision.width()];
        let texts = random_texts(count, config.qformer.vocab_size);
        Self { vision_output: random_tensor("vision_output", &shape), texts }
    }

    /// `vision_output` [B, N, W], and `input_ids` [B, T] where `attention_mask` [B, T] is 1.
    pub(super) fn read(file: &Path) -> Result<Self> {
        let tensors = Checkpoint::open(file)?;
        let tensor = |name: &str| {
            let info = tensors.get(name).ok_or_else(|| {
                Error::input(
                    file,
                    format!(
                        "there is no tensor {name}; a batch has vision_output, input_ids and attention_mask"
                    ),
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
            let what = format!(
                "input_ids have shape {ids:?}, attention_mask {mask:?}; both are to be [batch, tokens]"
            );
            return Err(Error::input(file, what));
        }
        let width = ids.shape()[1].max(1);
        let texts = ids.values().chunks(width).zip(mask.values().chunks(width)).map(|(ids, mask)| {
            ids.iter().zip(mask).filter(|(_, mask)| **mask == 1.0).map(|(&id, _)| id as u32).collect()
        });
        Ok(Self { vision_output, texts: texts.collect() })
    }

    /// To be learnt from.
    pub(super) fn batch(&self, config: &Config) -> Result<Batch> {
        let ids = (0..self.texts.len() as u32).collect();
        Batch::new(config, self.vision_output.clone(), self.texts.clone(), ids)
    }

    /// The features [N·W] of an image.
    pub(super) fn image(&self, index: usize) -> &[f32] {
        let size = self.vision_output.values().len() / self.texts.len();
        &self.vision_output.values()[index * size..(index + 1) * size]
    }
}
