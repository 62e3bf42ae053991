//! Launches of `kernels/top_k.cu`.

use super::{TopK, TopKOp};
use crate::device::Cuda;
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::error::Result;
use half::bf16;

arguments! {
    struct TopKPartsArgs("top_k", "top_k_parts", 80) {
        /// [rows, width]
        logits: In<'a, bf16>,
        /// [rows·parts, kept]
        values: Out<'a, f32>,
        /// [rows·parts, kept]
        ids: Out<'a, u32>,
        /// [rows·parts, 2]
        sums: Out<'a, f32>,
        width: u32,
        /// Columns of a part, whole chunks.
        part: u32,
        kept: u32,
        vector: u32,
    }

    struct TopKCombineArgs("top_k", "top_k_combine", 160) {
        /// [rows, width]
        logits: In<'a, bf16>,
        /// [rows·parts, kept]
        part_values: In<'a, f32>,
        /// [rows·parts, kept]
        part_ids: In<'a, u32>,
        /// [rows·parts, 2]
        sums: In<'a, f32>,
        /// [rows, asked]; absent if none are
        asked_ids: In<'a, u32>,
        /// [rows, asked]
        asked_values: Out<'a, f32>,
        /// [1, rows]
        lse: Out<'a, f32>,
        /// [rows, k]
        ids: Out<'a, u32>,
        /// [rows, k]
        values: Out<'a, f32>,
        parts: u32,
        kept: u32,
        k: u32,
        asked: u32,
    }
}

/// Threads of the blocks that have a part each.
const PART_THREADS: u32 = 128;
/// Threads of the blocks that have a row each.
const COMBINE_THREADS: u32 = 256;
/// Logits that a block sorts at a time.
const CHUNK: u32 = 1024;
/// Logits of all parts of a row that the last block can hold.
const CANDIDATES: u32 = 4096;
/// Blocks a multiprocessor: enough to hide the latency of sorting.
const BLOCKS_PER_MULTIPROCESSOR: u32 = 4;

/// How a row is divided.
#[derive(Debug, PartialEq)]
struct Parts {
    /// Logits that each keeps, a power of two.
    kept: u32,
    count: u32,
    /// Columns of each, but for the rest of the row.
    columns: u32,
}

impl Parts {
    fn choose([rows, width]: [u32; 2], k: u32, multiprocessors: u32) -> Self {
        let (kept, chunks) = (k.next_power_of_two(), width.div_ceil(CHUNK));
        let wanted = (multiprocessors * BLOCKS_PER_MULTIPROCESSOR / rows).max(1);
        let chunks_of_part = chunks.div_ceil(wanted.min(CANDIDATES / kept));
        Self { kept, count: chunks.div_ceil(chunks_of_part), columns: chunks_of_part * CHUNK }
    }
}

impl TopKOp for Cuda {
    fn top_k(&self, args: TopK<'_, Self>) -> Result<()> {
        args.check();
        let TopK { logits, asked, lse, ids, values } = args;
        let (rows, width, k) = (count(logits.rows()), count(logits.cols()), count(ids.cols()));
        if rows == 0 {
            return Ok(());
        }
        let Parts { kept, count: parts, columns } = Parts::choose([rows, width], k, self.multiprocessors());
        let logits = In::of(logits);
        let vector = vector_width(width, &[logits.extent()]);
        let (asked_ids, asked_values) = asked.unzip();
        let asked = asked_ids.map_or(0, |ids| count(ids.cols()));
        self.with_scratch(|scratch| {
            let shape = [(rows * parts) as usize, kept as usize];
            let (part_values, values_read) = scratch.matrix(shape[0], shape[1]);
            let (part_ids, ids_read) = scratch.matrix(shape[0], shape[1]);
            let (sums, sums_read) = scratch.matrix(shape[0], 2);
            let grid = Grid { blocks: [parts, rows, 1], threads: PART_THREADS, shared_bytes: 0 };
            self.launch(
                grid,
                TopKPartsArgs {
                    logits,
                    values: part_values,
                    ids: part_ids,
                    sums,
                    width,
                    part: columns,
                    kept,
                    vector,
                },
            )?;
            let grid = Grid { blocks: [rows, 1, 1], threads: COMBINE_THREADS, shared_bytes: 0 };
            self.launch(
                grid,
                TopKCombineArgs {
                    logits,
                    part_values: values_read,
                    part_ids: ids_read,
                    sums: sums_read,
                    asked_ids: In::optional(asked_ids),
                    asked_values: Out::optional(asked_values),
                    lse: Out::of(lse),
                    ids: Out::of(ids),
                    values: Out::of(values),
                    parts,
                    kept,
                    k,
                    asked,
                },
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Parts;

    #[test]
    fn few_rows_are_divided_among_the_multiprocessors() {
        let choose = |rows, width, k| {
            let parts = Parts::choose([rows, width], k, 132);
            (parts.count, parts.columns)
        };
        // OPT's vocabulary: a chunk a block, as long as the last block can hold what each keeps.
        assert_eq!(choose(1, 50_272, 10), (50, 1024));
        assert_eq!(choose(16, 50_272, 10), (25, 2048));
        assert_eq!(choose(1, 50_272, 128), (25, 2048));
        // A block a row where there are enough rows.
        assert_eq!(choose(1000, 50_272, 1), (1, 50 * 1024));
        assert_eq!(choose(3, 5, 5), (1, 1024));
        let Parts { kept, count, columns } = Parts::choose([1, 1 << 20], 100, 132);
        assert!(kept == 128 && kept * count <= 4096 && count * columns >= 1 << 20);
    }
}
