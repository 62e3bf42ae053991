//! The frozen image encoder: EVA-CLIP's pre-norm vision transformer, as BLIP-2 runs it (all blocks
//! but the last of the original, no head), up to but not including its last norm.

pub use super::block::VisionBlock;

use crate::arena::Cursor;
use crate::config::{Config, VisionConfig};
use crate::device::{M, V};
use crate::error::{Error, Result};
use crate::layers::Linear;
use crate::ops::Backend;
use crate::ops::attention::{Sequences, check_heads};
use crate::ops::embedding::EmbeddingForward;
use crate::params::safetensors::Checkpoint;
use crate::params::{NamedCheckpoint, Slot, Spec, TensorSource, Tree, Weights, part_names, reject_surplus};
use crate::tensor::{HostTensor, ViewMut};
use crate::workspace::{Lease, Workspace};
use std::path::Path;

/// Colour channels.
const CHANNELS: usize = 3;

/// The encoder's parameters.
#[derive(Clone, Debug)]
pub struct Parameters<T> {
    /// The token for the whole image [1, W]
    pub class_embedding: T,
    /// [N, W]
    pub position_embedding: T,
    /// The convolution as a matrix [W, 3·patch²]
    pub patch_embedding: Linear<T>,
    /// In order.
    pub blocks: Vec<VisionBlock<T>>,
}

impl Parameters<Spec> {
    /// `vision_model.*` but for `post_layernorm`.
    pub fn spec(config: &VisionConfig) -> Self {
        let (width, patch) = (config.hidden_size, config.patch_size);
        let table = |name: &str, shape: &[usize], cols| {
            Spec::table(format!("vision_model.embeddings.{name}"), shape, cols)
        };
        let patch_shape = [width, CHANNELS, patch, patch];
        Self {
            class_embedding: table("class_embedding", &[1, 1, width], width),
            position_embedding: table("position_embedding", &[1, config.image_tokens(), width], width),
            patch_embedding: Linear {
                weight: table("patch_embedding.weight", &patch_shape, CHANNELS * patch * patch)
                    .read_by_gemm(),
                bias: table("patch_embedding.bias", &[width], width),
            },
            blocks: (0..config.num_hidden_layers).map(|i| VisionBlock::spec(config, i)).collect(),
        }
    }
}

impl<T> Tree<T> for Parameters<T> {
    type With<U> = Parameters<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Parameters<U> {
        Parameters {
            class_embedding: leaf(&self.class_embedding),
            position_embedding: leaf(&self.position_embedding),
            patch_embedding: self.patch_embedding.map(leaf),
            blocks: self.blocks.iter().map(|b| b.map(leaf)).collect(),
        }
    }
}

/// What the encoder works in.
pub(super) struct VisionActs<'a, B: Backend> {
    /// [B·(N − 1), 3·patch²]
    patches: M<'a, B>,
    /// The class embedding, then all patches' embeddings [1 + B·(N − 1), W]
    embedded: M<'a, B>,
    /// [1, B·N]: rows of `embedded`
    rows: ViewMut<'a, B, u32>,
    /// [1, B·N]: rows of the position table
    places: ViewMut<'a, B, u32>,
    /// The residual stream [B·N, W]: before and after a half of a block, in turns
    pub(super) x: [M<'a, B>; 2],
    /// [B·N, W]
    pub(super) normed: M<'a, B>,
    /// [B·N, 3·W]
    pub(super) qkv: M<'a, B>,
    /// [B·N, W]
    pub(super) context: M<'a, B>,
    /// [B·N, F]
    pub(super) inner: M<'a, B>,
}

impl<'a, B: Backend> VisionActs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, config: &VisionConfig, images: usize) -> Self {
        let (width, tokens) = (config.hidden_size, config.image_tokens());
        let (rows, patches) = (images * tokens, images * (tokens - 1));
        Self {
            patches: cursor.take(patches, CHANNELS * config.patch_size * config.patch_size),
            embedded: cursor.take(1 + patches, width),
            rows: cursor.take(1, rows),
            places: cursor.take(1, rows),
            x: [cursor.take(rows, width), cursor.take(rows, width)],
            normed: cursor.take(rows, width),
            qkv: cursor.take(rows, 3 * width),
            context: cursor.take(rows, width),
            inner: cursor.take(rows, config.intermediate_size),
        }
    }
}

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
                --features, which qformer encode writes with the checkpoint that has it";
    Err(Error::input(checkpoint.path(), what))
}

/// A frozen image encoder with its weights on device `B`.
pub struct VisionEncoder<B: Backend = crate::Cpu> {
    device: B,
    config: VisionConfig,
    weights: Weights<B, Parameters<Slot>>,
    workspace: Workspace<B>,
}

impl<B: Backend> VisionEncoder<B> {
    /// Reads the encoder of a model from its folder.
    ///
    /// # Errors
    /// Fails if a file is missing or malformed, naming every tensor that is missing, surplus or of
    /// the wrong shape, if the heads of attention are too wide for the device, and if there is not enough
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
        expect_in(checkpoint)?;
        let checkpoint = NamedCheckpoint::new(checkpoint)?;
        let specs = Parameters::spec(&config.vision);
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
    /// Fails as [`Config::validate`] and the source do, if the heads of attention are too wide for the device,
    /// and if there is not enough memory.
    pub fn from_source(
        device: B,
        config: &Config,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        config.validate()?;
        check_heads::<B>("the image encoder", config.vision.head_dim())?;
        let weights = Weights::load(&device, &Parameters::spec(&config.vision), source, progress)?;
        Ok(Self { device, config: config.vision.clone(), weights, workspace: Workspace::default() })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &VisionConfig {
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
        self.lease(&Sequences::uniform(images, tokens), images).map(drop)
    }

    /// Bytes that images are encoded in: as many as the most at a time took, which are kept.
    pub fn workspace_bytes(&self) -> usize {
        self.workspace.bytes()
    }

    /// The last block's output [B, N, W], before the last norm, of preprocessed images [B, 3, S, S].
    ///
    /// # Errors
    /// Fails if the images are not of this model's size, and if there is not enough memory.
    pub fn encode(&self, pixel_values: &HostTensor) -> Result<HostTensor> {
        let side = self.config.image_size;
        let images = match *pixel_values.shape() {
            [images, CHANNELS, height, width] if height == side && width == side => images,
            ref found => {
                return Err(Error::value(format!(
                    "images have shape {found:?}; this model reads [images, {CHANNELS}, {side}, {side}]"
                )));
            }
        };
        let (tokens, width) = (self.config.image_tokens(), self.config.hidden_size);
        if images == 0 {
            return HostTensor::new(&[0, tokens, width], Vec::new());
        }
        let values = self.device.enter(|| self.pass(pixel_values.values(), images))?;
        HostTensor::new(&[images, tokens, width], values)
    }

    /// Replayed for as many images.
    fn pass(&self, pixels: &[f32], images: usize) -> Result<Vec<f32>> {
        let (b, parameters) = (&self.device, self.weights.view());
        let sequences = Sequences::uniform(images, self.config.image_tokens());
        let mut lease = self.lease(&sequences, images)?;
        let (mut cursor, replay) = lease.replayed("image encoder", vec![images]);
        let placed = sequences.place(b, cursor.take(1, sequences.words()))?;
        let mut acts = VisionActs::carve(&mut cursor, &self.config, images);
        self.write(pixels, images, &mut acts)?;
        b.replay(replay, || {
            self.embed(&parameters, &mut acts)?;
            parameters.blocks.iter().try_for_each(|block| block.forward(b, &self.config, placed, &mut acts))
        })?;
        b.read(acts.x[0].view())
    }

    fn lease(&self, sequences: &Sequences, images: usize) -> Result<Lease<'_, B>> {
        self.workspace.lease(&self.device, (images, "images"), |c| {
            c.take::<u32>(1, sequences.words());
            VisionActs::carve(c, &self.config, images);
        })
    }

    /// The patches, and where they and the class embedding go.
    fn write(&self, pixels: &[f32], images: usize, acts: &mut VisionActs<'_, B>) -> Result<()> {
        let b = &self.device;
        let (tokens, patches) =
            (self.config.image_tokens() as u32, images * (self.config.image_tokens() - 1));
        b.write(&self.cut_patches(pixels), 0, acts.patches.reborrow())?;
        // Row 0 of `embedded` serves every image's first token, then the patches follow in order.
        let mut next = 0;
        let rows: Vec<u32> = (0..patches as u32 + images as u32)
            .map(|row| {
                if row % tokens == 0 {
                    return 0;
                }
                next += 1;
                next
            })
            .collect();
        let places: Vec<u32> = (0..rows.len() as u32).map(|row| row % tokens).collect();
        b.write_indices(&rows, acts.rows.reborrow())?;
        b.write_indices(&places, acts.places.reborrow())
    }

    /// Class and patch embeddings with their positions, into `acts.x[0]`.
    fn embed(&self, parameters: &Parameters<V<'_, B>>, acts: &mut VisionActs<'_, B>) -> Result<()> {
        let b = &self.device;
        let (class, embedded) = acts.embedded.reborrow().split_rows(1);
        // The first token of the first image is the class embedding, row 0.
        let (ids, table) = (acts.rows.view().columns(0..1), parameters.class_embedding);
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: class })?;
        parameters.patch_embedding.forward(b, acts.patches.view(), embedded)?;
        b.embedding_forward(EmbeddingForward {
            ids: acts.rows.view(),
            table: acts.embedded.view(),
            positions: Some((acts.places.view(), parameters.position_embedding)),
            y: acts.x[0].reborrow(),
        })
    }

    /// Patches [B·(N − 1), 3·patch²] of images [B, 3, S, S], each patch channel by channel.
    fn cut_patches(&self, pixels: &[f32]) -> Vec<f32> {
        let (side, patch, count) =
            (self.config.image_size, self.config.patch_size, self.config.patches_per_side());
        let mut patches = Vec::with_capacity(pixels.len());
        for image in pixels.chunks_exact(CHANNELS * side * side) {
            for (top, left) in (0..count).flat_map(|i| (0..count).map(move |j| (i * patch, j * patch))) {
                for channel in image.chunks_exact(side * side) {
                    for row in top..top + patch {
                        patches.extend_from_slice(&channel[row * side + left..][..patch]);
                    }
                }
            }
        }
        patches
    }
}
