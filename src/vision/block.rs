//! A block of the image encoder.

use super::encoder::VisionActs;
use crate::config::VisionConfig;
use crate::device::V;
use crate::error::Result;
use crate::layers::linear::Fused;
use crate::layers::{LayerNorm, Linear};
use crate::ops::Backend;
use crate::ops::attention::{Attention, AttentionForward, Mask, PlacedSequences};
use crate::params::{Spec, Tree};

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

impl VisionBlock<Spec> {
    pub(super) fn spec(config: &VisionConfig, index: usize) -> Self {
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

impl<B: Backend> VisionBlock<V<'_, B>> {
    /// From `acts.x[0]` to `acts.x[0]`.
    pub(super) fn forward(
        &self,
        b: &B,
        config: &VisionConfig,
        sequences: PlacedSequences<'_, B>,
        acts: &mut VisionActs<'_, B>,
    ) -> Result<()> {
        let (width, heads) = (config.hidden_size, config.num_attention_heads);
        let scale = 1.0 / (config.head_dim() as f64).sqrt();
        let [x, half] = &mut acts.x;
        self.norm1.forward(b, x.view(), None, acts.normed.reborrow())?;
        self.qkv.forward(b, acts.normed.view(), acts.qkv.reborrow())?;
        let part = |i: usize| acts.qkv.view().columns(i * width..(i + 1) * width);
        b.attention_forward(
            Attention { sequences, heads, mask: Mask::None, scale, dropout: None },
            AttentionForward {
                q: part(0),
                k: part(1),
                v: part(2),
                prefix: None,
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
