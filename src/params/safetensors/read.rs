//! Reading a tensor's values, block by block.

use std::io;
use std::ops::Range;

use bytemuck::{cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;

use super::{Checkpoint, Dtype, Shard, TensorInfo};
use crate::device::vectorised;
use crate::error::{Error, Result};
use crate::input::printable;
use crate::params::bounds::read_exact_at;
use crate::tensor::{Number, NumberType};

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
        let (info, shard) = self.find(name)?;
        let convert = convert_of(name, info, shard)?;
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

    /// Reads the tensor `name` straight into `to`, as numbers of type `dtype`, on all cores; the nearest ones, of two
    /// the even one. Returns how many of them are infinite or not a number; none, and nothing is read, of a tensor
    /// whose elements do not lie row-major without gaps, or as `NumberType::F64`.
    ///
    /// # Errors
    /// As `read_f32`.
    ///
    /// # Panics
    /// Panics if `to` is not as long as the tensor's numbers, or not aligned to them.
    pub fn read_into(&self, name: &str, dtype: NumberType, to: &mut [u8]) -> Result<Option<usize>> {
        let (info, shard) = self.find(name)?;
        let convert = convert_of(name, info, shard)?;
        if info.strides.is_some() || dtype == NumberType::F64 {
            return Ok(None);
        }
        assert_eq!(to.len(), info.elements() * dtype.bytes(), "bytes for tensor \"{name}\"");
        let element_bytes = info.dtype.bitsize() / 8;
        let block = BLOCK_BYTES / element_bytes;
        let counts = to.par_chunks_mut(block * dtype.bytes()).enumerate().map_init(
            || (Vec::new(), Vec::new()),
            |(words, values), (index, to)| {
                let begin = info.begin + (index * BLOCK_BYTES) as u64;
                if is_stored_as(info.dtype, dtype) {
                    shard.read(name, to, begin)?;
                    to_host_order(to, element_bytes);
                } else {
                    // 64-bit words, so that the bytes are aligned for every dtype.
                    words.resize(BLOCK_BYTES / 8, 0_u64);
                    values.resize(block, 0.0);
                    let count = to.len() / dtype.bytes();
                    let bytes = &mut cast_slice_mut(words)[..count * element_bytes];
                    shard.read(name, bytes, begin)?;
                    to_host_order(bytes, element_bytes);
                    convert(bytes, &mut values[..count]);
                    narrow(&values[..count], dtype, to);
                }
                Ok(count_not_finite_as(dtype, to))
            },
        );
        counts.try_reduce(|| 0, |a, b| Ok(a + b)).map(Some)
    }

    /// The tensor `name` and its file, whose checksum is verified if it has one.
    fn find(&self, name: &str) -> Result<(&TensorInfo, &Shard)> {
        let Some(info) = self.get(name) else {
            return Err(Error::input(&self.path, format_args!("has no tensor \"{}\"", printable(name))));
        };
        let shard = &self.shards[info.shard];
        if let Some(storage) = &info.storage {
            storage.verify(&shard.path, &shard.file)?;
        }
        Ok((info, shard))
    }
}

/// How the elements of tensor `name` become `f32`.
fn convert_of(name: &str, info: &TensorInfo, shard: &Shard) -> Result<Convert> {
    Ok(match info.dtype {
        Dtype::F32 => |bytes, values| values.copy_from_slice(cast_slice(bytes)),
        Dtype::F16 => |bytes, values| cast_slice::<u8, f16>(bytes).convert_to_f32_slice(values),
        Dtype::BF16 => |bytes, values| cast_slice::<u8, bf16>(bytes).convert_to_f32_slice(values),
        Dtype::F64 => |bytes, values| {
            for (value, &wide) in values.iter_mut().zip(cast_slice::<u8, f64>(bytes)) {
                *value = wide as f32;
            }
        },
        other => {
            let what =
                format_args!("tensor \"{}\" is {other}; F32, F16, BF16 and F64 are read", printable(name));
            return Err(Error::input(&shard.path, what));
        }
    })
}

/// Whether elements of a file are numbers of this type.
fn is_stored_as(stored: Dtype, dtype: NumberType) -> bool {
    match dtype {
        NumberType::F64 => stored == Dtype::F64,
        NumberType::F32 => stored == Dtype::F32,
        NumberType::F16 => stored == Dtype::F16,
        NumberType::Bf16 => stored == Dtype::BF16,
    }
}

/// Writes the nearest numbers of type `dtype`.
fn narrow(values: &[f32], dtype: NumberType, to: &mut [u8]) {
    match dtype {
        NumberType::F16 => cast_slice_mut::<u8, f16>(to).convert_from_f32_slice(values),
        NumberType::Bf16 => vectorised(
            #[inline(always)]
            || cast_slice_mut(to).iter_mut().zip(values).for_each(|(to, &x)| *to = bf16::of_f32(x)),
        ),
        NumberType::F32 => to.copy_from_slice(cast_slice(values)),
        NumberType::F64 => unreachable!("not read so"),
    }
}

/// How many numbers of type `dtype`, a block, are infinite or not a number.
fn count_not_finite_as(dtype: NumberType, numbers: &[u8]) -> usize {
    /// Those whose exponent is all ones.
    fn count(numbers: &[u16], exponent: u16) -> usize {
        vectorised(
            #[inline(always)]
            || {
                let is_not_finite = |bits: &u16| u32::from(bits & exponent == exponent);
                numbers.iter().fold(0_u32, |count, bits| count.wrapping_add(is_not_finite(bits))) as usize
            },
        )
    }
    match dtype {
        NumberType::F16 => count(cast_slice(numbers), f16::INFINITY.to_bits()),
        NumberType::Bf16 => count(cast_slice(numbers), bf16::INFINITY.to_bits()),
        NumberType::F32 => count_not_finite(cast_slice(numbers)),
        NumberType::F64 => unreachable!("not read so"),
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
