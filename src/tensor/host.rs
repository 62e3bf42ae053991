//! Tensors in the host's memory.

use crate::error::{Error, Result};

/// A tensor in the host's memory, row-major: what the public API takes and gives. It has as many values as its
/// shape says.
///
/// ```
/// use qformer::HostTensor;
///
/// let tensor = HostTensor::new(&[2, 3], vec![0.0; 6]).unwrap();
/// assert_eq!((tensor.shape(), tensor.values().len()), (&[2, 3][..], 6));
/// assert!(HostTensor::new(&[2, 3], vec![0.0; 5]).is_err());
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    shape: Vec<usize>,
    values: Vec<f32>,
}

impl HostTensor {
    /// `values` of the given shape: the extents, the slowest-varying first.
    ///
    /// # Errors
    /// Fails if there are not as many values as the shape says.
    pub fn new(shape: &[usize], values: Vec<f32>) -> Result<Self> {
        let elements = shape.iter().try_fold(1_usize, |product, &extent| product.checked_mul(extent));
        if elements != Some(values.len()) {
            return Err(Error::value(format!(
                "{} values do not fill a tensor of shape {shape:?}; give as many as the product of its extents",
                values.len()
            )));
        }
        Ok(Self { shape: shape.to_vec(), values })
    }

    /// Extents, the slowest-varying first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The values, row by row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values, to be changed in place.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Puts the items of `more` [items, …] behind this tensor's own.
    ///
    /// # Panics
    /// Panics if the items are of other extents.
    pub(crate) fn append(&mut self, more: Self) {
        assert_eq!(self.shape[1..], more.shape[1..], "items of one shape");
        self.shape[0] += more.shape[0];
        self.values.extend(more.values);
    }

    /// The values, row by row, without a copy.
    pub fn into_values(self) -> Vec<f32> {
        self.values
    }
}

#[cfg(test)]
mod tests {
    use super::HostTensor;

    #[test]
    fn values_that_do_not_fill_the_shape_are_refused() {
        // The last product would come to 0 in 64 bits.
        for (shape, values) in [(&[2, 3][..], 5), (&[2, 3], 7), (&[0, 3], 1), (&[], 0), (&[1 << 62, 4], 0)] {
            let error = HostTensor::new(shape, vec![0.0; values]).unwrap_err().to_string();
            assert!(error.contains(&format!("{values} values")), "{error}");
            assert!(error.contains(&format!("{shape:?}")), "{error}");
        }
    }

    #[test]
    fn values_that_fill_the_shape_are_kept() {
        for (shape, values) in [(&[2, 3][..], 6), (&[0, 3], 0), (&[], 1)] {
            let tensor = HostTensor::new(shape, vec![1.0; values]).unwrap();
            assert_eq!((tensor.shape(), tensor.values()), (shape, &vec![1.0; values][..]));
            assert_eq!(tensor.into_values(), vec![1.0; values]);
        }
    }
}
