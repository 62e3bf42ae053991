//! Launches of `kernels/contrastive.cu`.

use super::{ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, ContrastiveOp};
use super::{IMAGES_OF_STEP, Negatives, PART_WORDS, Sizes, TEXTS_OF_BLOCK, images_of_block, parts};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

/// Threads of a block: a warp for each image of a step.
const THREADS: u32 = 32 * IMAGES_OF_STEP as u32;
/// Threads of the one block of a sum over lines.
const SUM_THREADS: u32 = 1024;
/// Queries and width that tensor cores do.
const TENSOR_CORES: [usize; 2] = [32, 256];

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
        tensor_cores: u32,
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
        unused: u32,
    }

    struct ContrastiveDtemperatureArgs("contrastive", "contrastive_dtemperature", 136) {
        batch: BatchArgs<'a>,
        workspace: Out<'a, u32>,
        /// [1, 1]
        dtemperature: Out<'a, f32>,
    }
}

/// One block.
const SUM_GRID: Grid = Grid { blocks: [1, 1, 1], threads: SUM_THREADS, shared_bytes: 0 };

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
        let vector = vector_width(count(width), &[batch.queries.extent(), batch.texts.extent()]);
        let tensor_cores = [queries, width] == TENSOR_CORES && vector > 1;
        // Parts of columns; logits and texts' scores of a step; the block's texts.
        let columns = TEXTS_OF_BLOCK * PART_WORDS * size_of::<u32>();
        let pairs = IMAGES_OF_STEP * TEXTS_OF_BLOCK * 2 * size_of::<f32>();
        let features = if tensor_cores { TEXTS_OF_BLOCK * width * size_of::<bf16>() } else { 0 };
        let [row_parts, column_parts] = parts(images, texts);
        let grid = Grid {
            blocks: [count(row_parts), count(column_parts), 1],
            threads: THREADS,
            shared_bytes: count(columns + pairs + features),
        };
        self.launch(
            grid,
            ContrastiveForwardArgs {
                batch,
                key: In::optional(key),
                winner: Out::of(args.winner),
                workspace: Out::of(workspace.reborrow()),
                site,
                tensor_cores: tensor_cores.into(),
            },
        )?;
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
        let sizes = args.check();
        let ContrastiveBackward { dqueries, dtexts, mut workspace, .. } = args;
        let width = args.batch.texts.cols();
        let batch = BatchArgs::of(args.batch, sizes);
        let rows = count(dtexts.rows() + dqueries.rows());
        let (dqueries, dtexts) = (Out::of(dqueries), Out::of(dtexts));
        let extents = [batch.queries.extent(), batch.texts.extent(), dqueries.extent(), dtexts.extent()];
        let vector = vector_width(count(width), &extents);
        // A warp a row, a vector a lane.
        let blocks = [rows.div_ceil(THREADS / 32), count(width).div_ceil(32 * vector), 1];
        self.launch(
            Grid { blocks, threads: THREADS, shared_bytes: 0 },
            ContrastiveBackwardArgs {
                batch,
                image_statistics: In::of(args.image_statistics),
                text_statistics: In::of(args.text_statistics),
                winner: In::of(args.winner),
                dqueries,
                dtexts,
                workspace: Out::of(workspace.reborrow()),
                weight: (0.5 * args.weight) as f32,
                full: (args.gradient == ContrastiveGradient::Full).into(),
                vector,
                unused: 0,
            },
        )?;
        let (workspace, dtemperature) = (Out::of(workspace), Out::of(args.dtemperature));
        self.launch(SUM_GRID, ContrastiveDtemperatureArgs { batch, workspace, dtemperature })
    }
}
