//! Which image encoder it is.

use super::encoder::{Parameters, expect_in};
use super::image::ImageProcessor;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::params::safetensors::Checkpoint;
use crate::params::{NamedCheckpoint, Spec, TensorSource, Tree};
use bytemuck::cast_slice;

/// A checksum of all that decides what the encoder in `checkpoint` makes of an image: its
/// configuration, its weights (whatever dtype and names they are stored with) and the image processor.
/// `progress` is told the weights read so far and in all, in bytes.
///
/// # Errors
/// Fails if the model has no encoder that is built here, if a tensor is missing, has another shape, or cannot be read.
pub fn identity(
    config: &Config,
    checkpoint: &Checkpoint,
    processor: &ImageProcessor,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<String> {
    let vision = config.vision.encoder().map_err(|error| Error::input(checkpoint.path(), error))?;
    expect_in(checkpoint)?;
    let source = NamedCheckpoint::new(checkpoint)?;
    let mut specs: Vec<Spec> = Vec::new();
    Parameters::spec(vision).map(&mut |spec: &Spec| specs.push(spec.clone()));
    let parts: Vec<_> = specs.iter().flat_map(|spec| &spec.parts).collect();
    source.check(&parts)?;
    let total = 4 * parts.iter().map(|part| part.len()).sum::<usize>();
    let mut done = 0;
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(config.to_json()["vision_config"].to_string().as_bytes());
    hasher.update(processor.to_json().to_string().as_bytes());
    for part in parts {
        // Biases kept in two tensors do not come in order.
        let mut values = vec![0.0_f32; part.len()];
        source.read(part, &mut |first, block| values[first..first + block.len()].copy_from_slice(block))?;
        hasher.update(cast_slice(&values));
        done += 4 * values.len();
        progress(done, total);
    }
    Ok(format!("crc32:{:08x}", hasher.finalize()))
}
