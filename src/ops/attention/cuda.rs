//! Launches of `kernels/attention.cu`.

use super::{Attention, AttentionBackward, AttentionForward, AttentionOp, Mask, SequenceSizes};
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::device::{Cuda, Write};
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
const WIDTHS: [u32; 3] = [32, 64, 96];

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
    unused: u32,
    dropout: DropoutArgs<'a>,
    borrow: PhantomData<&'a [u32]>,
}

const _: () = assert!(size_of::<AttentionArgs<'_>>() == 56);

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
    chunk: u32,
    unused: u32,
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

/// The arguments of the kernels for each of [`WIDTHS`].
macro_rules! by_width {
    ($($args:ident, $bytes:literal: $($name:ident $kernel:literal),*;)*) => {
        arguments! { $($(struct $name("attention", $kernel, $bytes) { args: $args<'a>, })*)* }
    };
}
by_width! {
    ForwardArgs, 192:
        Forward32 "attention_forward_32", Forward64 "attention_forward_64", Forward96 "attention_forward_96";
    BackwardQueriesArgs, 208:
        BackwardQueries32 "attention_backward_queries_32",
        BackwardQueries64 "attention_backward_queries_64",
        BackwardQueries96 "attention_backward_queries_96";
    BackwardKeysArgs, 256:
        BackwardKeys32 "attention_backward_keys_32",
        BackwardKeys64 "attention_backward_keys_64",
        BackwardKeys96 "attention_backward_keys_96";
}

/// Starts the kernel for heads of this padded width.
macro_rules! launch {
    ($device:expr, $width:expr, $grid:expr, $args:expr, [$first:ident, $second:ident, $third:ident]) => {
        match $width {
            32 => $device.launch($grid, $first { args: $args }),
            64 => $device.launch($grid, $second { args: $args }),
            _ => $device.launch($grid, $third { args: $args }),
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
            unused: 0,
            dropout: DropoutArgs::of(self.dropout),
            borrow: PhantomData,
        }
    }
}

/// The width that heads are filled up to.
pub(crate) fn padded_width(width: usize) -> u32 {
    let fits = WIDTHS.into_iter().find(|&padded| width <= padded as usize);
    fits.unwrap_or_else(|| panic!("heads of {width} columns; the GPU's kernels have at most {}", WIDTHS[2]))
}

/// Warps of a block and blocks of a head for so many `pieces` of work, one a warp, evenly.
fn shares(pieces: usize) -> (usize, usize) {
    let blocks = pieces.div_ceil(WARPS);
    (pieces.div_ceil(blocks.max(1)), blocks)
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
}

impl AttentionOp for Cuda {
    const WIDEST_HEAD: usize = WIDTHS[2] as usize;

    fn attention_forward(&self, what: Attention<'_, Self>, args: AttentionForward<'_, Self>) -> Result<()> {
        let AttentionForward { q, k, v, prefix, key_rows, out, lse } = args;
        let width = what.check(q, k, v, prefix);
        assert_eq!(out.shape(), q.shape());
        let [first_k, first_v] = prefix.unwrap_or([k, v]);
        let (padded, largest, columns) = (padded_width(width), what.largest(), count(width));
        let (grid, chunk) = self.query_grid(what.heads, padded, &largest);
        let (q, out, lse) = (In::of(q), Out::of(out), Out::optional(lse));
        let (k, v) = ([In::of(first_k), In::of(k)], [In::of(first_v), In::of(v)]);
        let inputs = [q, k[0], k[1], v[0], v[1]].map(|x| x.extent());
        let vector = vector_width(columns, &inputs).min(vector_width(columns, &[out.extent()]));
        let what = what.args(columns, vector);
        let key_rows = In::optional(key_rows);
        let args = ForwardArgs { what, q, k, v, key_rows, out, lse, chunk, unused: 0 };
        launch!(self, padded, grid, args, [Forward32, Forward64, Forward96])
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
        let key_grid = Grid {
            blocks: [largest.groups, count(what.heads), count(blocks)],
            threads: count(warps) * 32,
            // Queries and the gradients of their output, two buffers of each.
            shared_bytes: 4 * QUERIES * padded * size_of::<bf16>() as u32,
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
        let what = what.args(columns, vector);
        let inputs = BackwardInputs { what, q, k, v, out, lse, dout };
        let args = BackwardQueriesArgs { inputs, dq, chunk, unused: 0 };
        launch!(self, padded, grid, args, [BackwardQueries32, BackwardQueries64, BackwardQueries96])?;
        let write = u32::from(write == Write::Add);
        let args = BackwardKeysArgs { inputs, dk, dv, dprefix, write, unused: 0 };
        launch!(self, padded, key_grid, args, [BackwardKeys32, BackwardKeys64, BackwardKeys96])
    }
}
