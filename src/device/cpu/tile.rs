//! What [`amx`](super::amx) multiplies: matrices of bf16, two to a word, as tiles.

use crate::tensor::SPLIT_PANEL;
use bytemuck::{Pod, Zeroable};

/// Rows of a tile; a tile of B has as many columns.
pub(crate) const TILE: usize = 16;

/// What one step of a product sums over: the columns of a tile of A.
pub(super) const DEPTH: usize = 32;

/// Words of two bf16 that [`DEPTH`] numbers are.
pub(super) const PAIRS: usize = DEPTH / 2;

/// Rows, and columns, of a block of products: two tiles each way, which with their factors take
/// all eight tile registers.
pub(crate) const BLOCK: usize = 2 * TILE;

const _: () = assert!(SPLIT_PANEL == BLOCK && DEPTH == BLOCK);

/// What a tile register holds.
pub(super) type Tile = [[u32; PAIRS]; TILE];

/// [`DEPTH`] numbers each of 32 rows of the left factor or of 32 columns of the right one, as tiles:
/// hi of the first 16, hi of the others, lo of the first, lo of the others. A word holds two numbers
/// that are summed over, the first in its low half. A row of the left factor's tile has the words of a
/// row; a row of the right factor's has a word of every column.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Step(pub(super) [Tile; 4]);

/// A block of products.
#[repr(C, align(64))]
pub(crate) struct Block(pub(crate) [[f32; BLOCK]; BLOCK]);

/// Steps that sum over so many numbers.
pub(crate) const fn steps(depth: usize) -> usize {
    depth.div_ceil(DEPTH)
}
