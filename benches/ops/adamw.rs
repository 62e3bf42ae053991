use crate::common::{Tensor, bytes, measure};
use criterion::Criterion;
use qformer::device::{Cpu, Device};
use qformer::ops::adamw::{AdamW, AdamWOp, AdamWStep};

/// Parameters of a layer and a half, more than a processor's caches hold.
const PARAMETERS: usize = 16 << 20;

pub(crate) fn benchmark(criterion: &mut Criterion) {
    let constants = AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.05, max_norm: Some(1.0) };
    let (mut schedule, mut norm) = (Tensor::output(1, 3), Tensor::output(1, 1));
    // The hundredth step.
    let corrections = [constants.beta1, constants.beta2].map(|beta| (1.0 - beta.powi(100)) as f32);
    Cpu::<f32>::new().write(&[1e-4, corrections[0], corrections[1]], 0, schedule.view_mut()).unwrap();
    Cpu::<f32>::new().write(&[2.0], 0, norm.view_mut()).unwrap();
    let (mut gradient, mut first_moment, mut second_moment) =
        (Tensor::rows(1, PARAMETERS), Tensor::output(1, PARAMETERS), Tensor::output(1, PARAMETERS));
    let mut parameters = Tensor::rows(1, PARAMETERS);
    measure(criterion, "AdamW", "16 Mi", bytes(7 * PARAMETERS), &mut parameters, |parameters| {
        let args = AdamWStep {
            constants,
            schedule: schedule.view(),
            gradient: gradient.view(),
            norm: norm.view(),
            decayed: PARAMETERS,
            parameters: parameters.view_mut(),
            first_moment: first_moment.view_mut(),
            second_moment: second_moment.view_mut(),
            weights: None,
        };
        Cpu::new().adamw_step(args).unwrap();
    });
}
