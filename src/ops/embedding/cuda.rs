//! Launches of `kernels/embedding.cu`.

use super::{EmbeddingBackward, EmbeddingForward, EmbeddingOp, Ids};
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::device::{Cuda, SM, V};
use crate::error::Result;
use half::bf16;

/// Threads of the forward kernel's blocks, a warp a row.
const FORWARD_THREADS: u32 = 256;
/// Threads of the backward kernel's blocks, each for a vector of the columns.
const BACKWARD_THREADS: u32 = 128;

arguments! {
    struct EmbeddingForwardArgs("embedding", "embedding_forward", 96) {
        /// [1, count]
        ids: In<'a, u32>,
        /// [table rows, width]
        table: In<'a, bf16>,
        /// [1, count]
        places: In<'a, u32>,
        /// [table rows, width]
        positions: In<'a, bf16>,
        /// [count, width]
        y: Out<'a, bf16>,
        count: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }

    struct EmbeddingBackwardArgs("embedding", "embedding_backward", 64) {
        /// [1, count]
        ids: In<'a, u32>,
        /// [count, width]
        dy: In<'a, bf16>,
        /// [table rows, width]
        dtable: Out<'a, f32>,
        count: u32,
        width: u32,
        vector: u32,
        frozen: u32,
    }
}

impl EmbeddingOp for Cuda {
    fn embedding_forward(&self, args: EmbeddingForward<'_, Self>) -> Result<()> {
        let EmbeddingForward { ids, table, positions, y } = args;
        assert_eq!((y.rows(), y.cols()), (ids.cols(), table.cols()), "y [count, width]");
        assert!(positions.is_none_or(|(p, t)| p.cols() == ids.cols() && t.cols() == table.cols()));
        let (rows, width) = (count(y.rows()), count(y.cols()));
        let (places, positions) = positions.unzip();
        let (table, positions, y) = (In::of(table.matrix()), In::optional(positions), Out::of(y));
        let vector = vector_width(width, &[table.extent(), positions.extent(), y.extent()]);
        let blocks = [rows.div_ceil(FORWARD_THREADS / 32), 1, 1];
        self.launch(
            Grid { blocks, threads: FORWARD_THREADS, shared_bytes: 0 },
            EmbeddingForwardArgs {
                ids: In::of(ids),
                table,
                places: In::optional(places),
                positions,
                y,
                count: rows,
                width,
                vector,
                unused: 0,
            },
        )
    }

    fn embedding_backward(&self, args: EmbeddingBackward<'_, Self>) -> Result<()> {
        let EmbeddingBackward { ids, frozen, dy, dtable, dpositions } = args;
        scatter_add(self, ids, frozen, dy, dtable)?;
        match dpositions {
            Some((places, dpositions)) => scatter_add(self, places, None, dy, dpositions),
            None => Ok(()),
        }
    }
}

fn scatter_add(
    gpu: &Cuda,
    ids: Ids<'_, Cuda>,
    frozen: Option<u32>,
    dy: V<'_, Cuda>,
    dtable: SM<'_, Cuda>,
) -> Result<()> {
    assert_eq!((dy.rows(), dy.cols()), (ids.cols(), dtable.cols()), "dy [count, width]");
    let (rows, width) = (count(dy.rows()), count(dy.cols()));
    let (dy, dtable) = (In::of(dy), Out::of(dtable));
    let vector = vector_width(width, &[dy.extent(), dtable.extent()]);
    let blocks = [rows, width.div_ceil(BACKWARD_THREADS * vector), 1];
    gpu.launch(
        Grid { blocks, threads: BACKWARD_THREADS, shared_bytes: 0 },
        EmbeddingBackwardArgs {
            ids: In::of(ids),
            dy,
            dtable,
            count: rows,
            width,
            vector,
            frozen: frozen.unwrap_or(u32::MAX),
        },
    )
}
