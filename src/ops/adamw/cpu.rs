//! A share of the parameters a task.

use super::{AdamWOp, AdamWStep, CLIP_EPSILON};
use crate::device::{Cpu, Real, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// Parameters of a task: what they and their moments take fits in a core's cache.
const SHARE: usize = 1 << 14;

impl<E: Real> AdamWOp for Cpu<E> {
    fn adamw_step(&self, mut args: AdamWStep<'_, Self>) -> Result<()> {
        args.check();
        let constants = args.constants;
        let &[rate, correction1, correction2] = args.schedule.row(0) else { unreachable!("as checked") };
        let norm = args.norm.row(0)[0];
        if !norm.to_f64().is_finite() {
            return Ok(());
        }
        let clip = match constants.max_norm {
            Some(max_norm) => {
                let clip = E::of(max_norm) / (norm + E::of(CLIP_EPSILON));
                if clip < E::ONE { clip } else { E::ONE }
            }
            None => E::ONE,
        };
        let [beta1, beta2] = [constants.beta1, constants.beta2].map(E::of);
        let [rest1, rest2] = [1.0 - constants.beta1, 1.0 - constants.beta2].map(E::of);
        let decay = E::ONE - rate * E::of(constants.weight_decay);
        let step_size = rate / correction1;
        let inverse_root = E::ONE / correction2.sqrt();
        let epsilon = E::of(constants.epsilon);
        let update = |index: usize, g: E, p: &mut E, m: &mut E, v: &mut E| {
            let g = g * clip;
            *m = beta1.mul_add(*m, rest1 * g);
            *v = beta2.mul_add(*v, rest2 * g * g);
            let decayed = if index < args.decayed { *p * decay } else { *p };
            *p = decayed - step_size * (*m / v.sqrt().mul_add(inverse_root, epsilon));
        };
        let gradient = args.gradient.row(0);
        (args.parameters.row_mut(0).par_chunks_mut(SHARE))
            .zip(args.first_moment.row_mut(0).par_chunks_mut(SHARE))
            .zip(args.second_moment.row_mut(0).par_chunks_mut(SHARE))
            .zip(gradient.par_chunks(SHARE))
            .enumerate()
            .for_each(|(share, (((p, m), v), g))| {
                vectorised(
                    #[inline(always)]
                    || {
                        for i in 0..p.len() {
                            update(share * SHARE + i, g[i], &mut p[i], &mut m[i], &mut v[i]);
                        }
                    },
                );
            });
        if let Some(weights) = &mut args.weights {
            let parameters = args.parameters.view();
            weights
                .row_mut(0)
                .par_chunks_mut(SHARE)
                .zip(parameters.row(0).par_chunks(SHARE))
                .for_each(|(weights, parameters)| weights.copy_from_slice(parameters));
        }
        Ok(())
    }
}
