//! Cross-attention that applies the projections of keys and values to the queries' side, so that
//! keys and values never exist: q·(x·Wₖᵀ)ᵀ = (q·Wₖ)·xᵀ, and p·(x·Wᵥᵀ) = (p·x)·Wᵥᵀ.
//!
//! Exact, and cheaper where there are fewer scores' rows (heads·Q) than channels. The bias of the
//! keys adds the same to all scores of a row, which the softmax cancels; that of the values is
//! added whole, because a row of p sums to one. For inference alone: training shares keys and
//! values between passes, and its gradient is that of `attention`.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::config::Config;
use crate::device::{Device, M, V};
use crate::error::Result;
use crate::tensor::Packing;

/// Operands of [`AbsorbedAttention::absorbed_attention`].
pub struct AbsorbedAttentionForward<'a, D: Device> {
    /// Heads, side by side in the columns of q.
    pub heads: usize,
    /// Factor of the scores, commonly 1/√(head width).
    pub scale: f64,
    /// [images·Q, D]
    pub q: V<'a, D>,
    /// [images·N, W]
    pub image: V<'a, D>,
    /// Wₖ [D, W]
    pub key_weight: V<'a, D>,
    /// Wᵥ [D, W]
    pub value_weight: V<'a, D>,
    /// bᵥ [1, D]
    pub value_bias: V<'a, D>,
    /// How many images.
    pub images: usize,
    /// [images·Q, D]
    pub out: M<'a, D>,
}

impl<D: Device> AbsorbedAttentionForward<'_, D> {
    /// Q, N and the width of a head; checks the shapes on the way.
    fn check(&self) -> [usize; 3] {
        let Self { heads, images, q, image, key_weight, value_weight, value_bias, out, .. } = self;
        let (hidden, width) = (q.cols(), image.cols());
        assert!(
            q.rows().is_multiple_of(*images)
                && image.rows().is_multiple_of(*images)
                && hidden.is_multiple_of(*heads)
        );
        assert_eq!((key_weight.rows(), key_weight.cols()), (hidden, width), "key_weight [D, W]");
        assert_eq!(value_weight.shape(), key_weight.shape(), "value_weight [D, W]");
        assert_eq!((value_bias.rows(), value_bias.cols()), (1, hidden), "value_bias [1, D]");
        assert_eq!(out.shape(), q.shape());
        [q.rows() / images, image.rows() / images, hidden / heads]
    }
}

/// Cross-attention without keys and values.
pub trait AbsorbedAttention: Device {
    /// out = softmax(scale·q·(x·Wₖᵀ)ᵀ)·(x·Wᵥᵀ) + bᵥ, head by head
    fn absorbed_attention(&self, args: AbsorbedAttentionForward<'_, Self>) -> Result<()>;
}

/// Image tokens whose scores the GPU's kernel can hold.
const TOKENS: usize = 320;
/// Columns of a head that it holds.
const HEAD_WIDTH: usize = 96;

/// Sizes of one cross-attention.
#[derive(Clone, Copy, Debug)]
pub struct CrossSizes {
    /// H
    pub heads: usize,
    /// Q, of all query sets that read one image
    pub queries: usize,
    /// D
    pub hidden: usize,
    /// N
    pub image_tokens: usize,
    /// W
    pub image_width: usize,
}

impl CrossSizes {
    /// Those of a model's image pass.
    pub fn of(config: &Config) -> Self {
        Self {
            heads: config.qformer.num_attention_heads,
            queries: config.num_query_tokens,
            hidden: config.qformer.hidden_size,
            image_tokens: config.image_tokens(),
            image_width: config.vision.width(),
        }
    }

    /// Whether absorbing costs fewer operations than projecting keys and values, and the weights can be read
    /// as they are packed. Rows are what the GPU reads, whose kernel holds heads of so many columns and the scores of so many
    /// image tokens only; panels are made for `gemm` alone.
    pub fn absorbs(self, packing: Packing) -> bool {
        let Self { heads, queries, hidden, image_tokens, image_width } = self;
        let absorbed = 2 * queries * image_width * (hidden + heads * image_tokens);
        let projected = 2 * image_tokens * hidden * (image_width + queries);
        let readable = matches!(packing, Packing::Rows { .. });
        let held = image_tokens <= TOKENS && hidden / heads <= HEAD_WIDTH;
        absorbed < projected && readable && held
    }
}
