//! A step against double precision: its losses, and its gradients by what following them does.

use super::{certain, prepared};
use crate::measured::Measured;
use crate::passes::step::Inputs;
use crate::reference::{Reference, dot};
use crate::work::Source;
use qformer::config::Config;
use qformer::ops::adamw::AdamW;
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::{Error, Result};

/// With two images, the other one is every negative.
const IMAGES: usize = 2;
/// Few, as double precision is slow; the model takes any number.
const IMAGE_TOKENS: usize = 8;

/// Relative errors of the three losses and of the fall, by name.
pub(super) fn check<B: Measured>(
    device: &B,
    config: &Config,
    source: &Source,
) -> Result<Vec<(&'static str, f64)>> {
    let inputs = Inputs::random(config, IMAGES, IMAGE_TOKENS);
    let batch = inputs.batch(config)?;
    // First, as it tells what is missing from the source.
    // A one-sided gradient is not the loss's.
    let options = certain(config, ContrastiveGradient::Full);
    let mut model = prepared(device, config, source, options)?;
    let expected = source.with(|source| Ok(losses(&Reference { source, config }, config, &inputs)))?;
    let found = model.differentiate(std::slice::from_ref(&batch), 1)?;
    let mut checks = Vec::new();
    let names = ["step: contrastive loss", "step: matching loss", "step: captioning loss"];
    for ((name, found), expected) in
        names.into_iter().zip([found.contrastive, found.matching, found.captioning]).zip(expected)
    {
        let error = (found - expected).abs() / expected;
        checks.push((name, error));
        if error.is_nan() || error >= B::TOLERANCE {
            return Err(Error::device(format!(
                "{name} is {found}, and {expected} in double precision; nothing was measured"
            )));
        }
    }

    // AdamW's first step moves every parameter by the learning rate times g / (|g| + ε), so the loss
    // falls by the learning rate times the sum of g² / (|g| + ε), but for its curvature.
    let adamw = AdamW { beta1: 0.9, beta2: 0.98, epsilon: 1e-8, weight_decay: 0.0, max_norm: None };
    let mut slope = 0.0;
    model.weights().for_each_gradient(device, |_, gradient| {
        let fall = |g: f64| g * g / (g.abs() + adamw.epsilon);
        slope += gradient.values().iter().map(|&g| fall(g.into())).sum::<f64>();
        Ok(())
    })?;
    model.update(adamw, B::FALL / slope, 1)?;
    let fallen = found.total - model.differentiate(std::slice::from_ref(&batch), 2)?.total;
    let (name, error) = ("step: fall of the loss", (fallen - B::FALL).abs() / B::FALL);
    checks.push((name, error));
    if error.is_nan() || error >= B::FALL_TOLERANCE {
        return Err(Error::device(format!(
            "the loss falls by {fallen} along its gradient, not by {}; nothing was measured",
            B::FALL
        )));
    }
    Ok(checks)
}

/// ITC, ITM and ITG in double precision.
fn losses(reference: &Reference<'_>, config: &Config, inputs: &Inputs) -> [f64; 3] {
    let smoothing = 0.1;
    let images: Vec<Vec<Vec<f64>>> =
        (0..IMAGES).map(|image| reference.image_features(image_of(inputs, image))).collect();
    let texts: Vec<Vec<f64>> = inputs.texts.iter().map(|text| reference.text_pass(text)).collect();
    let temperature = reference.tensor("temp", &[])[0];
    let similarity = |image: usize, text: usize| {
        let largest = images[image].iter().map(|query| dot(query, &texts[text])).fold(f64::MIN, f64::max);
        largest / temperature
    };
    let mut contrastive = 0.0;
    for i in 0..IMAGES {
        let of_image: Vec<f64> = (0..IMAGES).map(|text| similarity(i, text)).collect();
        let of_text: Vec<f64> = (0..IMAGES).map(|image| similarity(image, i)).collect();
        contrastive += cross_entropy(&of_image, i, smoothing) + cross_entropy(&of_text, i, smoothing);
    }

    // Each image with its own text, and each text and each image with the other's.
    let mut matching = 0.0;
    for (image, text, times) in [(0, 0, 1.0), (1, 1, 1.0), (0, 1, 2.0), (1, 0, 2.0)] {
        let logits = reference.joint_pass(image_of(inputs, image), &inputs.texts[text]).logits;
        matching += times * cross_entropy(&logits, usize::from(image == text), 0.0);
    }

    let (mut captioning, mut predicted) = (0.0, 0);
    for (image, text) in inputs.texts.iter().enumerate() {
        let logits =
            reference.caption_pass(image_of(inputs, image), text, config.qformer.vocab_size as u32 - 1);
        for (logits, &label) in logits.iter().zip(&text[1..]) {
            captioning += cross_entropy(logits, label as usize, smoothing);
            predicted += 1;
        }
    }
    let pairs = 3 * IMAGES;
    [contrastive / (2 * IMAGES) as f64, matching / pairs as f64, captioning / f64::from(predicted)]
}

/// The features [N·W] of an image.
fn image_of(inputs: &Inputs, index: usize) -> &[f32] {
    let size = inputs.vision_output.values().len() / inputs.texts.len();
    &inputs.vision_output.values()[index * size..(index + 1) * size]
}

fn cross_entropy(logits: &[f64], label: usize, smoothing: f64) -> f64 {
    let largest = logits.iter().copied().fold(f64::MIN, f64::max);
    let lse = largest + logits.iter().map(|x| (x - largest).exp()).sum::<f64>().ln();
    let mean = logits.iter().sum::<f64>() / logits.len() as f64;
    lse - (1.0 - smoothing) * logits[label] - smoothing * mean
}
