//! What is done once a step over all parameters.

use super::tensor::Tensor;
use super::{Cases, Cost};
use qformer::ops::Backend;
use qformer::ops::adamw::{AdamW, AdamWStep};
use qformer::ops::fold::{FoldBackward, FoldForward};
use qformer::ops::norm::{Norm, PARTIAL_SUMS};
use qformer::params::Tree;
use qformer::train::Stage1Parameters;
use qformer::{Matching, Result};

pub(super) fn measure<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    let mut count = 0;
    Stage1Parameters::spec(cases.config, Matching::Classifier).map(&mut |spec| {
        count += spec.parts.iter().map(qformer::params::Part::len).sum::<usize>();
    });
    optimiser(cases, count)?;
    let config = cases.config;
    let layers = config.qformer.cross_attention_layers().count();
    fold(cases, 2 * layers * config.qformer.hidden_size, config.vision.width())
}

fn optimiser<B: Backend>(cases: &mut Cases<'_, B>, count: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{count}"));
    let mut gradient = Tensor::<B, B::Stat>::random(device, 1, count)?;
    let (mut partial_sums, mut norm) =
        (Tensor::zeros(device, 1, PARTIAL_SUMS)?, Tensor::unwritten(device, 1, 1)?);
    let cost = Cost::bytes(cases.statistics(count));
    cases.case("norm of the gradient", &shape, cost, &mut norm, |norm| {
        let (x, norm) = (gradient.view(), norm.view_mut());
        device.norm(Norm { x, partial_sums: partial_sums.view_mut(), norm })
    })?;
    let mut parameters = Tensor::<B, B::Stat>::random(device, 1, count)?;
    let (mut first_moment, mut second_moment) =
        (Tensor::<B, B::Stat>::zeros(device, 1, count)?, Tensor::<B, B::Stat>::zeros(device, 1, count)?);
    // Where weights are as precise as parameters, they are the parameters.
    let rounded = if size_of::<B::Elem>() < size_of::<B::Stat>() { count } else { 0 };
    let mut weights = Tensor::<B>::zeros(device, 1, rounded)?;
    let mut schedule = Tensor::<B, B::Stat>::zeros(device, 1, 3)?;
    // The first step's, at a rate at which parameters stay parameters however often it is taken.
    device.write(&[1e-6, 0.1, 0.02], 0, schedule.view_mut())?;
    let constants = AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.05, max_norm: Some(1.0) };
    let cost = Cost::bytes(cases.statistics(7 * count) + cases.elements(rounded));
    cases.case("AdamW", &shape, cost, &mut parameters, |parameters| {
        device.adamw_step(AdamWStep {
            constants,
            schedule: schedule.view(),
            gradient: gradient.view(),
            norm: norm.view(),
            decayed: count,
            parameters: parameters.view_mut(),
            first_moment: first_moment.view_mut(),
            second_moment: second_moment.view_mut(),
            weights: (rounded > 0).then(|| weights.view_mut()),
        })
    })
}

fn fold<B: Backend>(cases: &mut Cases<'_, B>, outputs: usize, inputs: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{outputs}×{inputs}"));
    let (mut weight, mut folded_weight) =
        (Tensor::random(device, outputs, inputs)?, Tensor::unwritten(device, outputs, inputs)?);
    let (mut bias, mut folded_bias) =
        (Tensor::random(device, 1, outputs)?, Tensor::zeros(device, 1, outputs)?);
    let (mut norm_weight, mut norm_bias) =
        (Tensor::random(device, 1, inputs)?, Tensor::random(device, 1, inputs)?);
    let cost = Cost::bytes(cases.elements(2 * (outputs * inputs + outputs + inputs)));
    cases.case("fold of a norm", &shape, cost, &mut folded_weight, |folded_weight| {
        device.fold_forward(FoldForward {
            weight: weight.view(),
            bias: bias.view(),
            norm_weight: norm_weight.view(),
            norm_bias: norm_bias.view(),
            folded_weight: folded_weight.view_mut(),
            folded_bias: folded_bias.view_mut(),
        })
    })?;
    let mut dfolded_weight = Tensor::<B, B::Stat>::random(device, outputs, inputs)?;
    let mut dfolded_bias = Tensor::<B, B::Stat>::random(device, 1, outputs)?;
    let (mut dweight, mut dbias) =
        (Tensor::zeros(device, outputs, inputs)?, Tensor::zeros(device, 1, outputs)?);
    let (mut dnorm_weight, mut dnorm_bias) =
        (Tensor::zeros(device, 1, inputs)?, Tensor::zeros(device, 1, inputs)?);
    // Gradients are added to: read and written.
    let gradients = cases.statistics(3 * (outputs * inputs + outputs) + 4 * inputs);
    let cost = Cost::bytes(cases.elements(outputs * inputs + 2 * inputs) + gradients);
    cases.case("fold of a norm backward", &shape, cost, &mut dweight, |dweight| {
        device.fold_backward(FoldBackward {
            weight: weight.view(),
            norm_weight: norm_weight.view(),
            norm_bias: norm_bias.view(),
            dfolded_weight: dfolded_weight.view(),
            dfolded_bias: dfolded_bias.view(),
            dweight: dweight.view_mut(),
            dbias: dbias.view_mut(),
            dnorm_weight: dnorm_weight.view_mut(),
            dnorm_bias: dnorm_bias.view_mut(),
        })
    })
}
