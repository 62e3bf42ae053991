//! The frozen image encoder: EVA-CLIP's vision transformer, as BLIP-2 runs it (all blocks
//! but the last of the original, no head), up to but not including its last norm.

pub use super::vit::{Parameters, VisionBlock};

use super::vit::{CHANNELS, VisionPass};
use crate::config::{Config, VitConfig};
use crate::device::M;
use crate::error::{Error, Result};
use crate::memory::{DeviceTensor, Workspace};
use crate::ops::Backend;
use crate::ops::attention::check_heads;
use crate::params::safetensors::Checkpoint;
use crate::params::{NamedCheckpoint, Slot, TensorSource, Weights, part_names, reject_surplus};
use crate::tensor::HostTensor;
use std::path::Path;

/// Whether a checkpoint has an image encoder.
pub fn is_in(checkpoint: &NamedCheckpoint<'_>) -> bool {
    checkpoint.contains("vision_model.embeddings.class_embedding")
}

/// Refuses a checkpoint without an image encoder.
///
/// # Errors
/// Fails if it has none.
pub fn expect_in(checkpoint: &Checkpoint) -> Result<()> {
    if is_in(&NamedCheckpoint::new(checkpoint)?) {
        return Ok(());
    }
    let what = "has no image encoder (tensors vision_model.…), so it reads no images: LAVIS's .pth files and \
                the checkpoints of training on features leave it out; give the image encoder's output as \
                `features`, which qformer encode writes with the checkpoint that has it";
    Err(Error::input(checkpoint.path(), what).naming(&["features"]))
}

/// A frozen image encoder with its weights on device `B`.
///
/// ```
/// use qformer::{Cpu, HostTensor, VisionEncoder};
///
/// # fn main() -> qformer::Result<()> {
/// let encoder = VisionEncoder::load(Cpu::<f32>::new(), "tests/golden/retrieval/model")?;
/// let (side, tokens, width) =
///     (encoder.config().image_size, encoder.config().image_tokens(), encoder.config().hidden_size);
/// // One grey image; an `ImageProcessor` makes pixels of files.
/// let features = encoder.encode(&HostTensor::new(&[1, 3, side, side], vec![0.0; 3 * side * side])?)?;
/// assert_eq!(features.shape(), [1, tokens, width]);
/// # Ok(())
/// # }
/// ```
pub struct VisionEncoder<B: Backend = crate::Cpu> {
    device: B,
    config: VitConfig,
    weights: Weights<B, Parameters<Slot>>,
    workspace: Workspace<B>,
}

impl<B: Backend> VisionEncoder<B> {
    /// Reads the encoder of a model from its folder.
    ///
    /// # Errors
    /// Fails if a file is missing or malformed, naming every tensor that is missing, surplus or of
    /// the wrong shape, as [`VisionConfig::encoder`](crate::config::VisionConfig::encoder) does, if the heads of attention are too wide for the device, and if there is not enough
    /// memory.
    pub fn load(device: B, directory: impl AsRef<Path>) -> Result<Self> {
        let config = Config::load(directory.as_ref())?;
        let checkpoint = Checkpoint::open(directory.as_ref())?;
        Self::from_checkpoint(device, &config, &checkpoint, &mut |_, _| ())
    }

    /// The same from a checkpoint already open, telling `progress` the bytes placed so far and in all.
    ///
    /// # Errors
    /// As [`VisionEncoder::load`].
    pub fn from_checkpoint(
        device: B,
        config: &Config,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let vision = config.vision.encoder().map_err(|error| Error::input(checkpoint.path(), error))?;
        expect_in(checkpoint)?;
        let checkpoint = NamedCheckpoint::new(checkpoint)?;
        let specs = Parameters::spec(vision);
        reject_surplus(&checkpoint, &part_names(&specs), |name| {
            !name.starts_with("vision_model.") || name.starts_with("vision_model.post_layernorm.")
                // LAVIS's pair in place of a bias, and the keys' bias that is always zero.
                || name.ends_with(".self_attn.q_bias") || name.ends_with(".self_attn.v_bias")
        })?;
        Self::from_source(device, config, &checkpoint, progress)
    }

    /// The same with parameters from anywhere.
    ///
    /// # Errors
    /// Fails as [`Config::validate`], [`VisionConfig::encoder`](crate::config::VisionConfig::encoder) and the source
    /// do, if the heads of attention are too wide for the device,
    /// and if there is not enough memory.
    pub fn from_source(
        device: B,
        config: &Config,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        config.validate()?;
        let config = config.vision.encoder()?.clone();
        check_heads::<B>("the image encoder", config.head_dim())?;
        let weights = Weights::load(&device, &Parameters::spec(&config), source, progress)?;
        Ok(Self { device, config, weights, workspace: Workspace::default() })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// Tensors with values that are infinite or not a number, and how many.
    pub fn not_finite(&self) -> &[(String, usize)] {
        &self.weights.not_finite
    }

    /// Bytes that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// Takes the memory for so many `images` at a time before they come.
    ///
    /// # Errors
    /// Fails if there is not enough.
    pub fn reserve(&self, images: usize) -> Result<()> {
        let tokens = self.config.image_tokens();
        // Rows are counted in 32 bits.
        if images.checked_mul(tokens).is_none_or(|rows| u32::try_from(rows).is_err()) {
            return Err(Error::usage(format!(
                "{images} images of {tokens} tokens are more than are encoded at a time; use a smaller batch"
            )));
        }
        self.workspace.reserve(&self.device, &self.config, &VisionPass { images })
    }

    /// Bytes that images are encoded in: as many as the most at a time took, which are kept.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// Bytes that the output of so many images takes on the device.
    pub fn output_bytes(&self, images: usize) -> usize {
        images * self.config.image_tokens() * self.config.hidden_size * size_of::<B::Elem>()
    }

    /// The last block's output [B, N, W], before the last norm, of preprocessed images [B, 3, S, S].
    ///
    /// # Errors
    /// Fails if the images are not of this model's size, and if there is not enough memory.
    pub fn encode(&self, pixel_values: &HostTensor) -> Result<HostTensor> {
        self.encode_on_device(pixel_values)?.to_host(&self.device)
    }

    /// The same, left where it was computed, for a Q-Former on the same device.
    ///
    /// # Errors
    /// As [`VisionEncoder::encode`].
    pub fn encode_on_device(&self, pixel_values: &HostTensor) -> Result<DeviceTensor<B>> {
        let side = self.config.image_size;
        let images = match *pixel_values.shape() {
            [images, CHANNELS, height, width] if height == side && width == side => images,
            ref found => {
                return Err(Error::value(format!(
                    "images have shape {found:?}; this model reads [images, {CHANNELS}, {side}, {side}]"
                )));
            }
        };
        let shape = [images, self.config.image_tokens(), self.config.hidden_size];
        let mut output = DeviceTensor::zeros(&self.device, "the image encoder's output", &shape)?;
        if images > 0 {
            self.device.enter(|| self.pass(pixel_values.values(), images, output.view_mut()))?;
        }
        Ok(output)
    }

    fn pass(&self, pixels: &[f32], images: usize, output: M<'_, B>) -> Result<()> {
        let (b, parameters, pass) = (&self.device, self.weights.view(), VisionPass { images });
        // SAFETY: beside its own memory the pass reads the weights.
        unsafe {
            self.workspace.run(
                b,
                &self.config,
                pass.clone(),
                |acts| pass.write(b, &self.config, pixels, acts),
                |pass, acts| parameters.forward(b, &self.config, pass, acts),
                |acts| b.copy(acts.x[0].view(), output),
            )
        }
    }
}
