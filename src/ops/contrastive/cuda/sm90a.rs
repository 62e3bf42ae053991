//! Launches of `kernels/contrastive_sm90a.cu` and `kernels/contrastive_backward_sm90a.cu`.

use super::{BatchArgs, ContrastiveBackwardArgs, KNOWN_SIZES};
use crate::device::Cuda;
use crate::device::cuda::{Extent, Grid, In, Out, TensorMap, arguments, vector_width};
use crate::error::Result;
use crate::ops::contrastive::{ROWS_OF_DENSE_BLOCK, TEXTS_OF_BLOCK};

/// Rows of a box of queries: a step's.
const STEP_ROWS: u32 = 128;
/// Columns of a box.
const DEPTH: u32 = 64;
/// The widest features whose texts have room in shared memory.
const WIDEST: usize = 256;
/// Stages of the ring: two steps of the widest.
const STAGES: u32 = 8;

/// Threads of a block: a warpgroup that copies and two that compute.
const THREADS: u32 = 3 * 128;

/// Whether these kernels are for a GPU.
pub(super) fn is_for(capability: (u32, u32)) -> bool {
    capability == (9, 0)
}

/// The forward pass's kernel for images of so many queries.
#[derive(Debug, PartialEq)]
pub(super) struct Forward {
    queries: usize,
    kernel: &'static str,
}

const FORWARD: [Forward; 4] = [
    Forward { queries: 8, kernel: "contrastive_forward_sm90a_8" },
    Forward { queries: 16, kernel: "contrastive_forward_sm90a_16" },
    Forward { queries: 32, kernel: "contrastive_forward_sm90a_32" },
    Forward { queries: 64, kernel: "contrastive_forward_sm90a_64" },
];

impl Forward {
    /// The kernel for features of this size, [Q, E], that lie there, if the GPU has one.
    pub(super) fn choose(
        [queries, width]: [usize; 2],
        features: [Extent; 2],
        capability: (u32, u32),
    ) -> Option<&'static Self> {
        // The length of the rows does not matter: nothing beyond them is read.
        let suits = is_for(capability) && width <= WIDEST && vector_width(0, &features) > 1;
        FORWARD.iter().find(|forward| suits && forward.queries == queries)
    }

    /// Winners, and what each block found out about its part of each row and column.
    pub(super) fn launch(
        &self,
        gpu: &Cuda,
        batch: BatchArgs<'_>,
        key: In<'_, u32>,
        site: u32,
        winner: Out<'_, u8>,
        workspace: Out<'_, u32>,
    ) -> Result<()> {
        const TEXTS: u32 = TEXTS_OF_BLOCK as u32;
        // Twin of `Shared` in kernels/contrastive_sm90a.cu: texts, the ring, two periods' parts of 32 images by
        // 8 warps, and barriers: two a stage, and the texts'.
        const ROW: u32 = 2 * DEPTH;
        const PART: u32 = 32;
        let panels = TEXTS * ROW * (WIDEST as u32 / DEPTH);
        let shared_bytes = panels + STAGES * STEP_ROWS * ROW + 2 * 32 * 8 * PART + (2 * STAGES + 1) * 8;
        let blocks = [batch.texts_count.div_ceil(TEXTS), batch.images.div_ceil(batch.images_of_block), 1];
        let rows = batch.images * batch.count;
        let queries = TensorMap::new(batch.queries, [rows, batch.width], STEP_ROWS)?;
        let texts = TensorMap::new(batch.texts, [batch.texts_count, batch.width], TEXTS)?;
        let grid = Grid { blocks, threads: THREADS, shared_bytes };
        let args =
            ContrastiveForwardSm90aArgs { queries, texts, batch, key, winner, workspace, site, unused: 0 };
        gpu.launch_variant(self.kernel, grid, args)
    }
}

/// Gradients, the texts' in parts, by so many blocks.
pub(super) fn backward(gpu: &Cuda, blocks: u32, gradients: ContrastiveBackwardArgs<'_>) -> Result<()> {
    // Twin of `Shared` in kernels/contrastive_backward_sm90a.cu: the block's rows, four stages of 64 of the other
    // side's, and barriers: two a stage, and the block's rows'.
    const STAGE_ROWS: u32 = 64;
    const STAGES: u32 = 4;
    const ROW: u32 = 2 * KNOWN_SIZES[1] as u32;
    let shared_bytes = (ROWS_OF_DENSE_BLOCK as u32 + STAGES * STAGE_ROWS) * ROW + (2 * STAGES + 1) * 8;
    let batch = gradients.batch;
    let queries = TensorMap::new(batch.queries, [batch.images * batch.count, batch.width], STAGE_ROWS)?;
    let texts = TensorMap::new(batch.texts, [batch.texts_count, batch.width], STAGE_ROWS)?;
    let grid = Grid { blocks: [blocks, 1, 1], threads: THREADS, shared_bytes };
    gpu.launch(grid, ContrastiveBackwardSm90aArgs { queries, texts, gradients })
}

arguments! {
    struct ContrastiveBackwardSm90aArgs("contrastive_backward_sm90a", "contrastive_backward_sm90a", 512) {
        /// [images·Q, E]
        queries: TensorMap<'a>,
        /// [texts, E]
        texts: TensorMap<'a>,
        gradients: ContrastiveBackwardArgs<'a>,
    }

    struct ContrastiveForwardSm90aArgs("contrastive_sm90a", "contrastive_forward_sm90a_32", 448) {
        /// [images·Q, E]
        queries: TensorMap<'a>,
        /// [texts, E]
        texts: TensorMap<'a>,
        batch: BatchArgs<'a>,
        /// [1, 2]
        key: In<'a, u32>,
        /// [images, texts]
        winner: Out<'a, u8>,
        workspace: Out<'a, u32>,
        site: u32,
        unused: u32,
    }
}
