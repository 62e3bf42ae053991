//! Launches of `kernels/absorbed_attention.cu`.

use super::{AbsorbedAttention, AbsorbedAttentionForward, HEAD_WIDTH, TOKENS};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use crate::ops::attention::padded_width;
use half::bf16;

const THREADS: u32 = 256;
/// Queries of a block.
const QUERIES: u32 = 32;
/// Columns of the image in shared memory at a time, and tokens of a block of probabilities.
const COLUMNS: u32 = 64;

/// Twin in kernels/absorbed_attention.cu.
#[repr(C)]
struct AbsorbedAttentionArgs<'a> {
    q: In<'a, bf16>,
    image: In<'a, bf16>,
    key_weight: In<'a, bf16>,
    value_weight: In<'a, bf16>,
    value_bias: In<'a, bf16>,
    out: Out<'a, bf16>,
    width: u32,
    vector: u32,
    image_width: u32,
    image_vector: u32,
    queries: u32,
    tokens: u32,
    scale: f32,
    unused: u32,
}

arguments! {
    struct Absorbed32("absorbed_attention", "absorbed_attention_32", 128) { args: AbsorbedAttentionArgs<'a>, }
    struct Absorbed64("absorbed_attention", "absorbed_attention_64", 128) { args: AbsorbedAttentionArgs<'a>, }
    struct Absorbed96("absorbed_attention", "absorbed_attention_96", 128) { args: AbsorbedAttentionArgs<'a>, }
}

impl AbsorbedAttention for Cuda {
    fn absorbed_attention(&self, args: AbsorbedAttentionForward<'_, Self>) -> Result<()> {
        let [queries, tokens, head_width] = args.check();
        let AbsorbedAttentionForward {
            heads,
            scale,
            q,
            image,
            key_weight,
            value_weight,
            value_bias,
            images,
            out,
        } = args;
        assert!(tokens <= TOKENS, "{tokens} image tokens; the GPU's kernel has at most {TOKENS}");
        assert!(
            head_width <= HEAD_WIDTH,
            "heads of {head_width} columns; the GPU's kernel has at most {HEAD_WIDTH}"
        );
        let (queries, tokens) = (count(queries), count(tokens));
        let (width, image_width) = (count(head_width), count(image.cols()));
        let padded = padded_width(head_width);
        // Queries, a weight, what stands between two products, the image, and the probabilities.
        let elements = QUERIES * padded
            + (padded + QUERIES + tokens.next_multiple_of(8)) * COLUMNS
            + tokens.div_ceil(COLUMNS) * QUERIES * COLUMNS;
        let grid = Grid {
            blocks: [count(images), count(heads), queries.div_ceil(QUERIES)],
            threads: THREADS,
            shared_bytes: elements * size_of::<bf16>() as u32,
        };
        let (q, image, value_bias, out) = (In::of(q), In::of(image), In::of(value_bias), Out::of(out));
        let (key_weight, value_weight) = (In::of(key_weight), In::of(value_weight));
        let args = AbsorbedAttentionArgs {
            vector: vector_width(width, &[q.extent(), value_bias.extent(), out.extent()]),
            image_vector: vector_width(
                image_width,
                &[image.extent(), key_weight.extent(), value_weight.extent()],
            ),
            scale: scale as f32,
            unused: 0,
            q,
            image,
            key_weight,
            value_weight,
            value_bias,
            out,
            width,
            image_width,
            queries,
            tokens,
        };
        match padded {
            32 => self.launch(grid, Absorbed32 { args }),
            64 => self.launch(grid, Absorbed64 { args }),
            _ => self.launch(grid, Absorbed96 { args }),
        }
    }
}
