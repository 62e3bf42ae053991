//! A checkpoint opened once and asked many times, on a device chosen when the program runs.

mod device;
mod engine;
mod generation;
mod images;
mod language;
mod loading;
mod texts;

pub use device::{DeviceName, OnDevice};
pub use generation::{Chat, Ranked, TextTask};
pub use images::{Image, Images, VisionOutput};
pub use language::WeightType;
pub use loading::{Parts, PipelineBuilder};
pub use texts::Text;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::evaluate::{self, CaptionStatistics, Captions, MatchingLogits, Progress, Retrieval};
use crate::generate::Decoding;
use crate::models::qformer::{Abilities, ImageFeatures, Match, Matching};
use crate::models::vision::image::ImageProcessor;
use crate::params::NamedCheckpoint;
use crate::tensor::HostTensor;
use crate::tokenizer::Tokenizer;
use engine::Engine;
use loading::Folder;
use std::path::Path;
use std::sync::Arc;

/// A checkpoint with all that belongs to it: image processor, image encoder, tokenizer and Q-Former, on a device.
///
/// It can be shared between threads. Images may be files, their bytes or pixels, and any number of them: they are
/// encoded a batch at a time. What is asked several times of the same images is cheaper of a [`VisionOutput`].
///
/// A service that finds the texts which fit a picture:
///
/// ```
/// use qformer::{DeviceName, HostTensor, Image, Pipeline};
///
/// /// Texts, with what a picture is compared with.
/// struct Index {
///     pipeline: Pipeline,
///     texts: Vec<String>,
///     features: HostTensor,
/// }
///
/// impl Index {
///     /// Loads the checkpoint and reads the texts, once.
///     fn new(folder: &str, texts: Vec<String>) -> qformer::Result<Self> {
///         let pipeline = Pipeline::open(folder, DeviceName::Auto)?;
///         let features = pipeline.text_features(&texts)?;
///         Ok(Self { pipeline, texts, features })
///     }
///
///     /// The texts that fit a picture best, each with its similarity. `picture` is what a client sent.
///     fn top(&self, picture: &[u8], count: usize) -> qformer::Result<Vec<(&str, f32)>> {
///         let image = self.pipeline.image_features(&[Image::Bytes(picture)])?;
///         let similarity = self.pipeline.similarity(&image, &self.features)?;
///         let texts = self.texts.iter().map(String::as_str);
///         let mut found: Vec<(&str, f32)> = texts.zip(similarity.into_values()).collect();
///         found.sort_by(|(_, a), (_, b)| b.total_cmp(a));
///         found.truncate(count);
///         Ok(found)
///     }
/// }
///
/// # fn main() -> qformer::Result<()> {
/// let texts = ["a cup of coffee", "two dogs in the snow", "an astronaut"].map(String::from);
/// let index = Index::new("tests/golden/retrieval/model", texts.to_vec())?;
/// // Any number of threads may ask at a time.
/// std::thread::scope(|threads| {
///     for name in ["coffee", "astronaut"] {
///         let picture = std::fs::read(format!("tests/golden/retrieval/images/{name}.png")).unwrap();
///         threads.spawn(|| assert_eq!(index.top(&{ picture }, 2).unwrap().len(), 2));
///     }
/// });
/// # Ok(())
/// # }
/// ```
pub struct Pipeline {
    engine: Arc<dyn Engine>,
    folder: Folder,
    batch_size: usize,
    fallback: Option<Error>,
    /// Whether the language model's weights were rounded for want of memory.
    narrowed: bool,
}

/// A text that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct GeneratedText {
    /// What it says.
    pub text: String,
    /// Its token ids: a language model's with the one that ends it, if it came; the Q-Former's without.
    pub tokens: Vec<u32>,
    /// As [`Hypothesis`](crate::generate::Hypothesis) says.
    pub score: f64,
}

impl Pipeline {
    /// Opens a checkpoint's folder, with all parts that are there: see [`QFormer::load`](crate::QFormer::load) for what
    /// it may hold.
    ///
    /// # Errors
    /// Fails if a file is missing or malformed, naming every tensor that is missing, surplus or of the wrong shape, if
    /// the device cannot be used, and if there is not enough memory.
    pub fn open(folder: impl AsRef<Path>, device: DeviceName) -> Result<Self> {
        Self::builder(folder)?.device(device).with_language_model().load()
    }

    /// Begins to open a checkpoint's folder: reads its configuration, and no weights yet.
    ///
    /// # Errors
    /// Fails if `config.json` or the checkpoint is missing or malformed.
    pub fn builder(folder: impl AsRef<Path>) -> Result<PipelineBuilder> {
        PipelineBuilder::new(folder.as_ref())
    }

    /// The model's sizes and constants.
    pub fn config(&self) -> &Config {
        &self.folder.config
    }

    /// The checkpoint's tokenizer.
    ///
    /// # Errors
    /// Fails if the folder has none, or one that is malformed or of another vocabulary.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.folder.tokenizer()
    }

    /// What makes an image's pixel values.
    ///
    /// # Errors
    /// Fails if the folder has no settings for it, or malformed ones.
    pub fn image_processor(&self) -> Result<&ImageProcessor> {
        self.folder.image_processor()
    }

    /// Why the CPU computes though there is a GPU's driver, where the device was left to be chosen.
    pub fn fallback(&self) -> Option<&Error> {
        self.fallback.as_ref()
    }

    /// Tensors with values that are infinite or not a number, and how many: so may all results be.
    pub fn not_finite(&self) -> Vec<(String, usize)> {
        self.engine.not_finite()
    }

    /// What the Q-Former can do besides reading images; none if it was not loaded.
    pub fn abilities(&self) -> Option<Abilities> {
        self.engine.abilities().1
    }

    /// Whether the checkpoint's Q-Former has a language-modelling head.
    pub fn can_caption(&self) -> bool {
        self.engine.generators()[0]
    }

    /// What the checkpoint was trained to match pairs by.
    ///
    /// # Errors
    /// As [`MatchingLogits::of`].
    pub fn matching_logits(&self) -> Result<MatchingLogits> {
        MatchingLogits::of(&NamedCheckpoint::new(&self.folder.checkpoint)?)
    }

    /// How the checkpoint means captions to be found.
    ///
    /// # Errors
    /// As [`Decoding::load`].
    pub fn decoding(&self) -> Result<Decoding> {
        self.folder.decoding()
    }

    /// Encodes images, all at a time, to be read by the Q-Former more than once.
    ///
    /// # Errors
    /// Fails if an image cannot be read, naming it, if the checkpoint has no image encoder, and if there is not enough
    /// memory.
    pub fn encode(&self, images: &[Image<'_>]) -> Result<VisionOutput> {
        self.encode_pixels(&images::pixels(images, 0, self.image_processor()?)?)
    }

    /// The same of pixel values [I, 3, S, S] as the [`ImageProcessor`] makes them.
    ///
    /// # Errors
    /// As [`Pipeline::encode`], and if the pixel values are of another size.
    pub fn encode_pixels(&self, pixels: &HostTensor) -> Result<VisionOutput> {
        self.require_encoder()?;
        Ok(VisionOutput::on_device(self.engine.encode(pixels)?, self.engine.clone()))
    }

    fn require_encoder(&self) -> Result<()> {
        if self.engine.abilities().0 {
            return Ok(());
        }
        self.folder.require_encoder()?;
        Err(Error::usage("the pipeline was opened without the image encoder; open it with all parts"))
    }

    /// What the Q-Former makes of images: each query's output [I, Q, D] and, where the checkpoint compares images with
    /// texts, its unit feature [I, Q, E].
    ///
    /// # Errors
    /// As [`Pipeline::encode`], and as [`QFormer::encode_image`](crate::QFormer::encode_image).
    pub fn image_features<'a>(&self, images: impl Into<Images<'a>>) -> Result<ImageFeatures> {
        let mut all: Option<ImageFeatures> = None;
        images.into().for_each_batch(self, |input, _| {
            let some = self.engine.encode_image(input)?;
            match &mut all {
                None => all = Some(some),
                Some(all) => {
                    all.query_output.append(some.query_output);
                    all.features
                        .as_mut()
                        .zip(some.features)
                        .into_iter()
                        .for_each(|(all, some)| all.append(some));
                }
            }
            Ok(())
        })?;
        Ok(all.expect("a batch at least"))
    }

    /// Unit features of texts [T, E]. A text that is longer than the model reads is cut off.
    ///
    /// # Errors
    /// As [`QFormer::encode_text`](crate::QFormer::encode_text), and if the tokenizer is missing.
    pub fn text_features<T: Text>(&self, texts: &[T]) -> Result<HostTensor> {
        self.engine.encode_text(&T::tokens(texts, self)?)
    }

    /// Contrastive similarity [I, T]: the largest cosine over an image's queries.
    ///
    /// # Errors
    /// As [`QFormer::similarity`](crate::QFormer::similarity), and if the images have no features to be compared.
    pub fn similarity(&self, images: &ImageFeatures, texts: &HostTensor) -> Result<HostTensor> {
        let features = images.features.as_ref().ok_or_else(|| {
            Error::usage("the checkpoint has no projections, so its images cannot be compared with texts")
        })?;
        self.engine.similarity(features, texts)
    }

    /// The matching score of pairs (image, text), by their numbers.
    ///
    /// # Errors
    /// As [`Pipeline::encode`], and as [`QFormer::match_score`](crate::QFormer::match_score).
    pub fn match_pairs<'a, T: Text>(
        &self,
        images: impl Into<Images<'a>>,
        texts: &[T],
        pairs: &[(usize, usize)],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        let tokens = T::tokens(texts, self)?;
        let mut matches = vec![None; pairs.len()];
        let mut count = 0;
        images.into().for_each_batch(self, |input, first| {
            let batch = first..first + input.images();
            count = batch.end;
            let own: Vec<usize> = (0..pairs.len()).filter(|&pair| batch.contains(&pairs[pair].0)).collect();
            let within: Vec<(usize, usize)> =
                own.iter().map(|&pair| (pairs[pair].0 - first, pairs[pair].1)).collect();
            let found = self.engine.match_score(input, &tokens, &within, matching)?;
            own.into_iter().zip(found).for_each(|(pair, found)| matches[pair] = Some(found));
            Ok(())
        })?;
        let matched = matches.into_iter().zip(pairs).map(|(found, pair)| {
            found.ok_or_else(|| {
                Error::usage(format!("pair {pair:?} names an image that is not among the {count} images"))
            })
        });
        matched.collect()
    }

    /// Captions for each image by the Q-Former's own language-modelling head; the best first.
    ///
    /// # Errors
    /// As [`Pipeline::encode`], and as [`Captioner::caption`](crate::Captioner::caption); fails if the checkpoint has no
    /// such head.
    pub fn caption<'a>(
        &self,
        images: impl Into<Images<'a>>,
        decoding: &Decoding,
    ) -> Result<Vec<Vec<GeneratedText>>> {
        self.folder.require_caption_head()?;
        let tokenizer = self.tokenizer()?;
        let mut captions = Vec::new();
        images.into().for_each_batch(self, |input, first| {
            for found in self.engine.caption(input, &decoding.starting_at(first as u64))? {
                let text = |caption: crate::Caption| {
                    let text = tokenizer.decode(&caption.tokens)?;
                    Ok(GeneratedText { text, tokens: caption.tokens, score: caption.score })
                };
                captions.push(found.into_iter().map(text).collect::<Result<_>>()?);
            }
            Ok(())
        })?;
        Ok(captions)
    }

    /// Where the queries look [I, H, Q, N]: the weights of cross-attention in block `block`, as
    /// [`QFormer::cross_attention_maps`](crate::QFormer::cross_attention_maps) gives them, when the queries read the
    /// images alone or together with a text.
    ///
    /// # Errors
    /// As [`Pipeline::encode`], and as `QFormer::cross_attention_maps`.
    pub fn attention_maps<'a>(
        &self,
        images: impl Into<Images<'a>>,
        text: Option<&str>,
        block: usize,
    ) -> Result<HostTensor> {
        let text: Vec<&str> = text.into_iter().collect();
        let tokens = <&str>::tokens(&text, self)?;
        let tokens = tokens.first().map(Vec::as_slice);
        let mut all: Option<HostTensor> = None;
        images.into().for_each_batch(self, |input, _| {
            let some = self.engine.attention_maps(input, tokens, block)?;
            match &mut all {
                None => all = Some(some),
                Some(all) => all.append(some),
            }
            Ok(())
        })?;
        Ok(all.expect("a batch at least"))
    }

    /// Retrieval over a data set, as [`evaluate::retrieval`] scores it.
    ///
    /// # Errors
    /// As `evaluate::retrieval`.
    pub fn evaluate_retrieval(
        &self,
        images: evaluate::Images<'_>,
        captions: Captions<'_>,
        rerank: usize,
        progress: Progress<'_>,
    ) -> Result<Retrieval> {
        self.engine.retrieval(images, captions, rerank, self.matching_logits()?, progress)
    }

    /// How likely the language-modelling head finds a data set's captions, as [`evaluate::captioning`] measures it.
    ///
    /// # Errors
    /// As `evaluate::captioning`; fails if the checkpoint has no such head.
    pub fn evaluate_captioning(
        &self,
        images: evaluate::Images<'_>,
        captions: Captions<'_>,
        progress: Progress<'_>,
    ) -> Result<CaptionStatistics> {
        self.folder.require_caption_head()?;
        self.engine.captioning(images, captions, progress)
    }
}
