//! Captions by the Q-Former's own language-modelling head.

use super::decoder_pass::{Decoder, DecoderState};
use super::image_pass::SomeImages;
use super::{LanguageHead, QFormer};
use crate::config::Config;
use crate::device::Cpu;
use crate::error::{Error, Result};
use crate::generate::{Decoding, Hypothesis};
use crate::layers::kv_cache::CacheRows;
use crate::memory::{TensorInput, Workspace};
use crate::ops::Backend;
use crate::params::safetensors::Checkpoint;
use crate::params::{NamedCheckpoint, Slot, TensorSource, Weights};
use crate::tokenizer::Tokenizer;
use std::path::Path;

/// Rows of logits formed at a time where texts are known.
const ROWS_PER_PASS: usize = 512;

/// A Q-Former with its language-modelling head, for inference.
///
/// ```no_run
/// use qformer::{Captioner, Cpu, HostTensor, Tokenizer, generate::Decoding};
///
/// # fn main() -> qformer::Result<()> {
/// # let image_features = HostTensor::new(&[0, 257, 1408], Vec::new())?;
/// let folder = "runs/one/checkpoints/latest";
/// let (captioner, tokenizer) = (Captioner::load(Cpu::<f32>::new(), folder)?, Tokenizer::load(folder.as_ref())?);
/// // `image_features` [I, N, W] are a `VisionEncoder`'s; of each image the best captions come first.
/// for captions in captioner.caption(&image_features, &Decoding::default())? {
///     println!("{}", tokenizer.decode(&captions[0].tokens)?);
/// }
/// # Ok(())
/// # }
/// ```
pub struct Captioner<B: Backend = Cpu> {
    model: QFormer<B>,
    head: Weights<B, LanguageHead<Slot>>,
    start: u32,
    end: u32,
    /// Keys and values of images and of texts that grow.
    growing: Workspace<B>,
}

/// A caption that was generated.
#[derive(Clone, Debug, PartialEq)]
pub struct Caption {
    /// Without `[DEC]` and `[SEP]`.
    pub tokens: Vec<u32>,
    /// As [`Hypothesis`](crate::generate::Hypothesis) says.
    pub score: f64,
}

/// Whether a checkpoint has a language-modelling head.
pub fn has_caption_head(checkpoint: &NamedCheckpoint<'_>) -> bool {
    checkpoint.names().any(|name| name.starts_with("cls.predictions."))
}

/// The error of a checkpoint without one.
pub(crate) fn no_caption_head(path: &Path) -> Error {
    let what = "has no language-modelling head (tensors cls.predictions.…), so it cannot caption: Hugging Face's \
                checkpoints leave it out; LAVIS's own .pth files and the checkpoints that `qformer train` writes have it";
    Error::input(path, what)
}

/// The loss of a caption's tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CaptionLoss {
    /// The sum of −ln p over the tokens, in nats.
    pub loss: f64,
    /// How many are predicted: all but the first.
    pub tokens: usize,
}

impl<B: Backend> Captioner<B> {
    /// Reads a model from a folder as [`QFormer::load`] does, with its tokenizer, which says how captions
    /// begin and end ([`Tokenizer::caption_ends`]).
    ///
    /// # Errors
    /// Fails as `QFormer::load` does, and if the checkpoint has no language-modelling head.
    pub fn load(device: B, directory: impl AsRef<Path>) -> Result<Self> {
        let directory = directory.as_ref();
        let (config, checkpoint) = (Config::load(directory)?, Checkpoint::open(directory)?);
        let ends = Tokenizer::load(directory)?.caption_ends();
        Self::from_checkpoint(device, config, &checkpoint, ends, &mut |_, _| ())
    }

    /// The same from a checkpoint already open; captions begin and end with the tokens `ends`.
    ///
    /// # Errors
    /// As [`Captioner::load`].
    pub fn from_checkpoint(
        device: B,
        config: Config,
        checkpoint: &Checkpoint,
        ends: [u32; 2],
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self> {
        let named = NamedCheckpoint::new(checkpoint)?;
        if !has_caption_head(&named) {
            return Err(no_caption_head(checkpoint.path()));
        }
        let model = QFormer::from_checkpoint(device, config, checkpoint, progress)?;
        Self::new(model, &named, ends)
    }

    /// A model with the language-modelling head of `source`.
    ///
    /// # Errors
    /// Fails as the source does, if the model reads no text or has no such tokens, and if there is not
    /// enough memory.
    pub fn new(model: QFormer<B>, source: &dyn TensorSource, [start, end]: [u32; 2]) -> Result<Self> {
        model.check_texts::<Vec<u32>>(&[])?;
        let vocabulary = model.config.qformer.vocab_size;
        if let Some(token) = [start, end].into_iter().find(|&token| token as usize >= vocabulary) {
            return Err(Error::value(format!(
                "captions begin with token {start} and end with {end}, but the vocabulary has {vocabulary} tokens, \
                 so there is none of the id {token}; vocab_size in config.json and the tokenizer must agree"
            )));
        }
        let specs = LanguageHead::spec(&model.config.qformer);
        let head = Weights::load(&model.device, &specs, source, &mut |_, _| ())?;
        Ok(Self { model, head, start, end, growing: Workspace::default() })
    }

    /// The Q-Former.
    pub fn model(&self) -> &QFormer<B> {
        &self.model
    }

    /// Tensors with values that are infinite or not a number, and how many.
    pub fn not_finite(&self) -> Vec<(String, usize)> {
        [self.model.not_finite(), &self.head.not_finite].concat()
    }

    /// Captions for each image of `vision_output` [I, N, W], before its last norm; the best first.
    /// [`Decoding::load`] tells how the checkpoint means them to be found.
    ///
    /// # Errors
    /// Fails if the features are not of this model's shape, if the decoding is not valid or asks for
    /// captions longer than the model's position table, if the model's output is not finite, and if there
    /// is not enough memory.
    pub fn caption<'a>(
        &self,
        vision_output: impl Into<TensorInput<'a, B>>,
        decoding: &Decoding,
    ) -> Result<Vec<Vec<Caption>>> {
        let vision_output = vision_output.into();
        decoding.validate()?;
        let mut captions = Vec::new();
        let all = self.model.check_images(vision_output)?;
        for some in SomeImages::passes(vision_output, all) {
            let (images, decoding) = (some.count(), decoding.starting_at(some.range.start as u64));
            let sequences = images.saturating_mul(decoding.sequences_at_a_time());
            self.decode(&some, [sequences, decoding.max_new_tokens.saturating_add(1)], |decoder| {
                let found = decoding.run(decoder, &vec![[self.start]; images], &[self.end])?;
                captions.extend(found.into_iter().map(|hypotheses| {
                    let caption = |mut hypothesis: Hypothesis| {
                        hypothesis.tokens.pop_if(|token| *token == self.end);
                        Caption { tokens: hypothesis.tokens, score: hypothesis.score }
                    };
                    hypotheses.into_iter().map(caption).collect()
                }));
                Ok(())
            })?;
        }
        Ok(captions)
    }

    /// Calls `run` with texts that can grow after the images of `vision_output` [I, N, W], one at least: at
    /// most `sequences` at a time, of at most `length` tokens.
    ///
    /// # Errors
    /// Fails as `run` does, and as [`Captioner::caption`].
    pub fn with_decoder<'a, R>(
        &self,
        vision_output: impl Into<TensorInput<'a, B>>,
        [sequences, length]: [usize; 2],
        run: impl FnOnce(&mut Decoder<'_, B>) -> Result<R>,
    ) -> Result<R> {
        let vision_output = vision_output.into();
        let images = self.model.check_images(vision_output)?;
        if images == 0 {
            return Err(Error::value("there is no image to be continued by text; give one or more"));
        }
        self.decode(&SomeImages::of(vision_output, 0..images), [sequences.max(images), length], run)
    }

    fn decode<R>(
        &self,
        images: &SomeImages<'_, B>,
        [sequences, length]: [usize; 2],
        run: impl FnOnce(&mut Decoder<'_, B>) -> Result<R>,
    ) -> Result<R> {
        let (model, longest) = (&self.model, self.model.config.qformer.max_position_embeddings);
        if length > longest {
            return Err(Error::usage(format!(
                "captions of {length} tokens, [DEC] included, are longer than the {longest} that the model can read; \
                 lower `max_new_tokens`"
            ))
            .naming(&["max_new_tokens"]));
        }
        // Rows of text are counted in 32 bits.
        let rows = sequences.checked_mul(length).filter(|&rows| u32::try_from(rows).is_ok());
        let rows = rows.ok_or_else(|| {
            Error::usage(format!(
                "{sequences} sequences of {length} tokens are more than can be followed at a time; lower `beams`, \
                 `sequences` or `max_new_tokens`"
            ))
            .naming(&["beams", "sequences", "max_new_tokens"])
        })?;
        let sizes = [images.count(), rows];
        let mut lease = self.growing.lease(&model.device, (sequences, "sequences"), |c| {
            DecoderState::carve(c, model, sizes);
        })?;
        let mut state = DecoderState::carve(&mut lease.cursor(), model, sizes);
        model.device.enter(|| model.image_pass_keeping(images, &mut state.queries))?;
        let (cached, images) = (CacheRows::new(images.count(), length), (0..images.count()).collect());
        let (head, start) = (self.head.view(), self.start);
        run(&mut Decoder { model, head, start, state, most: sequences, images, cached })
    }

    /// The loss of each of `pairs` (image, text), indices into `vision_output` [I, N, W] and
    /// `texts` (token ids as they are learnt from: `[CLS]`, which becomes the start token, to `[SEP]`).
    ///
    /// # Errors
    /// Fails if an index, the features or a text are not fit, and if there is not enough memory.
    pub fn caption_loss<'a>(
        &self,
        vision_output: impl Into<TensorInput<'a, B>>,
        texts: &[Vec<u32>],
        pairs: &[(usize, usize)],
    ) -> Result<Vec<CaptionLoss>> {
        let vision_output = vision_output.into();
        let images = self.model.check_images(vision_output)?;
        self.model.check_texts(texts)?;
        self.model.check_pairs(pairs, [images, texts.len()])?;
        if let Some((_, text)) = pairs.iter().find(|(_, text)| texts[*text].len() < 2) {
            return Err(Error::value(format!("text {text} has 1 token; there is none to predict")));
        }
        let mut losses = vec![CaptionLoss { loss: 0.0, tokens: 0 }; pairs.len()];
        for some in SomeImages::passes(vision_output, images) {
            let (model, images) = (&self.model, some.count());
            let mut lease = self.growing.lease(&model.device, (images, "images"), |c| {
                DecoderState::carve(c, model, [images, 0]);
            })?;
            let mut state = DecoderState::carve(&mut lease.cursor(), model, [images, 0]);
            model.device.enter(|| model.image_pass_keeping(&some, &mut state.queries))?;
            let of_pass = |pair: &usize| some.range.contains(&pairs[*pair].0);
            let mut rest: Vec<usize> = (0..pairs.len()).filter(of_pass).collect();
            while !rest.is_empty() {
                let mut rows = 0;
                let fit = rest.iter().take_while(|&&pair| {
                    rows += texts[pairs[pair].1].len() - 1;
                    rows <= ROWS_PER_PASS
                });
                let later = rest.split_off(fit.count().max(1));
                let begun = |&pair: &usize| {
                    let (image, text) = (pairs[pair].0 - some.range.start, &texts[pairs[pair].1]);
                    (image, [&[self.start], &text[1..]].concat())
                };
                let now: Vec<(usize, Vec<u32>)> = rest.iter().map(begun).collect();
                let found =
                    model.device.enter(|| model.losses_after(&self.head.view(), &state.queries, &now))?;
                let mut found = found.into_iter();
                for (&pair, (_, text)) in rest.iter().zip(&now) {
                    let tokens = text.len() - 1;
                    let loss = found.by_ref().take(tokens).map(f64::from).sum();
                    losses[pair] = CaptionLoss { loss, tokens };
                }
                rest = later;
            }
        }
        Ok(losses)
    }
}
