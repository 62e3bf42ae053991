//! Reading a tensor's values, block by block.

use std::io;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::{Checkpoint, Dtype, Shard, TensorInfo};
use crate::error::{Error, Result};
use crate::input::printable;
use crate::params::bounds::read_exact_at;

/// Bytes of file read at once: with its f32 copy still within a core's second-level cache.
const BLOCK_BYTES: usize = 1 << 18;

impl Checkpoint {
    /// Reads the tensor `name`, stored as F32, F16, BF16 or F64, as f32: calls `sink` with the index
    /// of the first element and the values of one block after the other, in order, each at most
    /// 256 KiB of file. Returns how many values were infinite or not a number.
    ///
    /// # Errors
    /// Fails if there is no such tensor, if it has another dtype, or if the file cannot be read or
    /// has become shorter since it was opened.
    pub fn read_f32(&self, name: &str, sink: impl FnMut(usize, &[f32])) -> Result<usize> {
        self.read_f32_range(name, 0..usize::MAX, sink)
    }

    /// [`Checkpoint::read_f32`] of the elements in `range` alone, counted row-major; what of it lies
    /// beyond the tensor's end is not read.
    ///
    /// # Errors
    /// As `read_f32`.
    pub fn read_f32_range(
        &self,
        name: &str,
        range: Range<usize>,
        mut sink: impl FnMut(usize, &[f32]),
    ) -> Result<usize> {
        let Some(info) = self.get(name) else {
            return Err(Error::input(&self.path, format_args!("has no tensor \"{}\"", printable(name))));
        };
        let shard = &self.shards[info.shard];
        if let Some(storage) = &info.storage {
            storage.verify(&shard.path, &shard.file)?;
        }
        let convert: Convert = match info.dtype {
            Dtype::F32 => |bytes, values| values.copy_from_slice(cast_slice(bytes)),
            Dtype::F16 => |bytes, values| cast_slice::<u8, f16>(bytes).convert_to_f32_slice(values),
            Dtype::BF16 => |bytes, values| cast_slice::<u8, bf16>(bytes).convert_to_f32_slice(values),
            Dtype::F64 => |bytes, values| {
                for (value, &wide) in values.iter_mut().zip(cast_slice::<u8, f64>(bytes)) {
                    *value = wide as f32;
                }
            },
            other => {
                let what = format_args!(
                    "tensor \"{}\" is {other}; F32, F16, BF16 and F64 are read",
                    printable(name)
                );
                return Err(Error::input(&shard.path, what));
            }
        };
        let element_bytes = info.dtype.bitsize() / 8;
        let end = range.end.min(info.elements());
        let mut first = range.start.min(end);
        if let Some(strides) = &info.strides {
            return read_strided(shard, name, info, strides, first..end, convert, sink);
        }
        let block = (end - first).min(BLOCK_BYTES / element_bytes);
        // 64-bit words, so that the bytes are aligned for every dtype.
        let mut words = vec![0_u64; (block * element_bytes).div_ceil(8)];
        let mut values = vec![0.0; block];
        let mut not_finite = 0;
        let mut begin = info.begin + (first * element_bytes) as u64;
        while first < end {
            let count = block.min(end - first);
            let bytes = &mut cast_slice_mut(&mut words)[..count * element_bytes];
            shard.read(name, bytes, begin)?;
            to_host_order(bytes, element_bytes);
            let values = &mut values[..count];
            convert(bytes, values);
            not_finite += count_not_finite(values);
            sink(first, values);
            begin += bytes.len() as u64;
            first += count;
        }
        Ok(not_finite)
    }
}

/// The elements in `range` of a tensor whose `strides` are not row-major: all that it spans is read, and then
/// taken in order.
fn read_strided(
    shard: &Shard,
    name: &str,
    info: &TensorInfo,
    strides: &[usize],
    range: Range<usize>,
    convert: Convert,
    mut sink: impl FnMut(usize, &[f32]),
) -> Result<usize> {
    let element_bytes = info.dtype.bitsize() / 8;
    let last: usize = info.shape.iter().zip(strides).map(|(extent, stride)| (extent - 1) * stride).sum();
    let mut words = vec![0_u64; ((last + 1) * element_bytes).div_ceil(8)];
    let bytes = &mut cast_slice_mut(&mut words)[..(last + 1) * element_bytes];
    shard.read(name, bytes, info.begin)?;
    to_host_order(bytes, element_bytes);
    let mut spanned = vec![0.0; last + 1];
    convert(bytes, &mut spanned);
    let at = |mut index: usize| {
        let along = info.shape.iter().zip(strides).rev();
        along.fold(0, |at, (extent, stride)| {
            let place = index % extent;
            index /= extent;
            at + place * stride
        })
    };
    let mut not_finite = 0;
    let mut first = range.start;
    while first < range.end {
        let end = range.end.min(first + BLOCK_BYTES / element_bytes);
        let values: Vec<f32> = (first..end).map(|index| spanned[at(index)]).collect();
        not_finite += count_not_finite(&values);
        sink(first, &values);
        first = end;
    }
    Ok(not_finite)
}

impl Shard {
    /// Fills `bytes` from `begin` on, where tensor `name` is.
    fn read(&self, name: &str, bytes: &mut [u8], begin: u64) -> Result<()> {
        read_exact_at(&self.file, bytes, begin).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Error::input(&self.path, format_args!("ends within tensor \"{}\"", printable(name)))
            }
            _ => Error::io(&self.path, "read", error),
        })
    }
}

type Convert = fn(&[u8], &mut [f32]);

/// How many of `values`, a block, are infinite or not a number.
fn count_not_finite(values: &[f32]) -> usize {
    // A block has at most 2^17 values. A wrapping 32-bit sum is one the compiler can vectorise.
    let count = values.iter().fold(0_u32, |count, value| count.wrapping_add(u32::from(!value.is_finite())));
    count as usize
}

/// Turns elements of `element_bytes` bytes from the file's little-endian order into the machine's.
pub(super) fn to_host_order(bytes: &mut [u8], element_bytes: usize) {
    if cfg!(target_endian = "big") {
        bytes.chunks_exact_mut(element_bytes).for_each(<[u8]>::reverse);
    }
}
