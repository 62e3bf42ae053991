//! Random numbers, and weights for a model of any shape.

use qformer::Result;
use qformer::params::init::{key, uniform};
use qformer::params::{Part, TensorSource};

/// Numbers in [-1, 1), the same in every run for the same name.
pub(crate) fn random(name: &str, count: usize) -> Vec<f32> {
    (0..count as u64).map(|i| (2.0 * uniform(key(7, name), i) - 1.0) as f32).collect()
}

/// Weights large enough that no term of the model is lost beside the others.
pub(crate) struct RandomWeights;

impl TensorSource for RandomWeights {
    fn check(&self, _: &[&Part]) -> Result<()> {
        Ok(())
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        let centre = if part.name.to_lowercase().ends_with("norm.weight") { 1.0 } else { 0.0 };
        let values: Vec<f32> = random(&part.name, part.len()).iter().map(|x| centre + 0.3 * x).collect();
        sink(0, &values);
        Ok(0)
    }
}
