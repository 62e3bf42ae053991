//! Results that wait for their file's header, which says how many there are.

use bytemuck::{cast_slice, cast_slice_mut};
use qformer::params::safetensors::{Dtype, NewTensor};
use qformer::tensor::HostTensor;
use qformer::{Error, Result, output};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

/// A tensor that grows image by image in a file without a name, which ends with the process.
pub(crate) struct Spool {
    /// The file that the tensor is for; named in errors.
    output: PathBuf,
    file: BufWriter<File>,
    /// Of all batches so far.
    shape: Vec<usize>,
}

impl Spool {
    /// An empty tensor, in the folder that `output` will be in: where it has room if `output` has.
    pub(crate) fn new(output: &Path) -> Result<Self> {
        output::check_writable(output)?;
        let file = tempfile::tempfile_in(output::folder_of(output))
            .map_err(|error| Error::io(output, "write", error))?;
        Ok(Self { output: output.to_owned(), file: BufWriter::new(file), shape: Vec::new() })
    }

    /// Appends a batch, of the same shape but for the number of images.
    pub(crate) fn append(&mut self, batch: &HostTensor) -> Result<()> {
        match self.shape.split_first_mut() {
            None => self.shape = batch.shape().to_vec(),
            Some((images, per_image)) => {
                assert_eq!(*per_image, batch.shape()[1..]);
                *images += batch.shape()[0];
            }
        }
        self.file
            .write_all(cast_slice(batch.values()))
            .map_err(|error| Error::io(&self.output, "make room for", error))
    }

    /// The tensor by the name `name`, to be written as `dtype`.
    pub(crate) fn into_tensor(self, name: &str, dtype: Dtype) -> Result<NewTensor<'static>> {
        let Self { output, file, shape } = self;
        let mut file =
            file.into_inner().map_err(|error| Error::io(&output, "make room for", error.into_error()))?;
        file.rewind().map_err(|error| Error::io(&output, "make room for", error))?;
        let mut file = BufReader::new(file);
        // Blocks are asked for one after the other, as they stand in the file.
        Ok(NewTensor::new(name, dtype, &shape, move |_, values| {
            file.read_exact(cast_slice_mut(values)).map_err(|error| Error::io(&output, "write", error))
        }))
    }
}
