//! Opening a checkpoint.

use super::Pipeline;
use super::device::{DeviceName, OnDevice};
use super::engine::{Engine, Loading, Models, Wanted};
use super::generation::TextTask;
use super::language::{LanguageFolder, WeightType};
use crate::config::{Config, LanguageConfig, VitConfig};
use crate::error::{Error, Result};
use crate::generate::Decoding;
use crate::models::qformer::captioner::{has_caption_head, no_caption_head};
use crate::models::vision::encoder;
use crate::models::vision::image::ImageProcessor;
use crate::ops::Backend;
use crate::params::NamedCheckpoint;
use crate::params::safetensors::Checkpoint;
use crate::tensor::NumberType;
use crate::tokenizer::{LanguageTokenizer, Tokenizer};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Which models of a checkpoint are loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Parts {
    /// All that are there.
    #[default]
    All,
    /// The Q-Former, for images that were encoded before.
    QFormer,
    /// The image encoder.
    ImageEncoder,
}

/// A checkpoint that is being opened.
///
/// ```
/// use qformer::{Parts, Pipeline};
///
/// # fn main() -> qformer::Result<()> {
/// // For images that were encoded before, without the encoder's weights.
/// let builder = Pipeline::builder("tests/golden/retrieval/model")?.parts(Parts::QFormer);
/// let pipeline = builder.load_with_progress(&mut |what, done, total| eprintln!("{what}: {done} of {total} bytes"))?;
/// assert!(pipeline.abilities().unwrap().retrieval);
/// # Ok(())
/// # }
/// ```
pub struct PipelineBuilder {
    folder: Folder,
    device: DeviceName,
    parts: Parts,
    batch_size: NonZeroUsize,
    language: Language,
    weight_type: WeightType,
}

/// Whether the language model is loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Language {
    Absent,
    IfThere,
}

/// What a checkpoint's folder holds beside weights.
pub(super) struct Folder {
    path: PathBuf,
    pub(super) config: Config,
    pub(super) checkpoint: Checkpoint,
    // Read where they are wanted: an embedding of images alone needs no tokenizer.
    tokenizer: OnceLock<Tokenizer>,
    image_processor: OnceLock<ImageProcessor>,
    language: LanguageFolder,
}

impl Folder {
    pub(super) fn tokenizer(&self) -> Result<&Tokenizer> {
        if let Some(tokenizer) = self.tokenizer.get() {
            return Ok(tokenizer);
        }
        let tokenizer = Tokenizer::load(&self.path)?;
        tokenizer.check_vocabulary(self.config.qformer.vocab_size)?;
        Ok(self.tokenizer.get_or_init(|| tokenizer))
    }

    pub(super) fn image_processor(&self) -> Result<&ImageProcessor> {
        if let Some(processor) = self.image_processor.get() {
            return Ok(processor);
        }
        let processor = ImageProcessor::load_for(&self.path, self.require_encoder()?.image_size)?;
        Ok(self.image_processor.get_or_init(|| processor))
    }

    pub(super) fn decoding(&self) -> Result<Decoding> {
        Decoding::load_for_captions(&self.path, self.config.qformer.max_position_embeddings)
    }

    /// The tokenizer of the language model.
    pub(super) fn language_tokenizer(&self) -> Result<&LanguageTokenizer> {
        self.language_config()?;
        self.language.tokenizer(&self.config)
    }

    /// The tokens that end the language model's texts.
    pub(super) fn stops(&self) -> Result<Vec<u32>> {
        self.language.stops(self.language_config()?)
    }

    /// How the language model's texts are generated where nothing else is asked for.
    pub(super) fn decoding_for(&self, task: TextTask) -> Result<Decoding> {
        let (sizes, length_penalty) = match task {
            TextTask::Caption => ([5, 30], 1.0),
            TextTask::Answer => ([5, 10], if self.is_t5() { -1.0 } else { 0.0 }),
            TextTask::Chat => ([1, 50], 1.0),
        };
        self.language.decoding(self.language_config()?, sizes, length_penalty)
    }

    pub(super) fn is_t5(&self) -> bool {
        matches!(self.config.language, Some(LanguageConfig::T5(_)))
    }

    /// The configuration of the language model, of a checkpoint that has one.
    pub(super) fn language_config(&self) -> Result<&LanguageConfig> {
        let has = self.language.checkpoint(&self.checkpoint)?.is_some();
        self.config.language.as_ref().filter(|_| has).ok_or_else(|| {
            let what = "has no language model (text_config in config.json and tensors language_model.…): use a checkpoint of \
                        Blip2ForConditionalGeneration, or give the folder of the one that it was trained with \
                        (`language_model`)";
            Error::input(&self.path, what).naming(&["language_model"])
        })
    }

    /// The image encoder, of a checkpoint that has one which is built here.
    pub(super) fn require_encoder(&self) -> Result<&VitConfig> {
        let path = self.checkpoint.path();
        let config = self.config.vision.encoder().map_err(|error| Error::input(path, error))?;
        encoder::expect_in(&self.checkpoint)?;
        Ok(config)
    }

    /// Refuses a checkpoint without a language-modelling head.
    pub(super) fn require_caption_head(&self) -> Result<()> {
        match has_caption_head(&NamedCheckpoint::new(&self.checkpoint)?) {
            true => Ok(()),
            false => Err(no_caption_head(self.checkpoint.path())),
        }
    }
}

impl PipelineBuilder {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let folder = Folder {
            path: folder.to_owned(),
            config: Config::load(folder)?,
            checkpoint: Checkpoint::open(folder)?,
            tokenizer: OnceLock::new(),
            image_processor: OnceLock::new(),
            language: LanguageFolder::within(folder),
        };
        let batch_size = NonZeroUsize::new(8).expect("above zero");
        let (device, weight_type) = (DeviceName::Auto, WeightType::Auto);
        Ok(Self { folder, device, parts: Parts::All, batch_size, language: Language::Absent, weight_type })
    }

    /// With the language model, if the checkpoint has one; without this it is not loaded.
    pub fn with_language_model(self) -> Self {
        Self { language: Language::IfThere, ..self }
    }

    /// With the language model in the folder `directory`, as transformers saves it alone: the one that the queries of a
    /// checkpoint of LAVIS were trained with.
    ///
    /// # Errors
    /// Fails if its `config.json` or its weights are missing or malformed.
    pub fn language_model(mut self, directory: &Path) -> Result<Self> {
        let (language, config) = LanguageFolder::apart(directory)?;
        (self.folder.language, self.folder.config.language) = (language, Some(config));
        Ok(self.with_language_model())
    }

    /// The type that the language model's matrices are kept in; [`WeightType::Auto`] if nothing is said.
    pub fn weight_type(self, weight_type: WeightType) -> Self {
        Self { weight_type, ..self }
    }

    /// Refuses a checkpoint without a language model, before anything is loaded.
    ///
    /// # Errors
    /// Fails if it has none, or no tokenizer for it.
    pub fn require_language_model(&self) -> Result<()> {
        self.folder.language_tokenizer().map(drop)
    }

    /// As [`Pipeline::decoding_for`].
    ///
    /// # Errors
    /// As `Pipeline::decoding_for`.
    pub fn decoding_for(&self, task: TextTask) -> Result<Decoding> {
        self.folder.decoding_for(task)
    }

    /// Whether there is a language model.
    pub fn has_language_model(&self) -> bool {
        self.folder.language_config().is_ok()
    }

    /// Where to compute; [`DeviceName::Auto`] if nothing is said.
    pub fn device(self, device: DeviceName) -> Self {
        Self { device, ..self }
    }

    /// What to load; [`Parts::All`] if nothing is said.
    pub fn parts(self, parts: Parts) -> Self {
        Self { parts, ..self }
    }

    /// Images that are encoded at a time; 8 if nothing is said.
    pub fn batch_size(self, batch_size: NonZeroUsize) -> Self {
        Self { batch_size, ..self }
    }

    /// The model's sizes and constants.
    pub fn config(&self) -> &Config {
        &self.folder.config
    }

    /// The checkpoint, of which nothing is loaded yet.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.folder.checkpoint
    }

    /// As [`Pipeline::tokenizer`].
    ///
    /// # Errors
    /// As `Pipeline::tokenizer`.
    pub fn tokenizer(&self) -> Result<&Tokenizer> {
        self.folder.tokenizer()
    }

    /// As [`Pipeline::image_processor`].
    ///
    /// # Errors
    /// As `Pipeline::image_processor`.
    pub fn image_processor(&self) -> Result<&ImageProcessor> {
        self.folder.image_processor()
    }

    /// As [`Pipeline::decoding`].
    ///
    /// # Errors
    /// As `Pipeline::decoding`.
    pub fn decoding(&self) -> Result<Decoding> {
        self.folder.decoding()
    }

    /// Refuses a checkpoint without an image encoder that is built here, before anything is loaded.
    ///
    /// # Errors
    /// Fails if it has none.
    pub fn require_encoder(&self) -> Result<()> {
        self.folder.require_encoder().map(drop)
    }

    /// Refuses a checkpoint whose Q-Former has no language-modelling head, before anything is loaded.
    ///
    /// # Errors
    /// Fails if it has none.
    pub fn require_caption_head(&self) -> Result<()> {
        self.folder.require_caption_head()
    }

    /// Loads what is to be loaded.
    ///
    /// # Errors
    /// As [`Pipeline::open`].
    pub fn load(self) -> Result<Pipeline> {
        self.load_with_progress(&mut |_, _, _| ())
    }

    /// The same, telling `progress` what is loaded, and the bytes placed so far and in all.
    ///
    /// # Errors
    /// As [`Pipeline::open`].
    pub fn load_with_progress(
        self,
        progress: &mut dyn FnMut(&'static str, usize, usize),
    ) -> Result<Pipeline> {
        let Self { folder, device, parts, batch_size, language, weight_type } = self;
        let (dtype, narrowed) = folder.language.weight_type(&folder.checkpoint, weight_type);
        let language = (language == Language::IfThere && folder.language_config().is_ok()).then_some(dtype);
        let (engine, fallback) = device.run(Load { folder: &folder, parts, language, progress })?;
        let narrowed = narrowed && language.is_some();
        Ok(Pipeline { engine: engine?, folder, batch_size: batch_size.get(), fallback, narrowed })
    }
}

/// The loading of a checkpoint's models.
struct Load<'a> {
    folder: &'a Folder,
    parts: Parts,
    /// The type of the language model's matrices, if it is loaded.
    language: Option<NumberType>,
    progress: Loading<'a>,
}

impl OnDevice for Load<'_> {
    type Output = (Result<Arc<dyn Engine>>, Option<Error>);

    fn run<B: Backend + Clone>(self, device: B, fallback: Option<Error>) -> Self::Output {
        let Folder { config, checkpoint, .. } = self.folder;
        let load = || -> Result<Arc<dyn Engine>> {
            let encoder = match self.parts {
                Parts::All => {
                    config.vision.encoder().is_ok() && encoder::is_in(&NamedCheckpoint::new(checkpoint)?)
                }
                Parts::QFormer => false,
                Parts::ImageEncoder => true,
            };
            let parts = [encoder, self.parts != Parts::ImageEncoder];
            // Without a tokenizer there are features, and no captions.
            let ends = self.folder.tokenizer().ok().map(Tokenizer::caption_ends);
            let language = match self.language {
                Some(dtype) => self.folder.language.checkpoint(checkpoint)?.map(|named| (named, dtype)),
                None => None,
            };
            let wanted = Wanted { parts, ends, language };
            Ok(Arc::new(Models::load(device, config, checkpoint, wanted, self.progress)?))
        };
        (load(), fallback)
    }
}
