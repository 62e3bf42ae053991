//! What passes read: weights, features and captions of no pattern, the same in every run.

use crate::random::random_values;
use qformer::Result;
use qformer::params::init::{key, uniform};
use qformer::params::{Part, TensorSource};
use qformer::tensor::HostTensor;
use rayon::prelude::*;

/// Shortest and longest caption, in tokens with `[CLS]` and `[SEP]`.
const CAPTION_TOKENS: [usize; 2] = [9, 16];

/// Weights of the size that trained ones have, different for every tensor and the same in every run.
pub(crate) struct RandomWeights;

impl TensorSource for RandomWeights {
    fn check(&self, _: &[&Part]) -> Result<()> {
        Ok(())
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        let is_scale = part.name.ends_with("orm.weight")
            || part.name.contains("norm1.weight")
            || part.name.contains("norm2.weight");
        let centre = match &*part.name {
            _ if is_scale => 1.0,
            // Above zero, as similarities are divided by it.
            "temp" => 0.07,
            _ => 0.0,
        };
        let mut values = random_values(&part.name, part.len());
        values.par_iter_mut().for_each(|value| *value = centre + 0.06 * *value);
        sink(0, &values);
        Ok(0)
    }
}

/// Captions of all lengths, the same in every run.
pub(crate) fn random_texts(count: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    let [shortest, longest] = CAPTION_TOKENS;
    let token = |text: usize, i: usize| {
        (uniform(key(0, "captions"), (text * longest + i) as u64) * vocabulary as f64) as u32
    };
    let text = |text: usize| {
        let length = shortest + text * 5 % (longest - shortest + 1);
        (0..length).map(|i| token(text, i)).collect()
    };
    (0..count).map(text).collect()
}

pub(crate) fn random_tensor(name: &str, shape: &[usize]) -> HostTensor {
    HostTensor::new(shape, random_values(name, shape.iter().product()))
        .expect("as many values as the shape says")
}
