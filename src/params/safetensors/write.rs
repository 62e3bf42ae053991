//! Writing a checkpoint, block by block and atomically.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use ::safetensors::tensor::TensorInfo;
use bytemuck::{cast_slice, cast_slice_mut};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde_json::{Map, json};

use super::read::to_host_order;
use super::{Dtype, header};
use crate::error::{Error, Result};
use crate::input::printable;
use crate::output::write_atomically;

/// Values produced and written at once.
const BLOCK: usize = 1 << 18;

type Fill<'a> = Box<dyn FnMut(usize, &mut [f32]) -> Result<()> + 'a>;

/// A tensor to be written: what it is, and how to come by its values.
pub struct NewTensor<'a> {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    fill: Fill<'a>,
}

impl<'a> NewTensor<'a> {
    /// A tensor whose values are made when it is its turn: `fill(first, values)` is called for one
    /// block after the other and fills `values` with the elements from index `first` on (row-major).
    ///
    /// `dtype` is F32, F16 or BF16: what the values are rounded to.
    pub fn new(
        name: impl Into<String>,
        dtype: Dtype,
        shape: &[usize],
        fill: impl FnMut(usize, &mut [f32]) -> Result<()> + 'a,
    ) -> Self {
        Self { name: name.into(), dtype, shape: shape.to_vec(), fill: Box::new(fill) }
    }

    /// A tensor whose values are at hand, row-major.
    ///
    /// # Panics
    /// Panics if there are not as many values as the shape says.
    pub fn from_slice(name: impl Into<String>, dtype: Dtype, shape: &[usize], values: &'a [f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), values.len(), "values for shape {shape:?}");
        Self::new(name, dtype, shape, |first, block| {
            block.copy_from_slice(&values[first..first + block.len()]);
            Ok(())
        })
    }
}

/// Writes a `.safetensors` file whole or not at all, making one block of one tensor at a
/// time. `metadata` becomes the header's `__metadata__`, with `format: pt`, which transformers asks
/// for, added.
///
/// # Errors
/// Fails if two tensors have one name, if there is more metadata than 32 MiB or 4095 keys, if a dtype is not F32, F16
/// or BF16, if a finite value does not fit its dtype, if a `fill` fails, or if the operating system
/// refuses to write.
pub fn write(path: &Path, metadata: &BTreeMap<String, String>, tensors: Vec<NewTensor<'_>>) -> Result<()> {
    let mut tensors = tensors;
    // Wide elements first keep every tensor aligned, as the format's own library has it.
    tensors.sort_by(|a, b| (b.dtype.bitsize(), &a.name).cmp(&(a.dtype.bitsize(), &b.name)));
    let header = new_header(metadata, &tensors)?;
    write_atomically(path, |file| {
        let failed = |source| Error::io(path, "write", source);
        file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
        file.write_all(header.as_bytes()).map_err(failed)?;
        tensors.into_iter().try_for_each(|tensor| write_values(path, file, tensor))
    })
}

/// The header's JSON, its keys sorted (the library's `Metadata` has no order of its keys), padded with spaces to a multiple of 8 bytes.
fn new_header(metadata: &BTreeMap<String, String>, tensors: &[NewTensor<'_>]) -> Result<String> {
    let metadata_bytes: usize = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if metadata_bytes > header::METADATA_BYTES {
        let limit = header::METADATA_BYTES;
        return Err(Error::usage(format!(
            "{metadata_bytes} bytes of metadata; at most {limit} are read again"
        )));
    }
    if metadata.len() >= header::METADATA_KEYS {
        let limit = header::METADATA_KEYS;
        return Err(Error::usage(format!(
            "{} keys of metadata; fewer than {limit} are read again",
            metadata.len()
        )));
    }
    let mut format = Map::new();
    format.insert("format".into(), "pt".into());
    format.extend(metadata.iter().map(|(key, value)| (key.clone(), value.as_str().into())));
    let mut entries = Map::new();
    entries.insert("__metadata__".into(), format.into());
    let mut begin = 0_usize;
    let mut names = BTreeSet::new();
    for NewTensor { name, dtype, shape, .. } in tensors {
        let wrong = |what: String| Err(Error::usage(format!("tensor \"{}\": {what}", printable(name))));
        if !names.insert(name) || name == "__metadata__" {
            return wrong("the name is taken".into());
        }
        if !matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return wrong(format!("{dtype} is not written; F32, F16 and BF16 are"));
        }
        let bytes = header::byte_length(*dtype, shape).and_then(|bytes| usize::try_from(bytes).ok());
        let Some(end) = bytes.and_then(|bytes| begin.checked_add(bytes)) else {
            return wrong(format!("shape {shape:?} is too large"));
        };
        let entry = TensorInfo { dtype: *dtype, shape: shape.clone(), data_offsets: (begin, end) };
        entries.insert(name.clone(), json!(entry));
        begin = end;
    }
    let mut header = serde_json::Value::from(entries).to_string();
    let padded = header.len().next_multiple_of(8);
    header.extend(std::iter::repeat_n(' ', padded - header.len()));
    Ok(header)
}

fn write_values(path: &Path, file: &mut BufWriter<File>, mut tensor: NewTensor<'_>) -> Result<()> {
    // From `overflow` on, a value rounds to infinity: halfway from the largest finite one to the next
    // power of two, the tie going to even.
    let (round, overflow): (Round, f32) = match tensor.dtype {
        Dtype::F16 => {
            (|values, bytes| cast_slice_mut::<u8, f16>(bytes).convert_from_f32_slice(values), 65_520.0)
        }
        Dtype::BF16 => (
            |values, bytes| cast_slice_mut::<u8, bf16>(bytes).convert_from_f32_slice(values),
            f32::from_bits(0x7f7f_8000),
        ),
        _ => (|values, bytes| bytes.copy_from_slice(cast_slice(values)), f32::INFINITY),
    };
    let element_bytes = tensor.dtype.bitsize() / 8;
    let elements: usize = tensor.shape.iter().product();
    let mut values = vec![0.0; elements.min(BLOCK)];
    // 32-bit words, so that the bytes are aligned for every dtype.
    let mut words = vec![0_u32; values.len()];
    let mut first = 0;
    while first < elements {
        let count = values.len().min(elements - first);
        let values = &mut values[..count];
        (tensor.fill)(first, values)?;
        if let Some(value) = values.iter().find(|value| value.is_finite() && value.abs() >= overflow) {
            let (name, dtype) = (printable(&tensor.name), tensor.dtype);
            return Err(Error::usage(format!(
                "tensor \"{name}\": {value:e} is out of {dtype}'s range; write F32"
            )));
        }
        let bytes = &mut cast_slice_mut(&mut words)[..count * element_bytes];
        round(values, bytes);
        to_host_order(bytes, element_bytes);
        file.write_all(bytes).map_err(|source| Error::io(path, "write", source))?;
        first += count;
    }
    Ok(())
}

type Round = fn(&[f32], &mut [u8]);
