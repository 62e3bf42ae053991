//! Tensors that one model hands to the next without a way over the host.

use super::Arena;
use crate::device::{Device, M, V};
use crate::error::Result;
use crate::tensor::HostTensor;
use std::ops::Range;

/// A tensor in the memory of a device, row-major, in the device's number type.
///
/// ```
/// use qformer::{Cpu, HostTensor, VisionEncoder, QFormer};
///
/// # fn main() -> qformer::Result<()> {
/// let (device, folder) = (Cpu::<f32>::new(), "tests/golden/retrieval/model");
/// let (encoder, model) = (VisionEncoder::load(device, folder)?, QFormer::load(device, folder)?);
/// let side = encoder.config().image_size;
/// let pixels = HostTensor::new(&[1, 3, side, side], vec![0.0; 3 * side * side])?;
/// // What the encoder makes of the image stays where it is.
/// let vision_output = encoder.encode_on_device(&pixels)?;
/// let of_image = model.encode_image(&vision_output)?;
/// assert_eq!(of_image.query_output.shape()[0], 1);
/// # Ok(())
/// # }
/// ```
pub struct DeviceTensor<D: Device> {
    arena: Arena<D>,
    shape: Vec<usize>,
}

impl<D: Device> DeviceTensor<D> {
    /// Zeros of the given shape: the extents, the slowest-varying first.
    ///
    /// # Errors
    /// Fails if there is not enough memory.
    pub fn zeros(device: &D, purpose: &str, shape: &[usize]) -> Result<Self> {
        let (rows, cols) = matrix(shape);
        let arena = Arena::planned(device, purpose, |cursor| {
            cursor.take::<D::Elem>(rows, cols);
        })?;
        Ok(Self { arena, shape: shape.to_vec() })
    }

    /// Extents, the slowest-varying first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The tensor in the host's memory.
    ///
    /// # Errors
    /// Fails as the device does.
    pub fn to_host(&self, device: &D) -> Result<HostTensor> {
        HostTensor::new(&self.shape, device.read(self.view())?)
    }

    /// The values as rows of the last extent.
    pub fn view(&self) -> V<'_, D> {
        let (rows, cols) = matrix(&self.shape);
        self.arena.first(rows, cols)
    }

    /// The values as rows of the last extent, to be written.
    pub fn view_mut(&mut self) -> M<'_, D> {
        let (rows, cols) = matrix(&self.shape);
        self.arena.cursor().take(rows, cols)
    }
}

/// A tensor that is kept where it came to be: on the host, or on the device.
pub enum PlacedTensor<D: Device> {
    /// On the host.
    Host(HostTensor),
    /// On the device.
    Device(DeviceTensor<D>),
}

impl<D: Device> PlacedTensor<D> {
    /// The tensor in the host's memory.
    ///
    /// # Errors
    /// Fails as the device does.
    pub fn to_host(&self, device: &D) -> Result<HostTensor> {
        match self {
            Self::Host(tensor) => Ok(tensor.clone()),
            Self::Device(tensor) => tensor.to_host(device),
        }
    }
}

/// What has a shape: extents, the slowest-varying first.
pub trait Shaped {
    /// The extents.
    fn shape(&self) -> &[usize];
}

impl Shaped for HostTensor {
    fn shape(&self) -> &[usize] {
        self.shape()
    }
}

impl<D: Device> Shaped for PlacedTensor<D> {
    fn shape(&self) -> &[usize] {
        match self {
            Self::Host(tensor) => tensor.shape(),
            Self::Device(tensor) => tensor.shape(),
        }
    }
}

/// A shape's rows and columns: the last extent is a row's.
fn matrix(shape: &[usize]) -> (usize, usize) {
    let (cols, rows) = shape.split_last().map_or((1, &[][..]), |(cols, rows)| (*cols, rows));
    let rows = rows.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
    (rows.expect("a tensor's size fits in memory"), cols)
}

/// A tensor that a model is given: on the host, or where another model on the same device has left it.
pub enum TensorInput<'a, D: Device> {
    /// On the host.
    Host(&'a HostTensor),
    /// On the device.
    Device(&'a DeviceTensor<D>),
}

impl<D: Device> Clone for TensorInput<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Device> Copy for TensorInput<'_, D> {}

impl<'a, D: Device> From<&'a HostTensor> for TensorInput<'a, D> {
    fn from(tensor: &'a HostTensor) -> Self {
        Self::Host(tensor)
    }
}

impl<'a, D: Device> From<&'a DeviceTensor<D>> for TensorInput<'a, D> {
    fn from(tensor: &'a DeviceTensor<D>) -> Self {
        Self::Device(tensor)
    }
}

impl<'a, D: Device> From<&'a PlacedTensor<D>> for TensorInput<'a, D> {
    fn from(tensor: &'a PlacedTensor<D>) -> Self {
        match tensor {
            PlacedTensor::Host(tensor) => Self::Host(tensor),
            PlacedTensor::Device(tensor) => Self::Device(tensor),
        }
    }
}

impl<'a, D: Device> TensorInput<'a, D> {
    /// Extents, the slowest-varying first.
    pub fn shape(self) -> &'a [usize] {
        match self {
            Self::Host(tensor) => tensor.shape(),
            Self::Device(tensor) => tensor.shape(),
        }
    }

    /// Writes some of the items [items, …] to `to`, as rows of the last extent.
    pub(crate) fn write(self, device: &D, items: Range<usize>, to: M<'_, D>) -> Result<()> {
        let per_item: usize = self.shape()[1..].iter().product();
        match self {
            Self::Host(tensor) => {
                device.write(&tensor.values()[items.start * per_item..items.end * per_item], 0, to)
            }
            Self::Device(tensor) => {
                let rows = per_item / to.cols();
                device.copy(tensor.view().row_range(items.start * rows..items.end * rows), to)
            }
        }
    }
}
