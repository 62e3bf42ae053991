//! The models of a pipeline, whatever device they are on.

use crate::config::Config;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::evaluate::{self, CaptionStatistics, Captions, MatchingLogits, Progress, Retrieval};
use crate::generate::{Decoding, Hypothesis, Watch};
use crate::memory::{DeviceTensor, TensorInput};
use crate::models::language::{LanguageModel, Prompt};
use crate::models::qformer::captioner::has_caption_head;
use crate::models::qformer::{Abilities, Caption, Captioner, ImageFeatures, Match, Matching, QFormer};
use crate::models::vision::encoder::VisionEncoder;
use crate::ops::Backend;
use crate::params::NamedCheckpoint;
use crate::params::safetensors::Checkpoint;
use crate::tensor::{HostTensor, NumberType};
use std::any::Any;

/// What an engine's image encoder made of images, in the memory of the engine's device.
pub(super) struct Encoded {
    images: usize,
    /// A [`DeviceTensor`] of that device.
    tensor: Box<dyn Any + Send + Sync>,
}

/// Image features [I, N, W], on the host or on the engine's own device.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    Host(&'a HostTensor),
    Device(&'a Encoded),
}

impl Input<'_> {
    /// How many images they are.
    pub(super) fn images(self) -> usize {
        match self {
            Input::Host(features) => features.shape().first().copied().unwrap_or(0),
            Input::Device(encoded) => encoded.images,
        }
    }
}

/// The models of a checkpoint on a device. The calls are those of the models.
pub(super) trait Engine: Send + Sync {
    /// Of pixel values [I, 3, S, S].
    fn encode(&self, pixels: &HostTensor) -> Result<Encoded>;
    fn to_host(&self, encoded: &Encoded) -> Result<HostTensor>;
    fn encode_image(&self, images: Input<'_>) -> Result<ImageFeatures>;
    fn encode_text(&self, texts: &[Vec<u32>]) -> Result<HostTensor>;
    fn similarity(&self, images: &HostTensor, texts: &HostTensor) -> Result<HostTensor>;
    fn match_score(
        &self,
        images: Input<'_>,
        texts: &[Vec<u32>],
        pairs: &[(usize, usize)],
        matching: Matching,
    ) -> Result<Vec<Match>>;
    fn attention_maps(&self, images: Input<'_>, text: Option<&[u32]>, block: usize) -> Result<HostTensor>;
    fn caption(&self, images: Input<'_>, decoding: &Decoding) -> Result<Vec<Vec<Caption>>>;
    fn generate(
        &self,
        images: Input<'_>,
        prompts: &[Prompt],
        image_token: Option<u32>,
        decoding: &Decoding,
        stops: &[u32],
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<Hypothesis>>>;
    fn candidate_losses(
        &self,
        images: Input<'_>,
        prompts: &[Prompt],
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<Vec<f64>>>>;
    fn retrieval(
        &self,
        images: evaluate::Images<'_>,
        captions: Captions<'_>,
        rerank: usize,
        logits: MatchingLogits,
        progress: Progress<'_>,
    ) -> Result<Retrieval>;
    fn captioning(
        &self,
        images: evaluate::Images<'_>,
        captions: Captions<'_>,
        progress: Progress<'_>,
    ) -> Result<CaptionStatistics>;
    /// Whether there is an image encoder, and what the Q-Former can do, if there is one.
    fn abilities(&self) -> (bool, Option<Abilities>);
    /// Whether there is a language-modelling head, and whether there is a language model.
    fn generators(&self) -> [bool; 2];
    /// Tensors with values that are infinite or not a number, and how many.
    fn not_finite(&self) -> Vec<(String, usize)>;
}

/// A Q-Former, with its language-modelling head if it has one.
enum Reader<B: Backend> {
    Retrieving(Box<QFormer<B>>),
    Captioning(Box<Captioner<B>>),
}

/// The models on device `B`.
pub(super) struct Models<B: Backend> {
    device: B,
    encoder: Option<VisionEncoder<B>>,
    reader: Option<Reader<B>>,
    language: Option<LanguageModel<B>>,
}

/// What is loaded of a checkpoint.
pub(super) struct Wanted<'a> {
    /// Image encoder and Q-Former.
    pub(super) parts: [bool; 2],
    /// The tokens that captions begin and end with, without which there is no captioning by the Q-Former's own head.
    pub(super) ends: Option<[u32; 2]>,
    /// The language model's tensors, and the type that its matrices are kept in.
    pub(super) language: Option<(NamedCheckpoint<'a>, NumberType)>,
}

/// What is told of loading: what is loaded, and the bytes placed so far and in all.
pub(super) type Loading<'a> = &'a mut dyn FnMut(&'static str, usize, usize);

impl<B: Backend + Clone> Models<B> {
    /// Loads what is asked for.
    pub(super) fn load(
        device: B,
        config: &Config,
        checkpoint: &Checkpoint,
        Wanted { parts: [encoder, qformer], ends, language }: Wanted<'_>,
        progress: Loading<'_>,
    ) -> Result<Self> {
        let named = NamedCheckpoint::new(checkpoint)?;
        let mut told = |done, total| progress("loading the Q-Former", done, total);
        let ends = ends.filter(|_| has_caption_head(&named));
        let model = |told| QFormer::from_checkpoint(device.clone(), config.clone(), checkpoint, told);
        let reader = match (qformer, ends) {
            (false, _) => None,
            (true, None) => Some(Reader::Retrieving(Box::new(model(&mut told)?))),
            (true, Some(ends)) => {
                Some(Reader::Captioning(Box::new(Captioner::new(model(&mut told)?, &named, ends)?)))
            }
        };
        let encoder = encoder.then(|| {
            let mut told = |done, total| progress("loading the image encoder", done, total);
            VisionEncoder::from_checkpoint(device.clone(), config, checkpoint, &mut told)
        });
        let encoder = encoder.transpose()?;
        let language = language.map(|(language, dtype)| {
            let mut told = |done, total| progress("loading the language model", done, total);
            let named = [&named, &language];
            LanguageModel::from_checkpoint(device.clone(), config, named, dtype, &mut told)
        });
        let language = language.transpose()?;
        Ok(Self { device, encoder, reader, language })
    }

    fn qformer(&self) -> Result<&QFormer<B>> {
        match &self.reader {
            Some(Reader::Retrieving(model)) => Ok(model),
            Some(Reader::Captioning(captioner)) => Ok(captioner.model()),
            None => Err(Error::usage("the pipeline was opened without the Q-Former; open it with all parts")),
        }
    }

    fn language(&self) -> Result<&LanguageModel<B>> {
        self.language.as_ref().ok_or_else(|| {
            Error::usage(
                "the pipeline has no language model: open a checkpoint that has one (language_model.… tensors), or give the \
                 folder of the one that it was trained with (`language_model`)",
            )
            .naming(&["language_model"])
        })
    }

    fn captioner(&self) -> Result<&Captioner<B>> {
        match &self.reader {
            Some(Reader::Captioning(captioner)) => Ok(captioner),
            _ => Err(Error::usage(
                "the checkpoint has no language-modelling head (tensors cls.predictions.…), so it cannot caption: \
                 Hugging Face's checkpoints leave it out; LAVIS's own .pth files and the checkpoints that \
                 `qformer train` writes have it",
            )),
        }
    }
}

/// The features where they are.
fn input<'a, D: Device>(images: Input<'a>) -> TensorInput<'a, D> {
    match images {
        Input::Host(features) => TensorInput::Host(features),
        Input::Device(encoded) => TensorInput::Device(tensor(encoded)),
    }
}

fn tensor<D: Device>(encoded: &Encoded) -> &DeviceTensor<D> {
    encoded.tensor.downcast_ref().expect("what this engine encoded")
}

impl<B: Backend + Clone> Engine for Models<B> {
    fn encode(&self, pixels: &HostTensor) -> Result<Encoded> {
        let encoder = self.encoder.as_ref().ok_or_else(|| {
            Error::usage(
                "the pipeline has no image encoder; open it with one, or give features in place of images",
            )
        })?;
        let tensor = encoder.encode_on_device(pixels)?;
        Ok(Encoded { images: tensor.shape()[0], tensor: Box::new(tensor) })
    }

    fn to_host(&self, encoded: &Encoded) -> Result<HostTensor> {
        tensor(encoded).to_host(&self.device)
    }

    fn encode_image(&self, images: Input<'_>) -> Result<ImageFeatures> {
        self.qformer()?.encode_image(input(images))
    }

    fn encode_text(&self, texts: &[Vec<u32>]) -> Result<HostTensor> {
        self.qformer()?.encode_text(texts)
    }

    fn similarity(&self, images: &HostTensor, texts: &HostTensor) -> Result<HostTensor> {
        self.qformer()?.similarity(images, texts)
    }

    fn match_score(
        &self,
        images: Input<'_>,
        texts: &[Vec<u32>],
        pairs: &[(usize, usize)],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        self.qformer()?.match_score(input(images), texts, pairs, matching)
    }

    fn attention_maps(&self, images: Input<'_>, text: Option<&[u32]>, block: usize) -> Result<HostTensor> {
        self.qformer()?.cross_attention_maps(input(images), text, block)
    }

    fn caption(&self, images: Input<'_>, decoding: &Decoding) -> Result<Vec<Vec<Caption>>> {
        self.captioner()?.caption(input(images), decoding)
    }

    fn generate(
        &self,
        images: Input<'_>,
        prompts: &[Prompt],
        image_token: Option<u32>,
        decoding: &Decoding,
        stops: &[u32],
        watch: Watch<'_>,
    ) -> Result<Vec<Vec<Hypothesis>>> {
        let language = self.language()?;
        let queries = self.qformer()?.query_output(input(images))?;
        language.generate(&queries, prompts, image_token, decoding, stops, watch)
    }

    fn candidate_losses(
        &self,
        images: Input<'_>,
        prompts: &[Prompt],
        candidates: &[Vec<u32>],
    ) -> Result<Vec<Vec<Vec<f64>>>> {
        let language = self.language()?;
        let queries = self.qformer()?.query_output(input(images))?;
        language.candidate_losses(&queries, prompts, candidates)
    }

    fn retrieval(
        &self,
        images: evaluate::Images<'_>,
        captions: Captions<'_>,
        rerank: usize,
        logits: MatchingLogits,
        progress: Progress<'_>,
    ) -> Result<Retrieval> {
        evaluate::retrieval(self.qformer()?, images, captions, rerank, logits, progress)
    }

    fn captioning(
        &self,
        images: evaluate::Images<'_>,
        captions: Captions<'_>,
        progress: Progress<'_>,
    ) -> Result<CaptionStatistics> {
        evaluate::captioning(self.captioner()?, images, captions, progress)
    }

    fn abilities(&self) -> (bool, Option<Abilities>) {
        (self.encoder.is_some(), self.qformer().ok().map(QFormer::abilities))
    }

    fn generators(&self) -> [bool; 2] {
        [self.captioner().is_ok(), self.language.is_some()]
    }

    fn not_finite(&self) -> Vec<(String, usize)> {
        let encoder = self.encoder.iter().flat_map(VisionEncoder::not_finite).cloned();
        let reader = match &self.reader {
            None => Vec::new(),
            Some(Reader::Retrieving(model)) => model.not_finite().to_vec(),
            Some(Reader::Captioning(captioner)) => captioner.not_finite(),
        };
        let language = self.language.iter().flat_map(LanguageModel::not_finite);
        reader.into_iter().chain(encoder).chain(language).collect()
    }
}
