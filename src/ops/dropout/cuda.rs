//! Launches of `kernels/dropout.cu`.

use super::{Dropout, DropoutBackward, DropoutForward, DropoutOp};
use crate::device::cuda::{Grid, In, Out, arguments, count, vector_width};
use crate::device::{Cuda, M, V};
use crate::error::Result;
use half::bf16;
use std::marker::PhantomData;
use std::ptr;

/// Twin of `Dropout` in kernels/random.cuh.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct DropoutArgs<'a> {
    key: *const u32,
    site: u32,
    threshold: u32,
    scale: f32,
    unused: u32,
    borrow: PhantomData<&'a [u32]>,
}

const _: () = assert!(size_of::<DropoutArgs<'_>>() == 24);

impl<'a> DropoutArgs<'a> {
    /// A null key without dropout.
    pub(crate) fn of(dropout: Option<Dropout<'a, Cuda>>) -> Self {
        let none =
            Self { key: ptr::null(), site: 0, threshold: 0, scale: 1.0, unused: 0, borrow: PhantomData };
        dropout.map_or(none, |d| Self {
            key: d.key.pointer(),
            site: d.site,
            threshold: d.threshold(),
            scale: d.scale() as f32,
            ..none
        })
    }
}

arguments! {
    struct DropoutApplyArgs("dropout", "dropout_apply", 72) {
        dropout: DropoutArgs<'a>,
        /// [rows, width]
        x: In<'a, bf16>,
        /// [rows, width]
        y: Out<'a, bf16>,
        rows: u32,
        width: u32,
        vector: u32,
    }
}

/// Threads of a block, a warp a row.
const THREADS: u32 = 256;

impl Cuda {
    /// y = x·m/(1 − p): the mask is its own gradient.
    fn dropout(&self, dropout: Dropout<'_, Self>, x: V<'_, Self>, y: M<'_, Self>) -> Result<()> {
        assert_eq!(x.shape(), y.shape());
        let (rows, width) = (count(x.rows()), count(x.cols()));
        let (x, y) = (In::of(x), Out::of(y));
        let vector = vector_width(width, &[x.extent(), y.extent()]);
        let grid = Grid { blocks: [rows.div_ceil(THREADS / 32), 1, 1], threads: THREADS, shared_bytes: 0 };
        let dropout = DropoutArgs::of(Some(dropout));
        self.launch(grid, DropoutApplyArgs { dropout, x, y, rows, width, vector })
    }
}

impl DropoutOp for Cuda {
    fn dropout_forward(&self, DropoutForward { dropout, x, y }: DropoutForward<'_, Self>) -> Result<()> {
        self.dropout(dropout, x, y)
    }

    fn dropout_backward(&self, DropoutBackward { dropout, dy, dx }: DropoutBackward<'_, Self>) -> Result<()> {
        self.dropout(dropout, dy, dx)
    }
}
