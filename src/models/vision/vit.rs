//! EVA-CLIP's pre-norm vision transformer.

use crate::config::VitConfig;
use crate::device::{M, W};
use crate::error::Result;
use crate::layers::linear::Fused;
use crate::layers::{LayerNorm, Linear};
use crate::memory::{Cursor, Pass};
use crate::ops::Backend;
use crate::ops::attention::{Attention, AttentionForward, Mask, SequenceSizes, Sequences};
use crate::ops::embedding::EmbeddingForward;
use crate::params::{Spec, Tree};
use crate::tensor::ViewMut;

/// Colour channels.
pub(super) const CHANNELS: usize = 3;

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

/// One block: x + attention(norm1(x)), then x + mlp(norm2(x)).
#[derive(Clone, Debug)]
pub struct VisionBlock<T> {
    /// [1, W]
    pub norm1: LayerNorm<T>,
    /// Queries, keys and values side by side [3·W, W]
    pub qkv: Linear<T>,
    /// [W, W]
    pub projection: Linear<T>,
    /// [1, W]
    pub norm2: LayerNorm<T>,
    /// [F, W]
    pub fc1: Linear<T>,
    /// [W, F]
    pub fc2: Linear<T>,
}

impl Parameters<Spec> {
    /// `vision_model.*` but for `post_layernorm`.
    pub fn spec(config: &VitConfig) -> Self {
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
                bias: Some(table("patch_embedding.bias", &[width], width)),
            },
            blocks: (0..config.num_hidden_layers).map(|i| VisionBlock::spec(config, i)).collect(),
        }
    }
}

impl VisionBlock<Spec> {
    fn spec(config: &VitConfig, index: usize) -> Self {
        let (width, inner, epsilon) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let name = |part: &str| format!("vision_model.encoder.layers.{index}.{part}");
        Self {
            norm1: LayerNorm::spec(&name("layer_norm1"), width, epsilon),
            qkv: Linear::spec(&name("self_attn.qkv"), 3 * width, width),
            projection: Linear::spec(&name("self_attn.projection"), width, width),
            norm2: LayerNorm::spec(&name("layer_norm2"), width, epsilon),
            fc1: Linear::spec(&name("mlp.fc1"), inner, width),
            fc2: Linear::spec(&name("mlp.fc2"), width, inner),
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

impl<T> Tree<T> for VisionBlock<T> {
    type With<U> = VisionBlock<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> VisionBlock<U> {
        VisionBlock {
            norm1: self.norm1.map(leaf),
            qkv: self.qkv.map(leaf),
            projection: self.projection.map(leaf),
            norm2: self.norm2.map(leaf),
            fc1: self.fc1.map(leaf),
            fc2: self.fc2.map(leaf),
        }
    }
}

/// What the encoder works in.
pub(super) struct VisionActs<'a, B: Backend> {
    /// Table of the images' sequences [1, words]
    sequences: ViewMut<'a, B, u32>,
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
    normed: M<'a, B>,
    /// [B·N, 3·W]
    qkv: M<'a, B>,
    /// [B·N, W]
    context: M<'a, B>,
    /// [B·N, F]
    inner: M<'a, B>,
}

impl<'a, B: Backend> VisionActs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, config: &VitConfig, sequences: &Sequences) -> Self {
        let (width, tokens, images) = (config.hidden_size, config.image_tokens(), sequences.as_slice().len());
        let (rows, patches) = (images * tokens, images * (tokens - 1));
        Self {
            sequences: cursor.take(1, sequences.words()),
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

/// The pass over so many images.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct VisionPass {
    pub(super) images: usize,
}

impl<B: Backend> Pass<B> for VisionPass {
    type Model = VitConfig;
    type Acts<'a> = VisionActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.images, "images")
    }

    fn carve<'a>(&self, config: &VitConfig, cursor: &mut Cursor<'a, B>) -> VisionActs<'a, B> {
        VisionActs::carve(cursor, config, &self.sequences(config))
    }
}

impl VisionPass {
    /// All tokens of an image see one another.
    fn sequences(&self, config: &VitConfig) -> Sequences {
        Sequences::uniform(self.images, config.image_tokens())
    }

    /// What the host knows of images [B, 3, S, S]: who sees whom, the patches, and where they and the class embedding
    /// go.
    pub(super) fn write<B: Backend>(
        &self,
        b: &B,
        config: &VitConfig,
        pixels: &[f32],
        acts: &mut VisionActs<'_, B>,
    ) -> Result<()> {
        let (tokens, patches) = (config.image_tokens() as u32, self.images * (config.image_tokens() - 1));
        self.sequences(config).place(b, acts.sequences.reborrow())?;
        b.write(&cut_patches(config, pixels), 0, acts.patches.reborrow())?;
        // Row 0 of `embedded` serves every image's first token, then the patches follow in order.
        let mut next = 0;
        let rows: Vec<u32> = (0..patches as u32 + self.images as u32)
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
}

/// Patches [B·(N − 1), 3·patch²] of images [B, 3, S, S], each patch channel by channel.
fn cut_patches(config: &VitConfig, pixels: &[f32]) -> Vec<f32> {
    let (side, patch, count) = (config.image_size, config.patch_size, config.patches_per_side());
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

impl<B: Backend> Parameters<W<'_, B>> {
    /// From what was written to `acts` to the last block's output in `acts.x[0]` [B·N, W].
    pub(super) fn forward(
        &self,
        b: &B,
        config: &VitConfig,
        pass: &VisionPass,
        acts: &mut VisionActs<'_, B>,
    ) -> Result<()> {
        self.embed(b, acts)?;
        let sizes = pass.sequences(config).sizes();
        self.blocks.iter().try_for_each(|block| block.forward(b, config, sizes, acts))
    }

    /// Class and patch embeddings with their positions, into `acts.x[0]`.
    fn embed(&self, b: &B, acts: &mut VisionActs<'_, B>) -> Result<()> {
        let (class, embedded) = acts.embedded.reborrow().split_rows(1);
        // The first token of the first image is the class embedding, row 0.
        let (ids, table) = (acts.rows.view().columns(0..1), self.class_embedding);
        b.embedding_forward(EmbeddingForward { ids, table, positions: None, y: class })?;
        self.patch_embedding.forward(b, acts.patches.view(), embedded)?;
        b.embedding_forward(EmbeddingForward {
            ids: acts.rows.view(),
            table: acts.embedded.view().into(),
            positions: Some((acts.places.view(), self.position_embedding.matrix())),
            y: acts.x[0].reborrow(),
        })
    }
}

impl<B: Backend> VisionBlock<W<'_, B>> {
    /// From `acts.x[0]` to `acts.x[0]`.
    fn forward(
        &self,
        b: &B,
        config: &VitConfig,
        sizes: SequenceSizes,
        acts: &mut VisionActs<'_, B>,
    ) -> Result<()> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let scale = 1.0 / (config.head_dim() as f64).sqrt();
        let sequences = sizes.placed_at(acts.sequences.view());
        let [x, half] = &mut acts.x;
        self.norm1.forward(b, x.view(), None, acts.normed.reborrow())?;
        self.qkv.forward(b, acts.normed.view(), acts.qkv.reborrow())?;
        let part = |i: usize| acts.qkv.view().columns(i * width..(i + 1) * width);
        b.attention_forward(
            Attention { sequences, heads, mask: Mask::None, scale, bias: None, dropout: None },
            AttentionForward {
                q: part(0),
                k: part(1),
                v: part(2),
                prefix: None,
                key_rows: None,
                out: acts.context.reborrow(),
                lse: None,
            },
        )?;
        let on_x = Fused { activation: None, residual: Some(x.view()), pre_activation: None };
        self.projection.fused_forward(b, acts.context.view(), on_x, half.reborrow())?;
        self.norm2.forward(b, half.view(), None, acts.normed.reborrow())?;
        let activated = Fused { activation: Some(config.hidden_act), residual: None, pre_activation: None };
        self.fc1.fused_forward(b, acts.normed.view(), activated, acts.inner.reborrow())?;
        let on_half = Fused { activation: None, residual: Some(half.view()), pre_activation: None };
        self.fc2.fused_forward(b, acts.inner.view(), on_half, x.reborrow())
    }
}
