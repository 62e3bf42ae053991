//! The image pass: the queries alone read the image.

use super::projection::ProjectionActs;
use super::stack::{BlockActs, Given, Image, Kept, Stack, StackActs, StreamInputs, StreamPlan};
use super::{ImageFeatures, QFormer};
use crate::config::Config;
use crate::device::{M, V};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::stream::FirstKeys;
use crate::memory::{Address, Arena, Cursor, DeviceTensor, Pass, TensorInput};
use crate::ops::Backend;
use crate::ops::absorbed_attention::CrossSizes;
use crate::ops::attention::{Mask, Sequence, Sequences, Span};
use crate::tensor::HostTensor;
use std::ops::Range;

/// Images of a pass: some of those that the image encoder's output [I, N, W] is of.
pub(super) struct SomeImages<'a, B: Backend> {
    vision_output: TensorInput<'a, B>,
    pub(super) range: Range<usize>,
}

impl<'a, B: Backend> SomeImages<'a, B> {
    /// Of the output for so many `images`, all, as many at a time as a pass takes.
    pub(super) fn passes(vision_output: TensorInput<'a, B>, images: usize) -> impl Iterator<Item = Self> {
        (0..images).step_by(B::IMAGES_PER_PASS).map(move |first| {
            let range = first..images.min(first + B::IMAGES_PER_PASS);
            Self { vision_output, range }
        })
    }

    /// Those of a range.
    pub(super) fn of(vision_output: TensorInput<'a, B>, range: Range<usize>) -> Self {
        Self { vision_output, range }
    }

    pub(super) fn count(&self) -> usize {
        self.range.len()
    }

    /// Writes the output for them to `to` [n·N, W].
    pub(super) fn write(&self, device: &B, to: M<'_, B>) -> Result<()> {
        self.vision_output.write(device, self.range.clone(), to)
    }
}

/// The image pass by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ImagePass {
    stream: StreamPlan,
    /// Width of all blocks' keys and values, 0 where none are formed.
    keys_values: usize,
    /// Where the queries, keys and values of the first block go, if they are kept; those of the others follow.
    kept: Option<Address>,
}

/// What the image pass works in.
struct ImagePassActs<'a, B: Backend> {
    /// The image encoder's output [I·N, W]
    vision_output: M<'a, B>,
    /// The same, normed [I·N, W]
    features: M<'a, B>,
    /// [I·N, blocks·2·D], where keys and values are formed
    keys_values: M<'a, B>,
    stack: StackActs<'a, B>,
    projection: ProjectionActs<'a, B>,
    /// [I·Q, E], of unit length
    unit: M<'a, B>,
}

impl<B: Backend> Pass<B> for ImagePass {
    type Model = Config;
    type Acts<'a> = ImagePassActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.stream.sets, "images")
    }

    fn carve<'a>(&self, config: &Config, cursor: &mut Cursor<'a, B>) -> ImagePassActs<'a, B> {
        let (tokens, width) = (self.stream.sets * config.image_tokens(), config.vision.width());
        let (rows, embedding) = (self.stream.rows(), config.image_text_hidden_size);
        ImagePassActs {
            vision_output: cursor.take(tokens, width),
            features: cursor.take(tokens, width),
            keys_values: cursor.take(tokens, self.keys_values),
            stack: StackActs::carve(cursor, &self.stream, &config.qformer, Kept::Output),
            projection: ProjectionActs::carve(cursor, rows, embedding, Keep::Nothing),
            unit: cursor.take(rows, embedding),
        }
    }
}

impl ImagePass {
    /// Of so many images, with the tables of its stream.
    fn new<B: Backend>(model: &QFormer<B>, images: usize, keys_values: usize) -> (Self, [Sequences; 2]) {
        let queries = model.config.num_query_tokens;
        let own = Sequences::uniform(images, queries);
        let cross = model.cross_sequences((0..images).collect());
        let stream = StreamPlan {
            sets: images,
            queries,
            text_rows: 0,
            groups: vec![(own.sizes(), Mask::None, FirstKeys::Own)],
            cross: Some(cross.sizes()),
        };
        (Self { stream, keys_values, kept: None }, [own, cross])
    }
}

impl<B: Backend> ImagePassActs<'_, B> {
    /// What the host knows: the image encoder's output, and the tables.
    fn write(
        &mut self,
        model: &QFormer<B>,
        images: &SomeImages<'_, B>,
        [own, cross]: &[Sequences; 2],
    ) -> Result<()> {
        images.write(&model.device, self.vision_output.reborrow())?;
        self.stack.write(
            &model.device,
            &StreamInputs {
                queries: model.config.num_query_tokens,
                tokens: &[],
                positions: &[],
                sequences: own,
                cross: Some(cross),
            },
        )
    }

    /// Norms the features, and through the first `blocks` blocks.
    fn forward(
        &mut self,
        model: &QFormer<B>,
        pass: &ImagePass,
        blocks: usize,
        given: Given<'_, '_, B>,
    ) -> Result<()> {
        let (b, parameters) = (&model.device, model.weights.view());
        parameters.image_norm.forward(b, self.vision_output.view(), None, self.features.reborrow())?;
        let features = self.features.view();
        let image = if pass.keys_values == 0 {
            Image::Features(features, pass.stream.sets)
        } else {
            parameters.image_kv.forward(b, features, self.keys_values.reborrow())?;
            Image::KeysValues(self.keys_values.view())
        };
        let stack = model.stack(&parameters, Some(image));
        Stack { blocks: &parameters.blocks[..blocks], ..stack }.forward(
            b,
            &pass.stream,
            &mut self.stack,
            given,
        )
    }
}

impl<B: Backend> QFormer<B> {
    /// Reads images, perhaps none: the image encoder's output [I, N, W], before its last norm, becomes each
    /// query's output and feature.
    ///
    /// # Errors
    /// Fails if the features are not of this model's shape, and if there is not enough memory.
    pub fn encode_image<'a>(&self, vision_output: impl Into<TensorInput<'a, B>>) -> Result<ImageFeatures> {
        let vision_output = vision_output.into();
        let images = self.check_images(vision_output)?;
        let (queries, hidden) = (self.config.num_query_tokens, self.config.qformer.hidden_size);
        let embedding = self.config.image_text_hidden_size;
        let (mut query_output, mut features) = (Vec::new(), Vec::new());
        for some in SomeImages::passes(vision_output, images) {
            self.device.enter(|| {
                self.image_pass(&some, |acts| {
                    let output = acts.stack.output(self.config.qformer.num_hidden_layers);
                    query_output.extend(self.device.read(output)?);
                    if self.abilities.retrieval {
                        features.extend(self.device.read(acts.unit.view())?);
                    }
                    Ok(())
                })
            })?;
        }
        let features =
            self.abilities.retrieval.then(|| HostTensor::new(&[images, queries, embedding], features));
        Ok(ImageFeatures {
            query_output: HostTensor::new(&[images, queries, hidden], query_output)?,
            features: features.transpose()?,
        })
    }

    /// The image pass of a few images; `read` sees what it worked in.
    fn image_pass(
        &self,
        images: &SomeImages<'_, B>,
        read: impl FnOnce(&mut ImagePassActs<'_, B>) -> Result<()>,
    ) -> Result<()> {
        let (b, parameters) = (&self.device, self.weights.view());
        let (pass, tables) = ImagePass::new(self, images.count(), self.formed_width());
        let blocks = parameters.blocks.len();
        // SAFETY: beside its own memory the pass reads the model's weights and first attended queries.
        unsafe {
            self.workspace.run(
                b,
                &self.config,
                pass,
                |acts| acts.write(self, images, &tables),
                |pass, acts| {
                    let given = Given { attended: Some(self.first_attended()), ..Given::nothing() };
                    acts.forward(self, pass, blocks, given)?;
                    let Some(heads) = &parameters.heads else { return Ok(()) };
                    let (x, unit) = (acts.stack.output(blocks), acts.unit.reborrow());
                    acts.projection.forward(b, &heads.vision_projection, x, unit)
                },
                read,
            )
        }
    }

    /// The same as far as each query's output [I, Q, D], which stays on the device.
    ///
    /// # Errors
    /// As [`QFormer::encode_image`].
    pub fn query_output<'a>(&self, vision_output: impl Into<TensorInput<'a, B>>) -> Result<DeviceTensor<B>> {
        let vision_output = vision_output.into();
        let images = self.check_images(vision_output)?;
        let (queries, hidden) = (self.config.num_query_tokens, self.config.qformer.hidden_size);
        let mut output = DeviceTensor::zeros(&self.device, "query outputs", &[images, queries, hidden])?;
        for some in SomeImages::passes(vision_output, images) {
            let rows = some.range.start * queries..some.range.end * queries;
            self.device.enter(|| {
                self.image_pass(&some, |acts| {
                    let to = output.view_mut().split_rows(rows.start).1.split_rows(rows.len()).0;
                    self.device.copy(acts.stack.output(self.config.qformer.num_hidden_layers), to)
                })
            })?;
        }
        Ok(output)
    }

    /// The image pass of a few images for texts that continue them: `kept`, one for each block, takes the
    /// queries, keys and values of self-attention [I·Q, 3·D].
    pub(super) fn image_pass_keeping(&self, images: &SomeImages<'_, B>, kept: &mut [M<'_, B>]) -> Result<()> {
        let (pass, tables) = ImagePass::new(self, images.count(), self.formed_width());
        let pass = ImagePass { kept: Some(Address::of(kept[0].view())), ..pass };
        // SAFETY: beside its own memory the pass reads the model's weights and writes what is kept, whose address it
        // has: matrices of one size follow one another.
        unsafe {
            self.workspace.run(
                &self.device,
                &self.config,
                pass,
                |acts| acts.write(self, images, &tables),
                |pass, acts| {
                    let given = Given { kept: Some(kept), ..Given::nothing() };
                    acts.forward(self, pass, self.config.qformer.num_hidden_layers, given)
                },
                |_| Ok(()),
            )
        }
    }

    /// The image pass as far as block `block`; `read` sees what that block worked in, and the keys and values of the
    /// images for all blocks [I·N, blocks·2·D].
    pub(super) fn image_pass_to<R>(
        &self,
        images: &SomeImages<'_, B>,
        block: usize,
        read: impl FnOnce(&BlockActs<'_, B>, V<'_, B>) -> Result<R>,
    ) -> Result<R> {
        let (pass, tables) = ImagePass::new(self, images.count(), self.keys_values_width());
        let mut lease = self.workspace.lease(&self.device, (images.count(), "images"), |cursor| {
            pass.carve(&self.config, cursor);
        })?;
        let mut acts = pass.carve(&self.config, &mut lease.cursor());
        acts.write(self, images, &tables)?;
        acts.forward(self, &pass, block + 1, Given::nothing())?;
        read(acts.stack.block(block), acts.keys_values.view())
    }

    /// Runs the queries through the first block's self-attention, once for all images.
    pub(super) fn prepare_first_attended(&mut self) -> Result<()> {
        let (b, config) = (&self.device, &self.config);
        let (queries, hidden) = (config.num_query_tokens, config.qformer.hidden_size);
        let parameters = self.weights.view();
        let mut attended = Arena::planned(b, "the queries", |cursor| {
            cursor.take::<B::Elem>(queries, hidden);
        })?;
        let own = Sequences::uniform(1, queries);
        let groups = vec![(own.sizes(), Mask::None, FirstKeys::Own)];
        let plan = StreamPlan { sets: 1, queries, text_rows: 0, groups, cross: None };
        let mut lease = self.workspace.lease(b, (1, "images"), |cursor| {
            StackActs::carve(cursor, &plan, &config.qformer, Kept::Output);
        })?;
        let mut acts = StackActs::carve(&mut lease.cursor(), &plan, &config.qformer, Kept::Output);
        let inputs = StreamInputs { queries, tokens: &[], positions: &[], sequences: &own, cross: None };
        acts.write(b, &inputs)?;
        let y = attended.cursor().take(queries, hidden);
        self.stack(&parameters, None).first_attention(b, &plan, &mut acts, y)?;
        drop(lease);
        self.first_attended = attended;
        Ok(())
    }

    /// [Q, D]
    fn first_attended(&self) -> V<'_, B> {
        self.first_attended.first(self.config.num_query_tokens, self.config.qformer.hidden_size)
    }

    /// Sizes of the image pass's cross-attention.
    pub(super) fn cross_sizes(&self) -> CrossSizes {
        CrossSizes::of(&self.config)
    }

    /// Width of the keys and values that the image pass forms: none where it reads the features themselves.
    fn formed_width(&self) -> usize {
        if self.cross_sizes().absorbs(self.device.frozen_packing(self.config.vision.width())) {
            0
        } else {
            self.keys_values_width()
        }
    }

    /// Width of all blocks' keys and values together.
    pub(super) fn keys_values_width(&self) -> usize {
        2 * self.config.qformer.hidden_size * self.config.qformer.cross_attention_layers().count()
    }

    /// Query set i reads image `images[i]`.
    pub(super) fn cross_sequences(&self, images: Vec<usize>) -> Sequences {
        let (queries, tokens) = (self.config.num_query_tokens, self.config.image_tokens());
        let sequence = |(set, image): (usize, usize)| Sequence {
            queries: [Span::new(set * queries, queries), Span::EMPTY],
            keys: [Span::new(image * tokens, tokens), Span::EMPTY],
        };
        Sequences::new(images.into_iter().enumerate().map(sequence).collect())
    }
}
