//! What is measured: inputs, passes, their operation counts and their answers.

use crate::measured::Measured;
use crate::reference::Reference;
use qformer::config::Config;
use qformer::models::qformer::{Abilities, Matching};
use qformer::models::vision::encoder::VisionEncoder;
use qformer::ops::absorbed_attention::CrossSizes;
use qformer::params::init::{key, uniform};
use qformer::params::safetensors::{Checkpoint, Dtype, NewTensor, write};
use qformer::params::{NamedCheckpoint, Part, TensorSource};
use qformer::tensor::HostTensor;
use qformer::{Error, QFormer, Result};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

/// Shortest and longest caption, in tokens with `[CLS]` and `[SEP]`.
const CAPTION_TOKENS: [usize; 2] = [9, 16];

/// Inputs and model.
pub(crate) struct Work<B: Measured> {
    device: B,
    config: Config,
    model: QFormer<B>,
    vision: Option<VisionEncoder<B>>,
    source: Source,
    /// [B, N, W]
    vision_output: HostTensor,
    /// [B, 3, S, S]; empty unless the image encoder is measured.
    pixels: HostTensor,
    texts: Vec<Vec<u32>>,
    batch: usize,
}

/// What the graph can do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pass {
    Image,
    Text,
    Joint,
    Score,
    Vision,
}

/// A part to be measured.
pub(crate) struct WorkPart {
    pub(crate) name: &'static str,
    pub(crate) items: usize,
    pub(crate) unit: &'static str,
    /// Operations actually done in products and attention.
    pub(crate) flops: f64,
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

/// Weights of the size that trained ones have, different for every tensor and the same in every run.
struct RandomWeights;

impl TensorSource for RandomWeights {
    fn check(&self, _: &[&Part]) -> Result<()> {
        Ok(())
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        let is_scale = part.name.ends_with("orm.weight")
            || part.name.contains("norm1.weight")
            || part.name.contains("norm2.weight");
        let centre = match &*part.name {
            _ if is_scale => 1.0,
            // Above zero, as similarities are divided by it.
            "temp" => 0.07,
            _ => 0.0,
        };
        let mut values = random_values(&part.name, part.len());
        values.par_iter_mut().for_each(|value| *value = centre + 0.06 * *value);
        sink(0, &values);
        Ok(0)
    }
}

/// Values in (-1, 1), different for every name and the same in every run.
pub(crate) fn random_values(name: &str, count: usize) -> Vec<f32> {
    let key = key(0, name);
    (0..count as u64).into_par_iter().map(|index| (2.0 * uniform(key, index) - 1.0) as f32).collect()
}

/// Captions of all lengths, the same in every run.
pub(crate) fn random_texts(count: usize, vocabulary: usize) -> Vec<Vec<u32>> {
    let [shortest, longest] = CAPTION_TOKENS;
    let token = |text: usize, i: usize| {
        (uniform(key(0, "captions"), (text * longest + i) as u64) * vocabulary as f64) as u32
    };
    let text = |text: usize| {
        let length = shortest + text * 5 % (longest - shortest + 1);
        (0..length).map(|i| token(text, i)).collect()
    };
    (0..count).map(text).collect()
}

pub(crate) fn random_tensor(name: &str, shape: &[usize]) -> HostTensor {
    HostTensor::new(shape, random_values(name, shape.iter().product()))
        .expect("as many values as the shape says")
}

/// The sizes of the checkpoint, or BLIP-2's with ViT-g.
pub(crate) fn config(model: Option<&Path>) -> Result<Config> {
    model.map_or_else(|| Ok(Config::blip2_vit_g()), Config::load)
}

impl<B: Measured> Work<B> {
    pub(crate) fn prepare(device: B, model: Option<&Path>, batch: usize, passes: &[Pass]) -> Result<Self> {
        let config = config(model)?;
        let source = Source::open(model)?;
        if !config.qformer.use_qformer_text_input {
            return Err(Error::usage("the model reads no text; measure one of Blip2ForImageTextRetrieval"));
        }
        let abilities = Abilities { text: true, retrieval: true };
        let loaded = source.with(|source| {
            let model =
                QFormer::from_source(device.clone(), config.clone(), abilities, source, &mut |_, _| ())?;
            let vision = passes
                .contains(&Pass::Vision)
                .then(|| VisionEncoder::from_source(device.clone(), &config, source, &mut |_, _| ()));
            Ok((model, vision.transpose()?))
        })?;
        let tokens = config.image_tokens();
        let (pictures, side) = loaded.1.as_ref().map_or((0, 0), |v| (batch, v.config().image_size));
        Ok(Self {
            model: loaded.0,
            vision: loaded.1,
            source,
            vision_output: random_tensor("vision_output", &[batch, tokens, config.vision.width()]),
            pixels: random_tensor("pixel_values", &[pictures, 3, side, side]),
            texts: random_texts(batch, config.qformer.vocab_size),
            batch,
            device,
            config,
        })
    }

    /// Compares the passes with the independent computation.
    pub(crate) fn check(&self) -> Result<Vec<Check>> {
        let per_image = self.vision_output.values().len() / self.batch;
        let first = HostTensor::new(
            &[1, self.config.image_tokens(), self.config.vision.width()],
            self.vision_output.values()[..per_image].to_vec(),
        )?;
        let image = self.model.encode_image(&self.vision_output)?.query_output;
        let texts = self.model.encode_text(&self.texts)?;
        let pair = [(0, 0)];
        let logits = self.model.match_score(&first, &self.texts, &pair, Matching::Classifier)?[0].logits;
        let cosine = self.model.match_score(&first, &self.texts, &pair, Matching::MaxSimilarity)?[0].score;
        let checks = self.source.with(|source| {
            let reference = Reference { source, config: &self.config };
            let query_output: Vec<f64> = reference.image_pass(first.values()).concat();
            let joint = reference.joint_pass(first.values(), &self.texts[0]);
            Ok(vec![
                Check::new("image pass: query output", &image.values()[..query_output.len()], &query_output),
                Check::new(
                    "text pass: feature",
                    &texts.values()[..texts.shape()[1]],
                    &reference.text_pass(&self.texts[0]),
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

    pub(crate) fn run(&self, kind: Pass) -> Result<()> {
        match kind {
            Pass::Image => drop(self.model.encode_image(&self.vision_output)?),
            Pass::Text => drop(self.model.encode_text(&self.texts)?),
            Pass::Joint => {
                let pairs: Vec<_> = (0..self.batch).map(|i| (i, i)).collect();
                drop(self.model.match_score(
                    &self.vision_output,
                    &self.texts,
                    &pairs,
                    Matching::Classifier,
                )?);
            }
            Pass::Score => drop(self.model.match_score(
                &self.vision_output,
                &self.texts,
                &self.all_pairs(),
                Matching::Classifier,
            )?),
            Pass::Vision => {
                drop(self.vision.as_ref().expect("prepared when asked for").encode(&self.pixels)?);
            }
        }
        Ok(())
    }

    fn all_pairs(&self) -> Vec<(usize, usize)> {
        (0..self.batch).flat_map(|image| (0..self.batch).map(move |text| (image, text))).collect()
    }

    pub(crate) fn part(&self, kind: Pass) -> WorkPart {
        let batch = self.batch;
        let tokens: Vec<usize> = self.texts.iter().map(Vec::len).collect();
        let (name, items, unit, flops) = match kind {
            Pass::Image => ("image", batch, "images", batch as f64 * self.image_flops()),
            Pass::Text => ("text", batch, "texts", tokens.iter().map(|&t| self.stream_flops(0, t)).sum()),
            Pass::Joint => {
                let pairs: f64 = tokens.iter().map(|&t| self.pair_flops(t)).sum();
                ("joint", batch, "pairs", pairs + batch as f64 * self.keys_values_flops())
            }
            Pass::Score => {
                let pairs: f64 = tokens.iter().map(|&t| self.pair_flops(t)).sum::<f64>() * batch as f64;
                ("score", batch * batch, "pairs", pairs + batch as f64 * self.keys_values_flops())
            }
            Pass::Vision => ("vision", batch, "images", batch as f64 * self.vision_flops()),
        };
        WorkPart { name, items, unit, flops }
    }

    /// Self-attention and feed-forward of all layers over `queries` + `text` rows.
    fn stream_flops(&self, queries: usize, text: usize) -> f64 {
        let q = &self.config.qformer;
        let rows = queries + text;
        let per_row = 8 * q.hidden_size * q.hidden_size + 4 * q.hidden_size * q.intermediate_size;
        (q.num_hidden_layers * (rows * per_row + 4 * rows * rows * q.hidden_size)) as f64
    }

    fn cross_layers(&self) -> usize {
        self.config.qformer.cross_attention_layers().count()
    }

    fn sizes(&self) -> CrossSizes {
        CrossSizes::of(&self.config)
    }

    /// The query and output projections of cross-attention.
    fn cross_projection_flops(&self) -> f64 {
        (self.cross_layers() * 4 * self.config.num_query_tokens * self.config.qformer.hidden_size.pow(2))
            as f64
    }

    fn keys_values_flops(&self) -> f64 {
        let CrossSizes { hidden, image_tokens, image_width, .. } = self.sizes();
        (self.cross_layers() * 4 * image_tokens * hidden * image_width) as f64
    }

    fn image_flops(&self) -> f64 {
        let CrossSizes { heads, queries, hidden, image_tokens, image_width } = self.sizes();
        let cross = if self.sizes().absorbs(self.device.frozen_packing(image_width)) {
            (self.cross_layers() * 4 * queries * image_width * (hidden + heads * image_tokens)) as f64
        } else {
            self.keys_values_flops() + (self.cross_layers() * 4 * queries * image_tokens * hidden) as f64
        };
        // The first layer's self-attention is done once for all images.
        let first = (8 * queries * hidden * hidden + 4 * queries * queries * hidden) as f64;
        self.stream_flops(queries, 0) - first + self.cross_projection_flops() + cross
    }

    fn pair_flops(&self, text: usize) -> f64 {
        let CrossSizes { queries, hidden, image_tokens, .. } = self.sizes();
        let attention = (self.cross_layers() * 4 * queries * image_tokens * hidden) as f64;
        self.stream_flops(queries, text) + self.cross_projection_flops() + attention
    }

    fn vision_flops(&self) -> f64 {
        let v = self.vision.as_ref().expect("prepared when asked for").config();
        let (rows, width) = (v.image_tokens(), v.hidden_size);
        let block = rows * (8 * width * width + 4 * width * v.intermediate_size) + 4 * rows * rows * width;
        let embedding = 2 * (rows - 1) * width * 3 * v.patch_size * v.patch_size;
        (v.num_hidden_layers * block + embedding) as f64
    }

    /// Writes inputs and answers.
    pub(crate) fn save_answers(&self, path: &Path) -> Result<()> {
        let images = self.model.encode_image(&self.vision_output)?;
        let texts = self.model.encode_text(&self.texts)?;
        let matches = self.model.match_score(
            &self.vision_output,
            &self.texts,
            &self.all_pairs(),
            Matching::Classifier,
        )?;
        let logits: Vec<f32> = matches.iter().flat_map(|m| m.logits.expect("of the classifier")).collect();
        let longest = self.texts.iter().map(Vec::len).max().unwrap_or(0);
        let padded = |value: &dyn Fn(&[u32], usize) -> f32| -> Vec<f32> {
            self.texts.iter().flat_map(|t| (0..longest).map(move |i| value(t, i))).collect()
        };
        let ids = padded(&|text, i| text.get(i).map_or(0.0, |&id| id as f32));
        let mask = padded(&|text, i| f32::from(i < text.len()));
        let mut answers = vec![
            ("vision_output", self.vision_output.clone()),
            ("query_output", images.query_output),
            ("text_features", texts),
            ("itm_logits", HostTensor::new(&[self.batch, self.batch, 2], logits)?),
            ("input_ids", HostTensor::new(&[self.batch, longest], ids)?),
            ("attention_mask", HostTensor::new(&[self.batch, longest], mask)?),
        ];
        answers.extend(images.features.map(|features| ("image_features", features)));
        if let Some(vision) = &self.vision {
            answers.push(("pixel_values", self.pixels.clone()));
            answers.push(("encoded_pixels", vision.encode(&self.pixels)?));
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
