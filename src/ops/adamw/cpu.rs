//! A share of the parameters a task.

use super::{AdamW, AdamWOp, AdamWStep, CLIP_EPSILON};
use crate::device::{Cpu, Real, vectorised};
use crate::error::Result;
use rayon::prelude::*;

/// Parameters of a task: what they and their moments take fits in a core's cache.
const SHARE: usize = 1 << 14;

/// What is the same for all parameters.
#[derive(Clone, Copy)]
struct Formula<E> {
    clip: E,
    /// β₁ and 1 − β₁
    first: [E; 2],
    /// β₂ and 1 − β₂
    second: [E; 2],
    /// η/(1 − β₁ᵗ)
    step_size: E,
    /// 1/√(1 − β₂ᵗ)
    inverse_root: E,
    /// ε
    epsilon: E,
}

impl<E: Real> Formula<E> {
    fn of(constants: AdamW, [rate, correction1, correction2]: [E; 3], clip: E) -> Self {
        let share = |beta: f64| [E::of(beta), E::of(1.0 - beta)];
        Self {
            clip,
            first: share(constants.beta1),
            second: share(constants.beta2),
            step_size: rate / correction1,
            inverse_root: E::ONE / correction2.sqrt(),
            epsilon: E::of(constants.epsilon),
        }
    }

    /// Parameters and moments after a gradient.
    #[inline(always)]
    fn update(self, g: &[E], decay: E, p: &mut [E], m: &mut [E], v: &mut [E]) {
        let ([beta1, rest1], [beta2, rest2]) = (self.first, self.second);
        for (((p, m), v), &g) in p.iter_mut().zip(m).zip(v).zip(g) {
            let g = g * self.clip;
            *m = beta1.mul_add(*m, rest1 * g);
            *v = beta2.mul_add(*v, rest2 * g * g);
            let root = v.sqrt().mul_add(self.inverse_root, self.epsilon);
            *p = *p * decay - self.step_size * (*m / root);
        }
    }
}

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
        let formula = Formula::of(constants, [rate, correction1, correction2], clip);
        let decay = E::ONE - rate * E::of(constants.weight_decay);
        let gradient = args.gradient.row(0);
        (args.parameters.row_mut(0).par_chunks_mut(SHARE))
            .zip(args.first_moment.row_mut(0).par_chunks_mut(SHARE))
            .zip(args.second_moment.row_mut(0).par_chunks_mut(SHARE))
            .zip(gradient.par_chunks(SHARE))
            .enumerate()
            .for_each(|(share, (((p, m), v), g))| {
                let decayed = args.decayed.saturating_sub(share * SHARE).min(p.len());
                vectorised(
                    #[inline(always)]
                    || {
                        let (p, rest_p) = p.split_at_mut(decayed);
                        let (m, rest_m) = m.split_at_mut(decayed);
                        let (v, rest_v) = v.split_at_mut(decayed);
                        let (g, rest_g) = g.split_at(decayed);
                        formula.update(g, decay, p, m, v);
                        formula.update(rest_g, E::ONE, rest_p, rest_m, rest_v);
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
