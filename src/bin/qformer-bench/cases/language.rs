//! What language models do beside products and attention.

use super::tensor::Tensor;
use super::{Cases, Cost};
use qformer::Result;
use qformer::config::Activation;
use qformer::device::Write;
use qformer::ops::Backend;
use qformer::ops::gate::{GateBackward, GateForward};
use qformer::ops::rms_norm::{RmsNormBackward, RmsNormForward, RmsNormGradients};
use qformer::ops::top_k::TopK;

/// D and F of FLAN-T5 XL.
const SIZES: [usize; 2] = [2048, 5120];
/// OPT's vocabulary.
const WORDS: usize = 50_272;
/// Words that may follow: two for each of five beams.
const CHOICES: usize = 10;

pub(super) fn measure<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    let (rows, sequences) = (cases.config.num_query_tokens * cases.batch, cases.batch);
    let [width, intermediate] = SIZES;
    rms_norm(cases, rows, width)?;
    gate(cases, rows, intermediate)?;
    top_k(cases, sequences, WORDS)
}

fn rms_norm<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{rows}×{width}"));
    let (mut x, mut weight) = (Tensor::random(device, rows, width)?, Tensor::random(device, 1, width)?);
    let (mut statistics, mut y) = (Tensor::zeros(device, rows, 1)?, Tensor::unwritten(device, rows, width)?);
    let cost = Cost::bytes(cases.elements(2 * rows * width + width) + cases.statistics(rows));
    cases.case("RMS norm", &shape, cost, &mut y, |y| {
        device.rms_norm_forward(RmsNormForward {
            epsilon: 1e-6,
            scale: 1.0,
            x: x.view(),
            weight: weight.view(),
            statistics: Some(statistics.view_mut()),
            y: y.view_mut(),
        })
    })?;
    let mut dweight = Tensor::zeros(device, 1, width)?;
    let mut partials = Tensor::zeros(device, device.rms_norm_partials(rows), width)?;
    let (mut dy, mut dx) = (y, Tensor::unwritten(device, rows, width)?);
    let vectors = cases.elements(width) + cases.statistics(rows + 2 * width);
    let cost = Cost::bytes(cases.elements(3 * rows * width) + vectors);
    cases.case("RMS norm backward", &shape, cost, &mut dx, |dx| {
        device.rms_norm_backward(RmsNormBackward {
            scale: 1.0,
            x: x.view(),
            weight: weight.view(),
            statistics: statistics.view(),
            dy: dy.view(),
            write: Write::Replace,
            dx: dx.view_mut(),
            gradients: Some(RmsNormGradients { partials: partials.view_mut(), dweight: dweight.view_mut() }),
        })
    })
}

fn gate<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{rows}×{width}"));
    let activation = Activation::GeluTanh;
    let (mut x, mut y) = (Tensor::random(device, rows, 2 * width)?, Tensor::unwritten(device, rows, width)?);
    let cost = Cost::bytes(cases.elements(3 * rows * width));
    cases.case("gated GELU", &shape, cost, &mut y, |y| {
        device.gate_forward(GateForward { activation, x: x.view(), y: y.view_mut() })
    })?;
    let (mut dy, mut dx) = (y, Tensor::unwritten(device, rows, 2 * width)?);
    let cost = Cost::bytes(cases.elements(5 * rows * width));
    cases.case("gated GELU backward", &shape, cost, &mut dx, |dx| {
        device.gate_backward(GateBackward { activation, x: x.view(), dy: dy.view(), dx: dx.view_mut() })
    })
}

fn top_k<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, words: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{CHOICES} of {rows}×{words}"));
    let (mut logits, mut lse) = (Tensor::random(device, rows, words)?, Tensor::zeros(device, 1, rows)?);
    let (mut ids, mut values) =
        (Tensor::zeros(device, rows, CHOICES)?, Tensor::unwritten(device, rows, CHOICES)?);
    let results = cases.statistics(rows * (CHOICES + 1)) + rows * CHOICES * size_of::<u32>();
    let cost = Cost::bytes(cases.elements(rows * words) + results);
    cases.case("top k", &shape, cost, &mut values, |values| {
        device.top_k(TopK {
            logits: logits.view(),
            asked: None,
            lse: lse.view_mut(),
            ids: ids.view_mut(),
            values: values.view_mut(),
        })
    })
}
