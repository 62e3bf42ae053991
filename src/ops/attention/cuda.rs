//! Launches of `kernels/attention.cu`.

use super::{Attention, AttentionBackward, AttentionForward, AttentionOp, Mask, SequenceSizes};
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::device::{Cuda, V, Write};
use crate::error::Result;
use crate::ops::dropout::DropoutArgs;
use half::bf16;
use std::marker::PhantomData;

/// Rows of a tile of queries, and keys of a warp in the backward pass.
const TILE: usize = 16;
/// Shared memory has a multiple of this many keys.
const KEYS: usize = 8;
/// Keys in shared memory at a time where they do not all fit: few, so that several blocks share a
/// multiprocessor and copy while others compute.
const STREAMED_KEYS: usize = 128;
/// Queries in shared memory at a time in the gradients of keys, in two buffers.
const QUERIES: u32 = 32;
/// Most warps of a block.
const WARPS: usize = 8;
/// Widths of a head that there are kernels for; heads are filled up with zeros.
const WIDTHS: [u32; 4] = [32, 64, 96, WIDEST];
const WIDEST: u32 = 128;
/// From this width on the keys whose gradients a block forms stay in shared memory.
const STORED_KEYS_FROM: u32 = 128;
/// Fewest keys of a block where blocks share them out.
const SPLIT_KEYS: usize = 128;
/// Warps of such a block, which copy keys together.
const SPLIT_WARPS: u32 = 4;
/// Such blocks that a multiprocessor is to have: their copies wait for memory while others compute.
const SPLITS_OF_MULTIPROCESSOR: usize = 4;

/// Twin of `Attention` in kernels/attention.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
struct AttentionArgs<'a> {
    table: *const u32,
    groups: u32,
    mask: u32,
    width: u32,
    vector: u32,
    scale: f32,
    reach: u32,
    bias: In<'a, f32>,
    dropout: DropoutArgs<'a>,
    borrow: PhantomData<&'a [u32]>,
}

const _: () = assert!(size_of::<AttentionArgs<'_>>() == 72);

/// Twin in kernels/attention.cu.
#[repr(C)]
struct ForwardArgs<'a> {
    what: AttentionArgs<'a>,
    q: In<'a, bf16>,
    k: [In<'a, bf16>; 2],
    v: [In<'a, bf16>; 2],
    key_rows: In<'a, u32>,
    out: Out<'a, bf16>,
    lse: Out<'a, f32>,
    sums: Out<'a, f32>,
    chunk: u32,
    unused: u32,
    split: u32,
    query_rows: u32,
}

/// Twin in kernels/attention.cu: what both kernels of the backward pass read.
#[repr(C)]
#[derive(Clone, Copy)]
struct BackwardInputs<'a> {
    what: AttentionArgs<'a>,
    q: In<'a, bf16>,
    k: [In<'a, bf16>; 2],
    v: [In<'a, bf16>; 2],
    out: In<'a, bf16>,
    lse: In<'a, f32>,
    dout: In<'a, bf16>,
}

/// Twin in kernels/attention.cu.
#[repr(C)]
struct BackwardQueriesArgs<'a> {
    inputs: BackwardInputs<'a>,
    dq: Out<'a, bf16>,
    chunk: u32,
    unused: u32,
}

/// Twin in kernels/attention.cu.
#[repr(C)]
struct BackwardKeysArgs<'a> {
    inputs: BackwardInputs<'a>,
    dk: Out<'a, bf16>,
    dv: Out<'a, bf16>,
    dprefix: [Out<'a, bf16>; 2],
    write: u32,
    unused: u32,
}

/// The arguments of the kernels for each of [`WIDTHS`], without a bias and with one.
macro_rules! by_width {
    ($($args:ident, $bytes:literal: $($name:ident $kernel:literal),*;)*) => {
        arguments! { $($(struct $name("attention", $kernel, $bytes) { args: $args<'a>, })*)* }
    };
}
by_width! {
    ForwardArgs, 232:
        Forward32 "attention_forward_32",
        Forward64 "attention_forward_64",
        Forward96 "attention_forward_96",
        Forward128 "attention_forward_128",
        Forward32Bias "attention_forward_32_bias",
        Forward64Bias "attention_forward_64_bias",
        Forward96Bias "attention_forward_96_bias",
        Forward128Bias "attention_forward_128_bias";
    BackwardQueriesArgs, 224:
        BackwardQueries32 "attention_backward_queries_32",
        BackwardQueries64 "attention_backward_queries_64",
        BackwardQueries96 "attention_backward_queries_96",
        BackwardQueries128 "attention_backward_queries_128",
        BackwardQueries32Bias "attention_backward_queries_32_bias",
        BackwardQueries64Bias "attention_backward_queries_64_bias",
        BackwardQueries96Bias "attention_backward_queries_96_bias",
        BackwardQueries128Bias "attention_backward_queries_128_bias";
    BackwardKeysArgs, 272:
        BackwardKeys32 "attention_backward_keys_32",
        BackwardKeys64 "attention_backward_keys_64",
        BackwardKeys96 "attention_backward_keys_96",
        BackwardKeys128 "attention_backward_keys_128",
        BackwardKeys32Bias "attention_backward_keys_32_bias",
        BackwardKeys64Bias "attention_backward_keys_64_bias",
        BackwardKeys96Bias "attention_backward_keys_96_bias",
        BackwardKeys128Bias "attention_backward_keys_128_bias";
}

arguments! {
    struct CombineArgs("attention", "attention_combine", 128) {
        what: AttentionArgs<'a>,
        sums: In<'a, f32>,
        out: Out<'a, bf16>,
        lse: Out<'a, f32>,
        split: u32,
        query_rows: u32,
    }
}

/// Starts the kernel for heads of this padded width, without a bias or with one.
macro_rules! launch {
    ($device:expr, $width:expr, $bias:expr, $grid:expr, $args:expr, [$($plain:ident $biased:ident),*]) => {
        launch!(@ $device, ($width, $bias.is_some()), $grid, $args, [$($plain $biased),*])
    };
    (@ $device:expr, $kind:expr, $grid:expr, $args:expr, [$a:ident $b:ident, $c:ident $d:ident, $e:ident $f:ident, $g:ident $h:ident]) => {
        match $kind {
            (32, false) => $device.launch($grid, $a { args: $args }),
            (32, true) => $device.launch($grid, $b { args: $args }),
            (64, false) => $device.launch($grid, $c { args: $args }),
            (64, true) => $device.launch($grid, $d { args: $args }),
            (96, false) => $device.launch($grid, $e { args: $args }),
            (96, true) => $device.launch($grid, $f { args: $args }),
            (_, false) => $device.launch($grid, $g { args: $args }),
            (_, true) => $device.launch($grid, $h { args: $args }),
        }
    };
}

/// Sizes of the largest group, from which the launches follow.
struct Largest {
    groups: u32,
    keys: usize,
    /// Tiles of queries of all its sequences; blocks take more of them in turn.
    tiles: usize,
}

impl<'a> Attention<'a, Cuda> {
    fn largest(&self) -> Largest {
        let SequenceSizes { groups, keys, queries, .. } = self.sequences.sizes;
        Largest { groups: count(groups), keys, tiles: queries.div_ceil(TILE) }
    }

    fn args(&self, width: u32, vector: u32) -> AttentionArgs<'a> {
        AttentionArgs {
            table: self.sequences.table.pointer(),
            groups: count(self.sequences.sizes.groups),
            mask: u32::from(self.mask == Mask::Causal),
            width,
            vector,
            scale: self.scale as f32,
            reach: self.bias.map_or(0, |bias| count(bias.table.cols() / 2)),
            bias: In::optional(self.bias.map(|bias| bias.table)),
            dropout: DropoutArgs::of(self.dropout),
            borrow: PhantomData,
        }
    }
}

/// The width that heads are filled up to.
pub(crate) fn padded_width(width: usize) -> u32 {
    let fits = WIDTHS.into_iter().find(|&padded| width <= padded as usize);
    fits.unwrap_or_else(|| panic!("heads of {width} columns; the GPU's kernels have at most {WIDEST}"))
}

/// Warps of a block and blocks of a head for so many `pieces` of work, one a warp, evenly.
fn shares(pieces: usize) -> (usize, usize) {
    let blocks = pieces.div_ceil(WARPS);
    (pieces.div_ceil(blocks.max(1)), blocks)
}

/// How blocks share out the keys of few queries.
struct Split {
    /// Keys of a block.
    keys: usize,
    count: usize,
    /// Rows and columns of the sums that they leave.
    sums: [usize; 2],
}

impl Cuda {
    /// Grid and keys in shared memory of the kernels that walk over the queries.
    fn query_grid(&self, heads: usize, width: u32, largest: &Largest) -> (Grid, u32) {
        let bytes = |keys: usize| count(keys) * width * 2 * size_of::<bf16>() as u32;
        let keys = largest.keys.next_multiple_of(KEYS);
        let chunk = if bytes(keys) <= self.shared_bytes() { keys } else { STREAMED_KEYS };
        let (warps, rounds) = shares(largest.tiles);
        // Sharing out the queries of a head makes more blocks copy its keys: only to fill the GPU.
        let blocks = 2 * self.multiprocessors() as usize;
        let shares = blocks.div_ceil((largest.groups as usize * heads).max(1)).min(rounds);
        let grid = Grid {
            blocks: [largest.groups, count(heads), count(shares)],
            threads: count(warps) * 32,
            shared_bytes: bytes(chunk),
        };
        (grid, count(chunk))
    }

    /// Where the queries of a group are one tile, and there are too few groups and heads to fill the GPU. It follows from
    /// sizes alone, as a recorded launch does.
    fn split(&self, heads: usize, q: V<'_, Self>, largest: &Largest) -> Option<Split> {
        let blocks = largest.groups as usize * heads;
        if blocks == 0 || largest.tiles != 1 {
            return None;
        }
        let wanted = (SPLITS_OF_MULTIPROCESSOR * self.multiprocessors() as usize).div_ceil(blocks);
        let most = wanted.min(largest.keys.div_ceil(SPLIT_KEYS));
        let keys = largest.keys.div_ceil(most.max(1)).next_multiple_of(KEYS);
        let splits = largest.keys.div_ceil(keys.max(1));
        let sums = [splits * heads * q.rows(), (q.cols() / heads).next_multiple_of(2) + 2];
        // Rows of scratch memory are whole quarters.
        let fits = sums[0] * sums[1].next_multiple_of(4) <= Self::SCRATCH_WORDS;
        (splits > 1 && fits).then_some(Split { keys, count: splits, sums })
    }
}

impl AttentionOp for Cuda {
    const WIDEST_HEAD: usize = WIDEST as usize;

    fn attention_forward(&self, what: Attention<'_, Self>, args: AttentionForward<'_, Self>) -> Result<()> {
        let AttentionForward { q, k, v, prefix, key_rows, out, lse } = args;
        let width = what.check(q, k, v, prefix);
        assert_eq!(out.shape(), q.shape());
        let [first_k, first_v] = prefix.unwrap_or([k, v]);
        let (padded, largest, columns) = (padded_width(width), what.largest(), count(width));
        let (mut grid, mut chunk) = self.query_grid(what.heads, padded, &largest);
        let (split, query_rows) = (self.split(what.heads, q, &largest), count(q.rows()));
        let (q, out, lse) = (In::of(q), Out::of(out), Out::optional(lse));
        let (k, v) = ([In::of(first_k), In::of(k)], [In::of(first_v), In::of(v)]);
        let inputs = [q, k[0], k[1], v[0], v[1]].map(|x| x.extent());
        let vector = vector_width(columns, &inputs).min(vector_width(columns, &[out.extent()]));
        let (bias, what) = (what.bias, what.args(columns, vector));
        let key_rows = In::optional(key_rows);
        let forward = |grid, chunk, split, sums| {
            let (out, lse) = (out.again(), lse.again());
            let args =
                ForwardArgs { what, q, k, v, key_rows, out, lse, sums, chunk, unused: 0, split, query_rows };
            launch!(self, padded, bias, grid, args, [
                Forward32 Forward32Bias, Forward64 Forward64Bias, Forward96 Forward96Bias, Forward128 Forward128Bias
            ])
        };
        let Some(Split { keys, count: splits, sums: [rows, cols] }) = split else {
            return forward(grid, chunk, 0, Out::optional(None));
        };
        chunk = count(keys.min(STREAMED_KEYS));
        let combining =
            Grid { blocks: [grid.blocks[0], grid.blocks[1], 1], threads: SPLIT_WARPS * 32, shared_bytes: 0 };
        grid = Grid {
            blocks: [grid.blocks[0], grid.blocks[1], count(splits)],
            threads: SPLIT_WARPS * 32,
            shared_bytes: chunk * padded * 2 * size_of::<bf16>() as u32,
        };
        self.with_scratch(|scratch| {
            let (written, sums) = scratch.matrix(rows, cols);
            forward(grid, chunk, count(keys), written)?;
            let (out, lse) = (out.again(), lse.again());
            self.launch(combining, CombineArgs { what, sums, out, lse, split: count(keys), query_rows })
        })
    }

    fn attention_backward(&self, what: Attention<'_, Self>, args: AttentionBackward<'_, Self>) -> Result<()> {
        let AttentionBackward { q, k, v, prefix, out, lse, dout, dq, write, dk, dv, dprefix } = args;
        let width = what.check(q, k, v, prefix);
        assert!(out.shape() == q.shape() && dout.shape() == q.shape() && dq.shape() == q.shape());
        assert!(dk.shape() == k.shape() && dv.shape() == v.shape());
        assert_eq!(prefix.is_some(), dprefix.is_some(), "a prefix has gradients");
        let [first_k, first_v] = prefix.unwrap_or([k, v]);
        let (padded, largest, columns) = (padded_width(width), what.largest(), count(width));
        let (grid, chunk) = self.query_grid(what.heads, padded, &largest);
        let (warps, blocks) = shares(largest.keys.div_ceil(TILE));
        let stored = if padded >= STORED_KEYS_FROM { 2 * count(warps * TILE) } else { 0 };
        let key_grid = Grid {
            blocks: [largest.groups, count(what.heads), count(blocks)],
            threads: count(warps) * 32,
            // Queries and the gradients of their output, two buffers of each, and the keys and values of wide heads.
            shared_bytes: (4 * QUERIES + stored) * padded * size_of::<bf16>() as u32,
        };
        let (q, out, lse, dout) = (In::of(q), In::of(out), In::of(lse), In::of(dout));
        let (k, v) = ([In::of(first_k), In::of(k)], [In::of(first_v), In::of(v)]);
        let (dq, dk, dv) = (Out::of(dq), Out::of(dk), Out::of(dv));
        let dprefix = match dprefix {
            Some(dprefix) => dprefix.map(Out::of),
            None => [Out::optional(None), Out::optional(None)],
        };
        let inputs = [q, k[0], k[1], v[0], v[1], out, dout].map(|x| x.extent());
        let outputs = [&dq, &dk, &dv, &dprefix[0], &dprefix[1]].map(|x| x.extent());
        let vector = vector_width(columns, &inputs).min(vector_width(columns, &outputs));
        let (bias, what) = (what.bias, what.args(columns, vector));
        let inputs = BackwardInputs { what, q, k, v, out, lse, dout };
        let args = BackwardQueriesArgs { inputs, dq, chunk, unused: 0 };
        launch!(self, padded, bias, grid, args, [
            BackwardQueries32 BackwardQueries32Bias, BackwardQueries64 BackwardQueries64Bias,
            BackwardQueries96 BackwardQueries96Bias, BackwardQueries128 BackwardQueries128Bias
        ])?;
        let write = u32::from(write == Write::Add);
        let args = BackwardKeysArgs { inputs, dk, dv, dprefix, write, unused: 0 };
        launch!(self, padded, bias, key_grid, args, [
            BackwardKeys32 BackwardKeys32Bias, BackwardKeys64 BackwardKeys64Bias,
            BackwardKeys96 BackwardKeys96Bias, BackwardKeys128 BackwardKeys128Bias
        ])
    }
}
