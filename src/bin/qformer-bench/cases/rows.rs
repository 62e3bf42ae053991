//! What is done row by row or element by element.

use super::tensor::Tensor;
use super::{CAPTION, Cases, Cost};
use qformer::Result;
use qformer::config::Activation;
use qformer::ops::Backend;
use qformer::ops::activation::{ActivationBackward, ActivationForward};
use qformer::ops::dropout::{Dropout, DropoutBackward, DropoutForward};
use qformer::ops::embedding::{EmbeddingBackward, EmbeddingForward};
use qformer::ops::layer_norm::{LayerNormBackward, LayerNormForward, LayerNormGradients};
use qformer::ops::normalize::{NormalizeBackward, NormalizeForward};
use qformer::ops::pool::{PoolBackward, PoolForward};
use qformer::ops::scatter::Scatter;

pub(super) fn measure<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    let (config, batch) = (cases.config, cases.batch);
    let (hidden, rows) = (config.qformer.hidden_size, config.num_query_tokens * batch);
    layer_norm(cases, rows, hidden)?;
    image_norm(cases, config.image_tokens() * batch, config.vision.width())?;
    embedding(cases, CAPTION * batch, hidden)?;
    activation(cases, rows, config.qformer.intermediate_size)?;
    dropout(cases, rows, hidden)?;
    pool(cases, rows, hidden)?;
    scatter(cases, batch, hidden)?;
    normalize(cases, rows, config.image_text_hidden_size)
}

fn layer_norm<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{rows}×{width}"));
    let (mut x, mut residual) = (Tensor::random(device, rows, width)?, Tensor::random(device, rows, width)?);
    let (mut weight, mut bias) = (Tensor::random(device, 1, width)?, Tensor::random(device, 1, width)?);
    let (mut sum, mut y) = (Tensor::zeros(device, rows, width)?, Tensor::unwritten(device, rows, width)?);
    let mut statistics = Tensor::zeros(device, rows, 2)?;
    let vectors = cases.elements(2 * width) + cases.statistics(2 * rows);
    let cost = Cost::bytes(cases.elements(4 * rows * width) + vectors);
    cases.case("layer norm of a sum", &shape, cost, &mut y, |y| {
        device.layer_norm_forward(LayerNormForward {
            x: x.view(),
            dropout: None,
            residual: Some(residual.view()),
            weight: weight.view(),
            bias: bias.view(),
            epsilon: 1e-12,
            sum: Some(sum.view_mut()),
            statistics: Some(statistics.view_mut()),
            y: y.view_mut(),
        })
    })?;
    let (mut dweight, mut dbias) = (Tensor::zeros(device, 1, width)?, Tensor::zeros(device, 1, width)?);
    let mut partials = Tensor::zeros(device, device.layer_norm_partials(rows), 2 * width)?;
    let (mut dy, mut dsum) = (residual, x);
    let vectors = cases.elements(width) + cases.statistics(2 * rows + 4 * width);
    let cost = Cost::bytes(cases.elements(3 * rows * width) + vectors);
    cases.case("layer norm backward", &shape, cost, &mut dsum, |dsum| {
        device.layer_norm_backward(LayerNormBackward {
            dropout: None,
            sum: sum.view(),
            statistics: statistics.view(),
            weight: weight.view(),
            dy: dy.view(),
            dsum: dsum.view_mut(),
            dx: None,
            parameters: Some(LayerNormGradients {
                partials: partials.view_mut(),
                dweight: dweight.view_mut(),
                dbias: dbias.view_mut(),
            }),
        })
    })
}

/// The image encoder's last norm, in inference.
fn image_norm<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let device = cases.device;
    let (mut x, mut y) = (Tensor::random(device, rows, width)?, Tensor::unwritten(device, rows, width)?);
    let (mut weight, mut bias) = (Tensor::random(device, 1, width)?, Tensor::random(device, 1, width)?);
    let cost = Cost::bytes(cases.elements(2 * rows * width + 2 * width));
    cases.case("layer norm", &format!("{rows}×{width}"), cost, &mut y, |y| {
        device.layer_norm_forward(LayerNormForward {
            x: x.view(),
            dropout: None,
            residual: None,
            weight: weight.view(),
            bias: bias.view(),
            epsilon: 1e-6,
            sum: None,
            statistics: None,
            y: y.view_mut(),
        })
    })
}

fn embedding<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, config) = (cases.device, &cases.config.qformer);
    let (words, places) = (config.vocab_size, config.max_position_embeddings);
    let shape = format!("{rows} of {words}×{width}");
    // Spread over the vocabulary, as words are; 7919 is prime.
    let ids: Vec<u32> = (0..rows).map(|i| (i * 7919 % words) as u32).collect();
    let positions: Vec<u32> = (0..rows).map(|i| (i % CAPTION.min(places)) as u32).collect();
    let (mut ids, mut positions) = (Tensor::indices(device, &ids)?, Tensor::indices(device, &positions)?);
    let (mut table, mut second) =
        (Tensor::<B>::random(device, words, width)?, Tensor::random(device, places, width)?);
    let mut y = Tensor::unwritten(device, rows, width)?;
    let indices = 2 * rows * size_of::<u32>();
    let cost = Cost::bytes(cases.elements((2 * rows + CAPTION) * width) + indices);
    cases.case("embedding", &shape, cost, &mut y, |y| {
        device.embedding_forward(EmbeddingForward {
            ids: ids.view(),
            table: table.view().into(),
            positions: Some((positions.view(), second.view())),
            y: y.view_mut(),
        })
    })?;
    let (mut dtable, mut dsecond) =
        (Tensor::zeros(device, words, width)?, Tensor::zeros(device, places, width)?);
    let mut dy = Tensor::random(device, rows, width)?;
    let sums = cases.statistics(2 * (rows + CAPTION) * width);
    let cost = Cost::bytes(cases.elements(rows * width) + sums + indices);
    cases.case("embedding backward", &shape, cost, &mut dtable, |dtable| {
        device.embedding_backward(EmbeddingBackward {
            ids: ids.view(),
            frozen: None,
            dy: dy.view(),
            dtable: dtable.view_mut(),
            dpositions: Some((positions.view(), dsecond.view_mut())),
        })
    })
}

fn activation<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{rows}×{width}"));
    let (mut x, mut y) = (Tensor::random(device, rows, width)?, Tensor::unwritten(device, rows, width)?);
    let cost = Cost::bytes(cases.elements(2 * rows * width));
    cases.case("GELU", &shape, cost, &mut y, |y| {
        let activation = Activation::Gelu;
        device.activation_forward(ActivationForward { activation, x: x.view(), y: y.view_mut() })
    })?;
    // In place: where the derivative is one, the gradient stays what it is however often it is taken.
    let mut x = Tensor::random_with(device, rows, width, |x| x + 8.0)?;
    let mut dy = Tensor::random(device, rows, width)?;
    let cost = Cost::bytes(cases.elements(3 * rows * width));
    cases.case("GELU backward", &shape, cost, &mut dy, |dy| {
        let activation = Activation::Gelu;
        device.activation_backward(ActivationBackward { activation, x: x.view(), dy: dy.view_mut() })
    })
}

/// Keys and values of a token of each sequence, to a cache of captions.
fn scatter<B: Backend>(cases: &mut Cases<'_, B>, sequences: usize, hidden: usize) -> Result<()> {
    let (device, width, rows) = (cases.device, 2 * hidden, sequences * CAPTION);
    let shape = format!("{sequences} of {rows}×{width}");
    let ids: Vec<u32> = (0..sequences).map(|i| (i * CAPTION) as u32).collect();
    let (mut ids, mut x) = (Tensor::indices(device, &ids)?, Tensor::random(device, sequences, width)?);
    let mut y = Tensor::zeros(device, rows, width)?;
    let cost = Cost::bytes(cases.elements(2 * sequences * width) + sequences * size_of::<u32>());
    cases.case("scatter", &shape, cost, &mut y, |y| {
        device.scatter(Scatter { ids: ids.view(), x: x.view(), y: y.view_mut() })
    })
}

fn dropout<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{rows}×{width}"));
    let (mut x, mut y) = (Tensor::random(device, rows, width)?, Tensor::unwritten(device, rows, width)?);
    let mut key = Tensor::indices(device, &[1, 1])?;
    let dropout = Dropout { probability: 0.1, site: 1, key: key.view() };
    let cost = Cost::bytes(cases.elements(2 * rows * width));
    cases.case("dropout", &shape, cost, &mut y, |y| {
        device.dropout_forward(DropoutForward { dropout, x: x.view(), y: y.view_mut() })
    })?;
    cases.case("dropout backward", &shape, cost, &mut y, |y| {
        device.dropout_backward(DropoutBackward { dropout, dy: x.view(), dx: y.view_mut() })
    })
}

fn pool<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, groups) = (cases.device, cases.batch);
    let shape = format!("{rows}×{width}→{groups}");
    let (mut x, mut y) = (Tensor::random(device, rows, width)?, Tensor::unwritten(device, groups, width)?);
    let cost = Cost::bytes(cases.elements((rows + groups) * width));
    cases.case("pool", &shape, cost, &mut y, |y| {
        device.pool_forward(PoolForward { x: x.view(), y: y.view_mut() })
    })?;
    cases.case("pool backward", &shape, cost, &mut x, |x| {
        device.pool_backward(PoolBackward { dy: y.view(), dx: x.view_mut() })
    })
}

fn normalize<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, width: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{rows}×{width}"));
    let (mut x, mut y) = (Tensor::random(device, rows, width)?, Tensor::unwritten(device, rows, width)?);
    let cost = Cost::bytes(cases.elements(2 * rows * width));
    cases.case("normalize", &shape, cost, &mut y, |y| {
        device.normalize_forward(NormalizeForward { x: x.view(), y: y.view_mut() })
    })?;
    let mut dx = Tensor::unwritten(device, rows, width)?;
    let cost = Cost::bytes(cases.elements(3 * rows * width));
    cases.case("normalize backward", &shape, cost, &mut dx, |dx| {
        device.normalize_backward(NormalizeBackward { x: x.view(), dy: y.view(), dx: dx.view_mut() })
    })
}
