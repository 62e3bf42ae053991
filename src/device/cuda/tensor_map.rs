//! Matrices as Hopper's copy engine (TMA) is told of them.

use super::{In, failure};
use crate::error::Result;
use cudarc::driver::sys;
use half::bf16;
use std::ffi::c_void;
use std::marker::PhantomData;

/// Columns of a box: the 128 bytes of a row in shared memory that the swizzle permutes.
const BOX_COLS: u32 = 64;

/// A matrix and the boxes that are copied of it: twin of `TensorMap` in kernels/ptx_sm90a.cuh. What a box
/// has outside of the matrix is filled up with zeros.
#[repr(C, align(64))]
pub(crate) struct TensorMap<'a> {
    encoded: sys::CUtensorMap,
    borrow: PhantomData<&'a [bf16]>,
}

impl<'a> TensorMap<'a> {
    /// Boxes of `box_rows` by 64 of a matrix of this shape; it must start at a multiple of 16 bytes, and so
    /// must its rows.
    pub(crate) fn new(matrix: In<'a, bf16>, [rows, cols]: [u32; 2], box_rows: u32) -> Result<Self> {
        let (address, pitch) = matrix.extent();
        let mut encoded = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: every array has the two numbers that a matrix needs (strides: one less), and the driver
        // only encodes the address.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &mut encoded,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                [u64::from(cols), u64::from(rows)].as_ptr(),
                [pitch as u64].as_ptr(),
                [BOX_COLS, box_rows].as_ptr(),
                [1, 1].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
        .result()
        .map_err(|error| failure(error, format_args!("describe a matrix of {rows} by {cols}")))?;
        Ok(Self { encoded, borrow: PhantomData })
    }
}
