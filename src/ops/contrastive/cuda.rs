//! Launches of `kernels/contrastive.cu`, for every GPU, and of `kernels/contrastive_sm90a.cu` and
//! `kernels/contrastive_backward_sm90a.cu`, for Hopper.

mod sm90a;

use super::{ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, ContrastiveOp};
use super::{
    IMAGES_OF_STEP, Negatives, PART_WORDS, ROWS_OF_DENSE_BLOCK, ROWS_OF_SLOT, Sizes, TEXTS_OF_BLOCK,
    images_of_block, images_of_part, parts,
};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

/// Queries of an image and width for which there are kernels of their own: BLIP-2's.
const KNOWN_SIZES: [usize; 2] = [32, 256];
/// Threads of a block: a warp for each image of a step.
const THREADS: u32 = 32 * IMAGES_OF_STEP as u32;
/// Threads of the one block of a sum over lines.
const SUM_THREADS: u32 = 1024;
/// Threads of a block of the backward pass, columns of its gradients, and its shared memory: 128 rows of a
/// side, and twice 32 of the other.
const DENSE_THREADS: u32 = 256;
const COLUMNS_OF_BLOCK: usize = 256;
const DENSE_SHARED_BYTES: usize = (ROWS_OF_DENSE_BLOCK + 2 * 32) * COLUMNS_OF_BLOCK * size_of::<bf16>();

/// Twin of `Batch` in kernels/contrastive.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct BatchArgs<'a> {
    /// [images·Q, E]
    queries: In<'a, bf16>,
    /// [texts, E]
    texts: In<'a, bf16>,
    /// [1, 1]
    temperature: In<'a, f32>,
    /// [1, images]
    image_ids: In<'a, u32>,
    /// [1, texts]
    text_ids: In<'a, u32>,
    images: u32,
    texts_count: u32,
    count: u32,
    width: u32,
    images_of_block: u32,
    smoothing: f32,
}

const _: () = assert!(size_of::<BatchArgs<'_>>() == 104);

impl<'a> BatchArgs<'a> {
    fn of(batch: ContrastiveBatch<'a, Cuda>, Sizes { images, texts, queries }: Sizes) -> Self {
        Self {
            queries: In::of(batch.queries),
            texts: In::of(batch.texts),
            temperature: In::of(batch.temperature),
            image_ids: In::of(batch.image_ids),
            text_ids: In::of(batch.text_ids),
            images: count(images),
            texts_count: count(texts),
            count: count(queries),
            width: count(batch.texts.cols()),
            images_of_block: count(images_of_block(images)),
            smoothing: batch.smoothing as f32,
        }
    }
}

arguments! {
    struct ContrastiveForwardArgs("contrastive", "contrastive_forward", 160) {
        batch: BatchArgs<'a>,
        /// [1, 2]
        key: In<'a, u32>,
        /// [images, texts]
        winner: Out<'a, u8>,
        workspace: Out<'a, u32>,
        site: u32,
        vector: u32,
    }

    struct ContrastiveLinesArgs("contrastive", "contrastive_lines", 184) {
        batch: BatchArgs<'a>,
        workspace: Out<'a, u32>,
        /// [2, images]
        image_statistics: Out<'a, f32>,
        /// [2, texts]
        text_statistics: Out<'a, f32>,
        /// [1, images]
        negative_texts: Out<'a, u32>,
        /// [1, texts]
        negative_images: Out<'a, u32>,
    }

    struct ContrastiveLossArgs("contrastive", "contrastive_loss", 152) {
        batch: BatchArgs<'a>,
        workspace: Out<'a, u32>,
        /// [1, 1]
        loss: Out<'a, f32>,
        /// [1, 2]
        recalled: Out<'a, u32>,
    }

    struct ContrastiveBackwardArgs("contrastive", "contrastive_backward", 216) {
        batch: BatchArgs<'a>,
        /// [2, images]
        image_statistics: In<'a, f32>,
        /// [2, texts]
        text_statistics: In<'a, f32>,
        /// [images, texts]
        winner: In<'a, u8>,
        /// [images·Q, E]
        dqueries: Out<'a, bf16>,
        /// [texts, E]
        dtexts: Out<'a, bf16>,
        workspace: Out<'a, u32>,
        weight: f32,
        full: u32,
        vector: u32,
        images_of_part: u32,
    }

    struct ContrastiveDtextsArgs("contrastive", "contrastive_dtexts", 144) {
        batch: BatchArgs<'a>,
        workspace: Out<'a, u32>,
        /// [texts, E]
        dtexts: Out<'a, bf16>,
        parts: u32,
        vector: u32,
    }

    struct ContrastiveDtemperatureArgs("contrastive", "contrastive_dtemperature", 144) {
        batch: BatchArgs<'a>,
        workspace: Out<'a, u32>,
        /// [1, 1]
        dtemperature: Out<'a, f32>,
        products: u32,
        unused: u32,
    }
}

/// One block.
const SUM_GRID: Grid = Grid { blocks: [1, 1, 1], threads: SUM_THREADS, shared_bytes: 0 };

/// Whether the kernels for features of known sizes, [Q, E], take these.
fn is_known(features: [usize; 2], vector: u32) -> bool {
    features == KNOWN_SIZES && vector > 1
}

impl ContrastiveOp for Cuda {
    fn contrastive_forward(&self, args: ContrastiveForward<'_, Self>) -> Result<()> {
        let sizes = args.check();
        let Sizes { images, texts, queries } = sizes;
        let ContrastiveForward { mut workspace, .. } = args;
        let width = args.batch.texts.cols();
        let batch = BatchArgs::of(args.batch, sizes);
        let (key, site) = match args.negatives {
            Negatives::Sampled { key, site } => (Some(key), site),
            Negatives::Hardest => (None, 0),
        };
        let (key, winner) = (In::optional(key), Out::of(args.winner));
        let extents = [batch.queries.extent(), batch.texts.extent()];
        let hopper = sm90a::Forward::choose([queries, width], extents, self.capability());
        if let Some(hopper) = hopper {
            hopper.launch(self, batch, key, site, winner, Out::of(workspace.reborrow()))?;
        } else {
            let vector = vector_width(count(width), &extents);
            // Parts of columns; logits and texts' scores of a step; the block's texts at the sizes that are known.
            let columns = TEXTS_OF_BLOCK * PART_WORDS * size_of::<u32>();
            let pairs = IMAGES_OF_STEP * TEXTS_OF_BLOCK * 2 * size_of::<f32>();
            let features = TEXTS_OF_BLOCK * width * size_of::<bf16>();
            let (kernel, features) = match is_known([queries, width], vector) {
                true => ("contrastive_forward", features),
                false => ("contrastive_forward_any", 0),
            };
            let [row_parts, column_parts] = parts(images, texts);
            let grid = Grid {
                blocks: [count(row_parts), count(column_parts), 1],
                threads: THREADS,
                shared_bytes: count(columns + pairs + features),
            };
            let workspace = Out::of(workspace.reborrow());
            let args = ContrastiveForwardArgs { batch, key, winner, workspace, site, vector };
            self.launch_variant(kernel, grid, args)?;
        }
        let lines = count(images + texts);
        let grid = Grid { blocks: [lines.div_ceil(THREADS), 1, 1], threads: THREADS, shared_bytes: 0 };
        self.launch(
            grid,
            ContrastiveLinesArgs {
                batch,
                workspace: Out::of(workspace.reborrow()),
                image_statistics: Out::of(args.image_statistics),
                text_statistics: Out::of(args.text_statistics),
                negative_texts: Out::of(args.negative_texts),
                negative_images: Out::of(args.negative_images),
            },
        )?;
        let (loss, recalled) = (Out::of(args.loss), Out::of(args.recalled));
        self.launch(SUM_GRID, ContrastiveLossArgs { batch, workspace: Out::of(workspace), loss, recalled })
    }

    fn contrastive_backward(&self, args: ContrastiveBackward<'_, Self>) -> Result<()> {
        let sizes @ Sizes { images, texts, queries } = args.check();
        let ContrastiveBackward { dqueries, mut dtexts, mut workspace, .. } = args;
        let width = args.batch.texts.cols();
        let batch = BatchArgs::of(args.batch, sizes);
        let (dqueries, dtexts_of_rows) = (Out::of(dqueries), Out::of(dtexts.reborrow()));
        let extents =
            [batch.queries.extent(), batch.texts.extent(), dqueries.extent(), dtexts_of_rows.extent()];
        let vector = vector_width(count(width), &extents);
        let images_of_part = images_of_part(images, texts);
        let gradients = ContrastiveBackwardArgs {
            batch,
            image_statistics: In::of(args.image_statistics),
            text_statistics: In::of(args.text_statistics),
            winner: In::of(args.winner),
            dqueries,
            dtexts: dtexts_of_rows,
            workspace: Out::of(workspace.reborrow()),
            weight: (0.5 * args.weight) as f32,
            full: (args.gradient == ContrastiveGradient::Full).into(),
            vector,
            images_of_part: count(images_of_part),
        };
        let parts = images.div_ceil(images_of_part);
        let slots = images * queries.div_ceil(ROWS_OF_SLOT);
        let blocks =
            slots.div_ceil(ROWS_OF_DENSE_BLOCK / ROWS_OF_SLOT) + texts.div_ceil(ROWS_OF_DENSE_BLOCK) * parts;
        let known = is_known([queries, width], vector);
        if known && sm90a::is_for(self.capability()) {
            sm90a::backward(self, count(blocks), gradients)?;
        } else {
            let kernel = if known { "contrastive_backward" } else { "contrastive_backward_any" };
            let grid = Grid {
                blocks: [count(blocks), count(width.div_ceil(COLUMNS_OF_BLOCK)), 1],
                threads: DENSE_THREADS,
                shared_bytes: count(DENSE_SHARED_BYTES),
            };
            self.launch_variant(kernel, grid, gradients)?;
        }
        // A thread four elements.
        let blocks = count(texts * width.div_ceil(4)).div_ceil(THREADS);
        self.launch(
            Grid { blocks: [blocks, 1, 1], threads: THREADS, shared_bytes: 0 },
            ContrastiveDtextsArgs {
                batch,
                workspace: Out::of(workspace.reborrow()),
                dtexts: Out::of(dtexts),
                parts: count(parts),
                vector,
            },
        )?;
        self.launch(
            SUM_GRID,
            ContrastiveDtemperatureArgs {
                batch,
                workspace: Out::of(workspace),
                dtemperature: Out::of(args.dtemperature),
                products: count(slots),
                unused: 0,
            },
        )
    }
}
