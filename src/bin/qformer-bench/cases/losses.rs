//! Similarities and the three objectives.

use super::tensor::{Finite, Tensor};
use super::{CAPTION, Cases, Cost};
use qformer::Result;
use qformer::ops::Backend;
use qformer::ops::contrastive::{
    ContrastiveBackward, ContrastiveBatch, ContrastiveForward, ContrastiveGradient, Negatives,
    workspace_words,
};
use qformer::ops::cross_entropy::{CrossEntropyBackward, CrossEntropyForward};
use qformer::ops::matching::{MatchingBackward, MatchingForm, MatchingForward, MatchingGradient};
use qformer::ops::similarity::{Pairing, SimilarityBackward, SimilarityForward};

const SMOOTHING: f64 = 0.1;

pub(super) fn measure<B: Backend>(cases: &mut Cases<'_, B>) -> Result<()> {
    let batch = cases.batch;
    similarity(cases, batch)?;
    // Images and texts of several GPUs are gathered.
    for gathered in [1, 4, 16] {
        contrastive(cases, gathered * batch)?;
    }
    // LAVIS's three pairs: the positive, and a negative of the image and of the text.
    matching(cases, 3 * batch)?;
    cross_entropy(cases, (CAPTION - 1) * batch, cases.config.qformer.vocab_size)
}

fn similarity<B: Backend>(cases: &mut Cases<'_, B>, count: usize) -> Result<()> {
    let (device, queries) = (cases.device, cases.config.num_query_tokens);
    let width = cases.config.image_text_hidden_size;
    let shape = format!("{count}·{queries} by {count}, {width}");
    let (mut images, mut texts) =
        (Tensor::random(device, count * queries, width)?, Tensor::random(device, count, width)?);
    let (mut similarity, mut winner) =
        (Tensor::unwritten(device, count, count)?, Tensor::zeros(device, count, count)?);
    let operands = cases.elements((count * queries + count) * width + count * count);
    let indices = count * count * size_of::<u32>();
    let product = 2.0 * (count * queries * count * width) as f64;
    let cost = Cost { flops: product, bytes: (operands + indices) as f64 };
    cases.case("similarity", &shape, cost, &mut similarity, |similarity| {
        device.similarity_forward(SimilarityForward {
            pairing: Pairing::All,
            queries: images.view(),
            texts: texts.view(),
            similarity: similarity.view_mut(),
            winner: Some(winner.view_mut()),
        })
    })?;
    let (mut dqueries, mut dtexts) =
        (Tensor::zeros(device, count * queries, width)?, Tensor::zeros(device, count, width)?);
    let gradients = cases.elements((count * queries + count) * width);
    // Of each pair the winning query alone has a gradient, and gives one to the text.
    let cost =
        Cost { flops: 4.0 * (count * count * width) as f64, bytes: (operands + gradients + indices) as f64 };
    cases.case("similarity backward", &shape, cost, &mut dtexts, |dtexts| {
        device.similarity_backward(SimilarityBackward {
            pairing: Pairing::All,
            queries: images.view(),
            texts: texts.view(),
            winner: winner.view(),
            dsimilarity: similarity.view(),
            dqueries: dqueries.view_mut(),
            dtexts: dtexts.view_mut(),
        })
    })
}

fn contrastive<B: Backend>(cases: &mut Cases<'_, B>, count: usize) -> Result<()> {
    let (device, queries) = (cases.device, cases.config.num_query_tokens);
    let width = cases.config.image_text_hidden_size;
    let shape = format!("{count}·{queries} by {count}, {width}");
    let (mut images, mut texts) =
        (Tensor::random(device, count * queries, width)?, Tensor::random(device, count, width)?);
    // Rows of random numbers in (-1, 1) have a length of √(width/3), and not one.
    let mut temperature = Tensor::<B, B::Stat>::zeros(device, 1, 1)?;
    device.write(&[0.07 * width as f32 / 3.0], 0, temperature.view_mut())?;
    let ids: Vec<u32> = (0..count as u32).collect();
    let (mut image_ids, mut text_ids) = (Tensor::indices(device, &ids)?, Tensor::indices(device, &ids)?);
    let mut key = Tensor::indices(device, &[1, 1])?;
    let batch = ContrastiveBatch {
        queries: images.view(),
        texts: texts.view(),
        temperature: temperature.view(),
        image_ids: image_ids.view(),
        text_ids: text_ids.view(),
        smoothing: SMOOTHING,
    };
    let (mut image_statistics, mut text_statistics) =
        (Tensor::zeros(device, 2, count)?, Tensor::zeros(device, 2, count)?);
    let (mut winner, mut loss) =
        (Tensor::zeros(device, count, count)?, Finite(Tensor::unwritten(device, 1, 1)?));
    let mut recalled = Tensor::zeros(device, 1, 2)?;
    let (mut negative_texts, mut negative_images) =
        (Tensor::zeros(device, 1, count)?, Tensor::zeros(device, 1, count)?);
    let mut workspace = Tensor::zeros(device, 1, workspace_words(count, count, [queries, width]))?;
    let operands = cases.elements((count * queries + count) * width) + count * count;
    let statistics = cases.statistics(4 * count) + 2 * count * size_of::<u32>();
    let product = 2.0 * (count * queries * count * width) as f64;
    let cost = Cost { flops: product, bytes: (operands + statistics) as f64 };
    cases.case("contrastive loss", &shape, cost, &mut loss, |loss| {
        device.contrastive_forward(ContrastiveForward {
            batch,
            negatives: Negatives::Sampled { key: key.view(), site: 1 },
            image_statistics: image_statistics.view_mut(),
            text_statistics: text_statistics.view_mut(),
            winner: winner.view_mut(),
            loss: loss.0.view_mut(),
            recalled: recalled.view_mut(),
            negative_texts: negative_texts.view_mut(),
            negative_images: negative_images.view_mut(),
            workspace: workspace.view_mut(),
        })
    })?;
    let mut dqueries = Tensor::zeros(device, count * queries, width)?;
    // One text among one is certain: no gradient.
    let mut dtexts = Finite(Tensor::unwritten(device, count, width)?);
    let mut dtemperature = Tensor::zeros(device, 1, 1)?;
    let gradients = cases.elements((count * queries + count) * width);
    // The winners' logits again, and two gradients of each pair.
    let cost = Cost {
        flops: 6.0 * (count * count * width) as f64,
        bytes: (operands + gradients + statistics) as f64,
    };
    cases.case("contrastive loss backward", &shape, cost, &mut dtexts, |dtexts| {
        device.contrastive_backward(ContrastiveBackward {
            batch,
            gradient: ContrastiveGradient::OneSided,
            weight: 1.0,
            image_statistics: image_statistics.view(),
            text_statistics: text_statistics.view(),
            winner: winner.view(),
            dqueries: dqueries.view_mut(),
            dtexts: dtexts.0.view_mut(),
            dtemperature: dtemperature.view_mut(),
            workspace: workspace.view_mut(),
        })
    })
}

fn matching<B: Backend>(cases: &mut Cases<'_, B>, pairs: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{pairs}×2"));
    let labels: Vec<u32> = (0..pairs).map(|pair| u32::from(pair % 3 == 0)).collect();
    let (mut labels, mut logits) = (Tensor::indices(device, &labels)?, Tensor::random(device, pairs, 2)?);
    let (mut loss, mut correct) = (Tensor::unwritten(device, 1, 1)?, Tensor::zeros(device, 1, 2)?);
    let mut dlogits = Tensor::unwritten(device, pairs, 2)?;
    let form = MatchingForm::Classifier { logits: logits.view() };
    let indices = pairs * size_of::<u32>();
    let cost = Cost::bytes(cases.elements(2 * pairs) + indices);
    cases.case("matching loss", &shape, cost, &mut loss, |loss| {
        let (labels, loss) = (labels.view(), loss.view_mut());
        device.matching_forward(MatchingForward { form, labels, loss, correct: correct.view_mut() })
    })?;
    let cost = Cost::bytes(cases.elements(4 * pairs) + indices);
    cases.case("matching loss backward", &shape, cost, &mut dlogits, |dlogits| {
        device.matching_backward(MatchingBackward {
            form,
            labels: labels.view(),
            correct: correct.view(),
            weight: 1.0,
            gradient: MatchingGradient::Classifier { dlogits: dlogits.view_mut() },
        })
    })
}

fn cross_entropy<B: Backend>(cases: &mut Cases<'_, B>, rows: usize, words: usize) -> Result<()> {
    let (device, shape) = (cases.device, format!("{rows}×{words}"));
    let labels: Vec<u32> = (0..rows).map(|i| (i * 7919 % words) as u32).collect();
    let (mut labels, mut logits) = (Tensor::indices(device, &labels)?, Tensor::random(device, rows, words)?);
    let (mut lse, mut row_losses) = (Tensor::zeros(device, 1, rows)?, Tensor::unwritten(device, 1, rows)?);
    let (mut predictions, mut correct) = (Tensor::zeros(device, 1, rows)?, Tensor::zeros(device, 1, 1)?);
    let mut loss = Tensor::zeros(device, 1, 1)?;
    let of_rows = cases.statistics(2 * rows) + 2 * rows * size_of::<u32>();
    let cost = Cost::bytes(cases.elements(rows * words) + of_rows);
    cases.case("cross-entropy", &shape, cost, &mut row_losses, |row_losses| {
        device.cross_entropy_forward(CrossEntropyForward {
            smoothing: SMOOTHING,
            logits: logits.view(),
            labels: labels.view(),
            lse: lse.view_mut(),
            row_losses: row_losses.view_mut(),
            predictions: predictions.view_mut(),
            loss: loss.view_mut(),
            correct: correct.view_mut(),
        })
    })?;
    let cost = Cost::bytes(cases.elements(2 * rows * words) + of_rows);
    // In place: from the second time on, of gradients, which costs the same.
    cases.case("cross-entropy backward", &shape, cost, &mut logits, |logits| {
        device.cross_entropy_backward(CrossEntropyBackward {
            smoothing: SMOOTHING,
            weight: 1.0,
            labels: labels.view(),
            lse: lse.view(),
            logits: logits.view_mut(),
        })
    })
}
