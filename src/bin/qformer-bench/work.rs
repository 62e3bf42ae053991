//! What is measured of a model: the Q-Former's passes with a check of their answers, and the image encoder.

use crate::measured::Measured;
use crate::passes::inputs::{RandomWeights, random_tensor};
use crate::passes::{Pass, Passes, WorkPart};
use crate::reference::Reference;
use qformer::config::Config;
use qformer::models::qformer::Matching;
use qformer::models::vision::encoder::VisionEncoder;
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use qformer::params::{NamedCheckpoint, TensorSource};
use qformer::tensor::HostTensor;
use qformer::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;

/// Inputs and model.
pub(crate) struct Work<B: Measured> {
    passes: Passes<B>,
    vision: Option<Vision<B>>,
    source: Source,
}

/// The frozen image encoder and what it sees.
struct Vision<B: Measured> {
    encoder: VisionEncoder<B>,
    /// [B, 3, S, S]
    pixels: HostTensor,
}

/// What can be measured.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measurement {
    Pass(Pass),
    Vision,
}

/// An answer compared with the independent computation.
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) error: f64,
}

/// Where the weights come from.
pub(crate) enum Source {
    Random,
    Checkpoint(Checkpoint),
}

impl Source {
    pub(crate) fn open(model: Option<&Path>) -> Result<Self> {
        model.map_or(Ok(Self::Random), |path| Ok(Self::Checkpoint(Checkpoint::open(path)?)))
    }

    pub(crate) fn with<R>(&self, use_it: impl FnOnce(&(dyn TensorSource + Sync)) -> Result<R>) -> Result<R> {
        match self {
            Source::Random => use_it(&RandomWeights),
            Source::Checkpoint(checkpoint) => use_it(&NamedCheckpoint::new(checkpoint)?),
        }
    }
}

/// The sizes of the checkpoint, or BLIP-2's with ViT-g.
pub(crate) fn config(model: Option<&Path>) -> Result<Config> {
    model.map_or_else(|| Ok(Config::blip2_vit_g()), Config::load)
}

impl<B: Measured> Vision<B> {
    fn flops(&self) -> f64 {
        let v = self.encoder.config();
        let (rows, width) = (v.image_tokens(), v.hidden_size);
        let block = rows * (8 * width * width + 4 * width * v.intermediate_size) + 4 * rows * rows * width;
        let embedding = 2 * (rows - 1) * width * 3 * v.patch_size * v.patch_size;
        (v.num_hidden_layers * block + embedding) as f64
    }
}

impl<B: Measured> Work<B> {
    pub(crate) fn prepare(
        device: &B,
        model: Option<&Path>,
        batch: usize,
        measured: &[Measurement],
    ) -> Result<Self> {
        let (config, source) = (config(model)?, Source::open(model)?);
        let (passes, vision) = source.with(|source| {
            let passes = Passes::prepare(device, &config, batch, source)?;
            if !measured.contains(&Measurement::Vision) {
                return Ok((passes, None));
            }
            let encoder = VisionEncoder::from_source(device.clone(), &config, source, &mut |_, _| ())?;
            let side = encoder.config().image_size;
            let pixels = random_tensor("pixel_values", &[batch, 3, side, side]);
            Ok((passes, Some(Vision { encoder, pixels })))
        })?;
        Ok(Self { passes, vision, source })
    }

    fn vision(&self) -> &Vision<B> {
        self.vision.as_ref().expect("prepared when asked for")
    }

    pub(crate) fn run(&self, measured: Measurement) -> Result<()> {
        match measured {
            Measurement::Pass(pass) => self.passes.run(pass),
            Measurement::Vision => self.vision().encoder.encode(&self.vision().pixels).map(drop),
        }
    }

    pub(crate) fn part(&self, measured: Measurement) -> WorkPart {
        match measured {
            Measurement::Pass(pass) => self.passes.part(pass),
            Measurement::Vision => {
                let images = self.passes.texts.len();
                let flops = images as f64 * self.vision().flops();
                WorkPart { name: "vision", items: images, unit: "images", flops }
            }
        }
    }

    /// Compares the passes with the independent computation.
    pub(crate) fn check(&self) -> Result<Vec<Check>> {
        let per_image = self.passes.vision_output.values().len() / self.passes.texts.len();
        let first = HostTensor::new(
            &[1, self.passes.config.image_tokens(), self.passes.config.vision.width()],
            self.passes.vision_output.values()[..per_image].to_vec(),
        )?;
        let image = self.passes.model.encode_image(&self.passes.vision_output)?.query_output;
        let texts = self.passes.model.encode_text(&self.passes.texts)?;
        let pair = [(0, 0)];
        let logits =
            self.passes.model.match_score(&first, &self.passes.texts, &pair, Matching::Classifier)?[0].logits;
        let cosine =
            self.passes.model.match_score(&first, &self.passes.texts, &pair, Matching::MaxSimilarity)?[0]
                .score;
        let checks = self.source.with(|source| {
            let reference = Reference { source, config: &self.passes.config };
            let query_output: Vec<f64> = reference.image_pass(first.values()).concat();
            let joint = reference.joint_pass(first.values(), &self.passes.texts[0]);
            Ok(vec![
                Check::new("image pass: query output", &image.values()[..query_output.len()], &query_output),
                Check::new(
                    "text pass: feature",
                    &texts.values()[..texts.shape()[1]],
                    &reference.text_pass(&self.passes.texts[0]),
                ),
                Check::new("joint pass: logits", &logits.expect("of the classifier"), &joint.logits),
                // Between unit vectors: one is what a cosine's error is measured by.
                Check {
                    name: "joint pass: largest cosine",
                    error: (f64::from(cosine) - joint.largest_cosine).abs(),
                },
            ])
        })?;
        match checks.iter().find(|check| check.error.is_nan() || check.error >= B::TOLERANCE) {
            Some(wrong) => Err(Error::device(format!(
                "{} differs by {:e} from double precision, more than {:e}; nothing was measured",
                wrong.name,
                wrong.error,
                B::TOLERANCE
            ))),
            None => Ok(checks),
        }
    }

    /// Writes inputs and answers.
    pub(crate) fn save_answers(&self, path: &Path) -> Result<()> {
        let batch = self.passes.texts.len();
        let images = self.passes.model.encode_image(&self.passes.vision_output)?;
        let texts = self.passes.model.encode_text(&self.passes.texts)?;
        let matches = self.passes.model.match_score(
            &self.passes.vision_output,
            &self.passes.texts,
            &self.passes.all_pairs(),
            Matching::Classifier,
        )?;
        let logits: Vec<f32> = matches.iter().flat_map(|m| m.logits.expect("of the classifier")).collect();
        let longest = self.passes.texts.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |value: &dyn Fn(&[u32], usize) -> f32| -> Vec<f32> {
            self.passes.texts.iter().flat_map(|t| (0..longest).map(move |i| value(t, i))).collect()
        };
        let ids = padded(&|text, i| text.get(i).map_or(0.0, |&id| id as f32));
        let mask = padded(&|text, i| f32::from(i < text.len()));
        let mut answers = vec![
            ("vision_output", self.passes.vision_output.clone()),
            ("query_output", images.query_output),
            ("text_features", texts),
            ("itm_logits", HostTensor::new(&[batch, batch, 2], logits)?),
            ("input_ids", HostTensor::new(&[batch, longest], ids)?),
            ("attention_mask", HostTensor::new(&[batch, longest], mask)?),
        ];
        answers.extend(images.features.map(|features| ("image_features", features)));
        if let Some(Vision { encoder, pixels }) = &self.vision {
            answers.push(("pixel_values", pixels.clone()));
            answers.push(("encoded_pixels", encoder.encode(pixels)?));
        }
        let tensors = answers
            .iter()
            .map(|(name, t)| NewTensor::from_slice(*name, Dtype::F32, t.shape(), t.values()))
            .collect();
        write(path, &BTreeMap::new(), tensors)
    }
}

impl Check {
    /// ‖found − expected‖ / ‖expected‖
    fn new(name: &'static str, found: &[f32], expected: &[f64]) -> Self {
        let difference: f64 = found.iter().zip(expected).map(|(&f, e)| (f64::from(f) - e).powi(2)).sum();
        let norm: f64 = expected.iter().map(|e| e * e).sum();
        Self { name, error: (difference / norm).sqrt() }
    }
}
