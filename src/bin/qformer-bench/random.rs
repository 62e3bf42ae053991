//! Numbers of no pattern.

use qformer::params::init::{key, uniform};
use rayon::prelude::*;

/// Values in (-1, 1), different for every name and the same in every run.
pub(crate) fn random_values(name: &str, count: usize) -> Vec<f32> {
    let key = key(0, name);
    (0..count as u64).into_par_iter().map(|index| (2.0 * uniform(key, index) - 1.0) as f32).collect()
}
