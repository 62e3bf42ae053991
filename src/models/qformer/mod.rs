//! The Q-Former: its passes over images and texts, and what it makes of them.

mod attention_maps;
pub(crate) mod captioner;
mod decoder_pass;
mod image_pass;
mod joint_pass;
pub(crate) mod language_head;
mod params;
pub(crate) mod projection;
pub(crate) mod stack;
mod text_pass;

pub use captioner::{Caption, CaptionLoss, Captioner, has_caption_head};
pub use decoder_pass::Decoder;
pub use joint_pass::{Match, Matching};
pub use language_head::LanguageHead;
pub use params::{Abilities, Parameters, RetrievalHeads, TextEmbeddings};
pub use stack::Block;

use crate::config::Config;
use crate::device::{Cpu, M, W};
use crate::error::{Error, Result};
use crate::memory::{Arena, Cursor, TensorInput, Workspace};
use crate::ops::Backend;
use crate::ops::attention::check_heads;
use crate::ops::similarity::{Pairing, SimilarityForward};
use crate::params::safetensors::Checkpoint;
use crate::params::{NamedCheckpoint, Slot, TensorSource, Weights, part_names, reject_surplus};
use crate::tensor::HostTensor;
use stack::{Image, Stack};
use std::path::Path;

/// A Q-Former with its weights on device `B`, for inference. It can be shared between threads.
///
/// ```
/// use qformer::{Cpu, QFormer, Tokenizer};
///
/// # fn main() -> qformer::Result<()> {
/// let folder = "tests/golden/retrieval/model";
/// let (model, tokenizer) = (QFormer::load(Cpu::<f32>::new(), folder)?, Tokenizer::load(folder.as_ref())?);
/// let texts = [tokenizer.encode("a cup of coffee", 64)?, tokenizer.encode("two dogs in the snow", 64)?];
/// let features = model.encode_text(&texts)?;
/// assert_eq!(features.shape(), [2, model.config().image_text_hidden_size]);
/// # Ok(())
/// # }
/// ```
pub struct QFormer<B: Backend = Cpu> {
    device: B,
    config: Config,
    abilities: Abilities,
    weights: Weights<B, Parameters<Slot>>,
    /// [Q, D]: the queries after the first block's self-attention, which without text is the same
    /// for every image.
    first_attended: Arena<B>,
    workspace: Workspace<B>,
    /// Keys and values of images that are being matched with texts.
    keys_values: Workspace<B>,
}

/// What an image becomes.
#[derive(Clone, Debug)]
pub struct ImageFeatures {
    /// The last block's output for every query [I, Q, D].
    pub query_output: HostTensor,
    /// The same, projected and of unit length, to be compared with texts [I, Q, E]; absent if the
    /// checkpoint has no projection.
    pub features: Option<HostTensor>,
}

impl<B: Backend> QFormer<B> {
    /// Reads a model from a folder as `save_pretrained` writes it: `config.json` and
    /// `model.safetensors`, whole or in shards, or a `.pth` file, with Hugging Face's or LAVIS's tensor names.
    ///
    /// # Errors
    /// Fails if a file is missing or malformed, naming every tensor that is missing, surplus or of
    /// the wrong shape, if the heads of attention are too wide for the device, and if there is not enough
    /// memory.
    pub fn load(device: B, directory: impl AsRef<Path>) -> Result<Self> {
        Self::load_with_progress(device, directory.as_ref(), &mut |_, _| ())
    }

    /// The same, telling `progress` the bytes placed so far and in all.
    ///
    /// # Errors
    /// As [`QFormer::load`].
    pub fn load_with_progress(
        device: B,
        directory: &Path,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let config = Config::load(directory)?;
        let checkpoint = Checkpoint::open(directory)?;
        Self::from_checkpoint(device, config, &checkpoint, progress)
    }

    /// The same from a checkpoint already open.
    ///
    /// # Errors
    /// As [`QFormer::load`].
    pub fn from_checkpoint(
        device: B,
        config: Config,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let checkpoint = NamedCheckpoint::new(checkpoint)?;
        let abilities = Abilities::of(&config, &checkpoint);
        let specs = Parameters::spec(&config, abilities);
        reject_surplus(&checkpoint, &part_names(&specs), |name| {
            ["vision_model.", "language_model.", "language_projection.", "cls."]
                .iter()
                .any(|p| name.starts_with(p))
                || ["temp", "itm_scale", "itm_bias"].contains(&name)
        })?;
        Self::from_source(device, config, abilities, &checkpoint, progress)
    }

    /// The same with parameters from anywhere.
    ///
    /// # Errors
    /// Fails as [`Config::validate`] and the source do, if the heads of attention are too wide for the device,
    /// and if there is not enough memory.
    pub fn from_source(
        device: B,
        config: Config,
        abilities: Abilities,
        source: &dyn TensorSource,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        config.validate()?;
        check_heads::<B>("the Q-Former", config.qformer.head_dim())?;
        let specs = Parameters::spec(&config, abilities);
        let weights = Weights::load(&device, &specs, source, progress)?;
        let first_attended = Arena::sized(&device, "the queries", 0)?;
        let (workspace, keys_values) = (Workspace::default(), Workspace::default());
        let mut model = Self { device, config, abilities, weights, first_attended, workspace, keys_values };
        model.prepare_first_attended()?;
        Ok(model)
    }

    /// The model's sizes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What the checkpoint can do besides reading images.
    pub fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Tensors with values that are infinite or not a number, and how many.
    pub fn not_finite(&self) -> &[(String, usize)] {
        &self.weights.not_finite
    }

    /// Bytes that the weights take.
    pub fn weight_bytes(&self) -> usize {
        self.weights.bytes()
    }

    /// BLIP-2's similarity [I, T]: for each image [I, Q, E] and text [T, E], both of unit length, the
    /// largest cosine over the image's queries.
    ///
    /// # Errors
    /// Fails if the features are not of this model's shapes, and if there is not enough memory.
    pub fn similarity(&self, images: &HostTensor, texts: &HostTensor) -> Result<HostTensor> {
        let (queries, width) = (self.config.num_query_tokens, self.config.image_text_hidden_size);
        let count = match *images.shape() {
            [count, q, e] if q == queries && e == width => count,
            ref found => {
                return Err(Error::value(format!(
                    "features of images have shape {found:?}; this model compares [images, {queries}, {width}]"
                )));
            }
        };
        let text_count = match *texts.shape() {
            [count, e] if e == width => count,
            ref found => {
                return Err(Error::value(format!(
                    "features of texts have shape {found:?}; this model compares [texts, {width}]"
                )));
            }
        };
        if count == 0 || text_count == 0 {
            return HostTensor::new(&[count, text_count], Vec::new());
        }
        let sizes = [count, queries, text_count, width];
        let mut lease = self.workspace.lease(&self.device, (count, "images"), |c| {
            SimilarityActs::carve(c, sizes);
        })?;
        let mut acts = SimilarityActs::carve(&mut lease.cursor(), sizes);
        self.device.write(images.values(), 0, acts.images.reborrow())?;
        self.device.write(texts.values(), 0, acts.texts.reborrow())?;
        self.device.similarity_forward(SimilarityForward {
            pairing: Pairing::All,
            queries: acts.images.view(),
            texts: acts.texts.view(),
            similarity: acts.similarity.reborrow(),
            winner: None,
        })?;
        HostTensor::new(&[count, text_count], self.device.read(acts.similarity.view())?)
    }

    /// The stack in inference, of query rows that read `image`, if there are any.
    fn stack<'a>(
        &'a self,
        parameters: &'a Parameters<W<'a, B>>,
        image: Option<Image<'a, B>>,
    ) -> Stack<'a, B> {
        let (blocks, image_kv) = (&parameters.blocks[..], &parameters.image_kv);
        Stack { config: &self.config.qformer, parameters, blocks, image_kv, image, dropout: None }
    }

    /// Extents of `vision_output` [I, N, W].
    fn check_images(&self, vision_output: TensorInput<'_, B>) -> Result<usize> {
        let (tokens, width) = (self.config.image_tokens(), self.config.vision.width());
        match *vision_output.shape() {
            [images, n, w] if n == tokens && w == width => Ok(images),
            ref found => Err(Error::value(format!(
                "image features have shape {found:?}; this model reads [images, {tokens}, {width}]"
            ))),
        }
    }

    fn require_retrieval(&self) -> Result<()> {
        if self.abilities.retrieval {
            return Ok(());
        }
        Err(Error::usage(
            "this checkpoint has no projections and no matching head, so it cannot compare images with texts; \
             use one of Blip2ForImageTextRetrieval",
        ))
    }

    /// Checks that pairs (image, text) are of so many images and texts.
    fn check_pairs(&self, pairs: &[(usize, usize)], [images, texts]: [usize; 2]) -> Result<()> {
        match pairs.iter().find(|&&(image, text)| image >= images || text >= texts) {
            None => Ok(()),
            Some(pair) => Err(Error::usage(format!(
                "pair {pair:?} names an image or text that is not among the {images} images and {texts} texts"
            ))),
        }
    }

    /// Checks that the model reads text and that these tokens are in its tables.
    fn check_texts<T: AsRef<[u32]>>(&self, texts: &[T]) -> Result<()> {
        if !self.abilities.text {
            return Err(Error::usage(
                "this checkpoint's Q-Former reads no text (use_qformer_text_input is false)",
            ));
        }
        let (vocabulary, longest) =
            (self.config.qformer.vocab_size, self.config.qformer.max_position_embeddings);
        for (index, tokens) in texts.iter().map(AsRef::as_ref).enumerate() {
            if tokens.is_empty() || tokens.len() > longest {
                return Err(Error::value(format!(
                    "text {index} has {} tokens; 1 to {longest} can be read",
                    tokens.len()
                )));
            }
            if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocabulary) {
                return Err(Error::value(format!(
                    "text {index} has token {id}, but the vocabulary has {vocabulary}; the tokenizer is of another model"
                )));
            }
        }
        Ok(())
    }
}

/// What the comparison of images and texts works in.
struct SimilarityActs<'a, B: Backend> {
    /// [I·Q, E]
    images: M<'a, B>,
    /// [T, E]
    texts: M<'a, B>,
    /// [I, T]
    similarity: M<'a, B>,
}

impl<'a, B: Backend> SimilarityActs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, [images, queries, texts, width]: [usize; 4]) -> Self {
        Self {
            images: cursor.take(images * queries, width),
            texts: cursor.take(texts, width),
            similarity: cursor.take(images, texts),
        }
    }
}

impl Abilities {
    /// What a checkpoint of this configuration can do.
    pub fn of(config: &Config, checkpoint: &NamedCheckpoint<'_>) -> Self {
        let text = config.qformer.use_qformer_text_input;
        let heads = ["vision_projection.weight", "text_projection.weight", "itm_head.weight"];
        Self { text, retrieval: text && heads.iter().any(|name| checkpoint.contains(name)) }
    }
}
