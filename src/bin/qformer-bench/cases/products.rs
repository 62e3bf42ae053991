//! The linear layers, and cross-attention without keys and values.

use super::tensor::{FrozenWeight, Tensor};
use super::{CAPTION, Cases, Cost};
use qformer::Result;
use qformer::config::Activation;
use qformer::device::Write;
use qformer::ops::Backend;
use qformer::ops::absorbed_attention::{AbsorbedAttentionForward, CrossSizes};
use qformer::ops::linear::{LinearBackward, LinearForward};
use qformer::tensor::{Number, NumberType};

/// Width of OPT-2.7B, BLIP-2's smaller language model: a layer's largest weight is 52 MB.
const LANGUAGE_WIDTH: usize = 2560;

/// Which gradients a backward product forms besides the bias's.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gradients {
    /// Of the weight: what it reads is constant.
    Weight,
    /// Of the weight and of what it reads.
    WeightAndInput,
}

pub(super) fn measure<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    let sizes = CrossSizes::of(cases.config);
    let CrossSizes { queries, hidden, image_tokens, image_width, .. } = sizes;
    let feed_forward = cases.config.qformer.intermediate_size;
    let embedding = cases.config.image_text_hidden_size;
    let keys_values = 2 * hidden * cases.config.qformer.cross_attention_layers().count();
    let (rows, image_rows) = (queries * cases.batch, image_tokens * cases.batch);
    let gelu = Some(Activation::Gelu);
    let encoder = cases.config.vision.encoder().ok();
    let of_encoder = encoder.map(|vision| ([image_rows, image_width, vision.intermediate_size], gelu));

    for (shape, activation) in [
        ([image_rows, image_width, keys_values], None),
        ([rows, hidden, 3 * hidden], None),
        ([rows, hidden, hidden], None),
        ([rows, hidden, feed_forward], gelu),
        ([rows, feed_forward, hidden], None),
        ([rows, hidden, embedding], None),
        ([queries, hidden, 3 * hidden], None),
        ([queries, hidden, feed_forward], gelu),
        ([queries, feed_forward, hidden], None),
        ([CAPTION, hidden, feed_forward], gelu),
    ]
    .into_iter()
    .chain(of_encoder)
    {
        forward(cases, shape, activation)?;
    }
    for (shape, gradients) in [
        ([image_rows, image_width, keys_values], Gradients::Weight),
        ([rows, hidden, feed_forward], Gradients::WeightAndInput),
        ([rows, feed_forward, hidden], Gradients::WeightAndInput),
    ] {
        backward(cases, shape, gradients)?;
    }
    for rows in [1, 5, 10, 40] {
        for (dtype, name) in [(NumberType::Bf16, "gemm, bf16 weight"), (NumberType::F16, "gemm, f16 weight")]
        {
            frozen(cases, [rows, LANGUAGE_WIDTH, 4 * LANGUAGE_WIDTH], dtype, name)?;
        }
    }
    absorbed(cases, sizes)
}

/// Operations of a product.
fn flops([rows, inputs, outputs]: [usize; 3]) -> f64 {
    2.0 * rows as f64 * inputs as f64 * outputs as f64
}

fn forward<B: Backend>(
    cases: &mut Cases<'_, B>,
    [rows, inputs, outputs]: [usize; 3],
    activation: Option<Activation>,
) -> Result<()> {
    let device = cases.device;
    let (mut x, mut y) = (Tensor::random(device, rows, inputs)?, Tensor::unwritten(device, rows, outputs)?);
    let mut weight = FrozenWeight::random(device, outputs, inputs)?;
    let mut bias = Tensor::random(device, 1, outputs)?;
    let bytes = cases.elements(rows * inputs + outputs * inputs + outputs + rows * outputs);
    let cost = Cost { flops: flops([rows, inputs, outputs]), bytes: bytes as f64 };
    let name = if activation.is_some() { "gemm, GELU" } else { "gemm" };
    cases.case(name, &format!("{rows}×{inputs}→{outputs}"), cost, &mut y, |y| {
        device.linear_forward(LinearForward {
            x: x.view(),
            weight: weight.weight(),
            bias: Some(bias.view()),
            activation,
            residual: None,
            pre_activation: None,
            y: y.view_mut(),
        })
    })
}

/// A layer of a language model whose weights are stored as `dtype`, where a device has numbers of that type beside its
/// own. Of few rows, the time is that of reading the weight.
fn frozen<B: Backend>(
    cases: &mut Cases<'_, B>,
    [rows, inputs, outputs]: [usize; 3],
    dtype: NumberType,
    name: &str,
) -> Result<()> {
    let device = cases.device;
    if dtype == B::Elem::TYPE || device.frozen_type(dtype) != dtype {
        return Ok(());
    }
    let (mut x, mut y) = (Tensor::random(device, rows, inputs)?, Tensor::unwritten(device, rows, outputs)?);
    let mut weight = FrozenWeight::random_as(device, dtype, outputs, inputs)?;
    let bytes = cases.elements(rows * inputs + rows * outputs) + dtype.bytes() * outputs * inputs;
    let cost = Cost { flops: flops([rows, inputs, outputs]), bytes: bytes as f64 };
    cases.case(name, &format!("{rows}×{inputs}→{outputs}"), cost, &mut y, |y| {
        device.linear_forward(LinearForward {
            x: x.view(),
            weight: weight.weight(),
            bias: None,
            activation: None,
            residual: None,
            pre_activation: None,
            y: y.view_mut(),
        })
    })
}

fn backward<B: Backend>(
    cases: &mut Cases<'_, B>,
    [rows, inputs, outputs]: [usize; 3],
    gradients: Gradients,
) -> Result<()> {
    let device = cases.device;
    let with_input = gradients == Gradients::WeightAndInput;
    let (mut x, mut dy) = (Tensor::random(device, rows, inputs)?, Tensor::random(device, rows, outputs)?);
    let mut weight = Tensor::<B>::random(device, outputs, inputs)?;
    let mut dx = Tensor::zeros(device, if with_input { rows } else { 0 }, inputs)?;
    let mut dweight = Tensor::zeros(device, outputs, inputs)?;
    let mut dbias = Tensor::zeros(device, 1, outputs)?;
    let mut elements = rows * inputs + rows * outputs;
    if with_input {
        elements += outputs * inputs + rows * inputs;
    }
    let products = if with_input { 2.0 } else { 1.0 };
    let cost = Cost {
        flops: products * flops([rows, inputs, outputs]),
        bytes: (cases.elements(elements) + cases.statistics(2 * (outputs * inputs + outputs))) as f64,
    };
    let name = if with_input { "gemm backward" } else { "gemm backward, no dx" };
    cases.case(name, &format!("{rows}×{inputs}→{outputs}"), cost, &mut dweight, |dweight| {
        device.linear_backward(LinearBackward {
            x: x.view(),
            weight: weight.view().into(),
            dy: dy.view(),
            activation: None,
            dx: with_input.then(|| (Write::Replace, dx.view_mut())),
            dweight: dweight.view_mut(),
            dbias: Some(dbias.view_mut()),
        })
    })
}

fn absorbed<B: Backend>(cases: &mut Cases<'_, B>, sizes: CrossSizes) -> Result<()> {
    let (device, images) = (cases.device, cases.batch);
    if !sizes.absorbs(device.frozen_packing(sizes.image_width)) {
        return Ok(());
    }
    let CrossSizes { heads, queries, hidden, image_tokens, image_width } = sizes;
    let (rows, image_rows) = (images * queries, images * image_tokens);
    let (mut q, mut out) = (Tensor::random(device, rows, hidden)?, Tensor::unwritten(device, rows, hidden)?);
    let mut image = Tensor::random(device, image_rows, image_width)?;
    let mut key_weight = FrozenWeight::random(device, hidden, image_width)?;
    let mut value_weight = FrozenWeight::random(device, hidden, image_width)?;
    let mut value_bias = Tensor::random(device, 1, hidden)?;
    let elements = 2 * rows * hidden + image_rows * image_width + 2 * hidden * image_width + hidden;
    let cost = Cost {
        flops: 4.0 * (rows * image_width) as f64 * (hidden + heads * image_tokens) as f64,
        bytes: cases.elements(elements) as f64,
    };
    let shape = format!("{images} × {queries} over {image_tokens}×{image_width}");
    cases.case("absorbed attention", &shape, cost, &mut out, |out| {
        device.absorbed_attention(AbsorbedAttentionForward {
            heads,
            scale: ((hidden / heads) as f64).sqrt().recip(),
            q: q.view(),
            image: image.view(),
            key_weight: key_weight.weight().matrix(),
            value_weight: value_weight.weight().matrix(),
            value_bias: value_bias.view(),
            images,
            out: out.view_mut(),
        })
    })
}
