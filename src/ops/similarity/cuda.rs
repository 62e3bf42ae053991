//! Launches of `kernels/similarity.cu`.

use super::{Pairing, SimilarityBackward, SimilarityForward, SimilarityOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

/// Images and texts of a block that compares all pairs.
const TILE: [u32; 2] = [4, 128];
/// Threads of a block in any of the kernels; in all but that one a warp has a row.
const THREADS: u32 = 256;

arguments! {
    struct SimilarityForwardArgs("similarity", "similarity_all_forward", 88) {
        /// [images·Q, E]
        queries: In<'a, bf16>,
        /// [texts, E]
        texts: In<'a, bf16>,
        /// [images, texts] or [images, 1]
        similarity: Out<'a, bf16>,
        /// as similarity
        winner: Out<'a, u32>,
        images: u32,
        query_count: u32,
        text_count: u32,
        width: u32,
        vector: u32,
        unused: u32,
    }

    struct SimilarityMatchedForwardArgs("similarity", "similarity_matched_forward", 88) {
        all: SimilarityForwardArgs<'a>,
    }

    struct SimilarityBackwardQueriesArgs("similarity", "similarity_backward_queries", 88) {
        /// [texts, E]
        texts: In<'a, bf16>,
        /// [images, columns]
        winner: In<'a, u32>,
        /// [images, columns]
        dsimilarity: In<'a, bf16>,
        /// [images·Q, E]
        dqueries: Out<'a, bf16>,
        pairing: u32,
        images: u32,
        query_count: u32,
        columns: u32,
        width: u32,
        vector: u32,
    }

    struct SimilarityBackwardTextsArgs("similarity", "similarity_backward_texts", 88) {
        /// [images·Q, E]
        queries: In<'a, bf16>,
        /// [images, columns]
        winner: In<'a, u32>,
        /// [images, columns]
        dsimilarity: In<'a, bf16>,
        /// [texts, E]
        dtexts: Out<'a, bf16>,
        pairing: u32,
        images: u32,
        query_count: u32,
        text_count: u32,
        width: u32,
        vector: u32,
    }
}

impl Pairing {
    /// Number in kernels/similarity.cu.
    fn number(self) -> u32 {
        match self {
            Pairing::All => 0,
            Pairing::Matched => 1,
        }
    }
}

/// A warp a row.
fn rows_grid(rows: u32) -> Grid {
    Grid { blocks: [rows.div_ceil(THREADS / 32), 1, 1], threads: THREADS, shared_bytes: 0 }
}

impl SimilarityOp for Cuda {
    fn similarity_forward(&self, args: SimilarityForward<'_, Self>) -> Result<()> {
        let query_count = count(args.check());
        let SimilarityForward { pairing, queries, texts, similarity, winner } = args;
        let (images, text_count, width) =
            (count(similarity.rows()), count(texts.rows()), count(queries.cols()));
        let (queries, texts) = (In::of(queries), In::of(texts));
        let vector = vector_width(width, &[queries.extent(), texts.extent()]);
        let all = SimilarityForwardArgs {
            queries,
            texts,
            similarity: Out::of(similarity),
            winner: Out::optional(winner),
            images,
            query_count,
            text_count,
            width,
            vector,
            unused: 0,
        };
        match pairing {
            Pairing::All => {
                let blocks = [images.div_ceil(TILE[0]), text_count.div_ceil(TILE[1]), 1];
                self.launch(Grid { blocks, threads: THREADS, shared_bytes: 0 }, all)
            }
            Pairing::Matched => self.launch(rows_grid(images), SimilarityMatchedForwardArgs { all }),
        }
    }

    fn similarity_backward(&self, args: SimilarityBackward<'_, Self>) -> Result<()> {
        let query_count = count(args.check());
        let SimilarityBackward { pairing, queries, texts, winner, dsimilarity, dqueries, dtexts } = args;
        let (images, columns) = (count(dsimilarity.rows()), count(dsimilarity.cols()));
        let (text_count, width) = (count(texts.rows()), count(texts.cols()));
        let (queries, texts) = (In::of(queries), In::of(texts));
        let (winner, dsimilarity) = (In::of(winner), In::of(dsimilarity));
        let (dqueries, dtexts) = (Out::of(dqueries), Out::of(dtexts));
        let pairing = pairing.number();
        let vector = vector_width(width, &[texts.extent(), dqueries.extent()]);
        self.launch(
            rows_grid(images * query_count),
            SimilarityBackwardQueriesArgs {
                texts,
                winner,
                dsimilarity,
                dqueries,
                pairing,
                images,
                query_count,
                columns,
                width,
                vector,
            },
        )?;
        let vector = vector_width(width, &[queries.extent(), dtexts.extent()]);
        self.launch(
            rows_grid(text_count),
            SimilarityBackwardTextsArgs {
                queries,
                winner,
                dsimilarity,
                dtexts,
                pairing,
                images,
                query_count,
                text_count,
                width,
                vector,
            },
        )
    }
}
