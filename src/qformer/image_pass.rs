//! The image pass: the queries alone read the image.

use super::{ImageFeatures, Parameters, QFormer, embed_queries, gather, write_query_ids};
use crate::arena::{Arena, Cursor};
use crate::config::Config;
use crate::device::{M, V};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::block::BlockActs;
use crate::layers::cross_attention::ImageTokens;
use crate::layers::self_attention::{Attending, FirstKeys, SelfAttentionActs};
use crate::ops::Backend;
use crate::ops::absorbed_attention::CrossSizes;
use crate::ops::attention::{Mask, PlacedSequences, Sequence, Sequences, Span};
use crate::tensor::{HostTensor, ViewMut};

/// What the image pass works in.
pub(super) struct ImagePassActs<'a, B: Backend> {
    /// The image encoder's output [I·N, W]
    pub(super) vision_output: M<'a, B>,
    /// The same, normed [I·N, W]
    pub(super) features: M<'a, B>,
    /// [I·N, blocks·2·D], where keys and values are formed
    pub(super) keys_values: M<'a, B>,
    /// [1, I·Q]
    pub(super) ids: ViewMut<'a, B, u32>,
    /// Table of the queries' sequences [1, words]
    pub(super) own: ViewMut<'a, B, u32>,
    /// Table of the queries over their images [1, words]
    pub(super) cross: ViewMut<'a, B, u32>,
    /// Shared by all blocks.
    pub(super) block: BlockActs<'a, B>,
    /// [I·Q, D]: a block's input and output, in turns
    pub(super) x: [M<'a, B>; 2],
    /// [I·Q, E]
    projected: M<'a, B>,
    /// [I·Q, E], of unit length
    unit: M<'a, B>,
}

impl<'a, B: Backend> ImagePassActs<'a, B> {
    /// `keys_values` is the width of all blocks' keys and values, 0 where none are formed.
    pub(super) fn carve(
        cursor: &mut Cursor<'a, B>,
        config: &Config,
        (images, keys_values): (usize, usize),
        [own, cross]: [&Sequences; 2],
    ) -> Self {
        let (hidden, embedding) = (config.qformer.hidden_size, config.image_text_hidden_size);
        let (tokens, width) = (images * config.image_tokens(), config.vision.hidden_size);
        let rows = images * config.num_query_tokens;
        Self {
            vision_output: cursor.take(tokens, width),
            features: cursor.take(tokens, width),
            keys_values: cursor.take(tokens, keys_values),
            ids: cursor.take(1, rows),
            own: cursor.take(1, own.words()),
            cross: cursor.take(1, cross.words()),
            block: BlockActs::carve(cursor, [rows, 0], &config.qformer, Keep::Nothing),
            x: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            projected: cursor.take(rows, embedding),
            unit: cursor.take(rows, embedding),
        }
    }
}

/// What the first block's self-attention over the queries alone works in.
struct FirstAttendedActs<'a, B: Backend> {
    /// [1, Q]
    ids: ViewMut<'a, B, u32>,
    /// Table of the one sequence [1, words]
    own: ViewMut<'a, B, u32>,
    /// [Q, D]
    embedded: M<'a, B>,
    /// [Q, D]
    x: M<'a, B>,
    attention: SelfAttentionActs<'a, B>,
}

impl<'a, B: Backend> FirstAttendedActs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, config: &Config, own: &Sequences) -> Self {
        let (queries, hidden) = (config.num_query_tokens, config.qformer.hidden_size);
        let heads = [hidden, config.qformer.num_attention_heads];
        Self {
            ids: cursor.take(1, queries),
            own: cursor.take(1, own.words()),
            embedded: cursor.take(queries, hidden),
            x: cursor.take(queries, hidden),
            attention: SelfAttentionActs::carve(cursor, queries, heads, Keep::Nothing),
        }
    }
}

impl<B: Backend> QFormer<B> {
    /// Reads images, perhaps none: the image encoder's output [I, N, W], before its last norm, becomes each
    /// query's output and feature.
    ///
    /// # Errors
    /// Fails if the features are not of this model's shape, and if there is not enough memory.
    pub fn encode_image(&self, vision_output: &HostTensor) -> Result<ImageFeatures> {
        let images = self.check_images(vision_output)?;
        let (queries, hidden) = (self.config.num_query_tokens, self.config.qformer.hidden_size);
        let embedding = self.config.image_text_hidden_size;
        let (mut query_output, mut features) = (Vec::new(), Vec::new());
        let per_image = self.config.image_tokens() * self.config.vision.hidden_size;
        for values in vision_output.values().chunks(B::IMAGES_PER_PASS * per_image) {
            let images = values.len() / per_image;
            self.device.enter(|| self.image_pass(values, images, &mut query_output, &mut features))?;
        }
        let features =
            self.abilities.retrieval.then(|| HostTensor::new(&[images, queries, embedding], features));
        Ok(ImageFeatures {
            query_output: HostTensor::new(&[images, queries, hidden], query_output)?,
            features: features.transpose()?,
        })
    }

    fn image_pass(
        &self,
        values: &[f32],
        images: usize,
        query_output: &mut Vec<f32>,
        unit: &mut Vec<f32>,
    ) -> Result<()> {
        let (b, parameters) = (&self.device, self.weights.view());
        let queries = self.config.num_query_tokens;
        let own = Sequences::uniform(images, queries);
        let cross = self.cross_sequences((0..images).collect());
        let sizes = (images, self.formed_width());
        let mut lease = self.workspace.lease(b, (images, "images"), |c| {
            ImagePassActs::carve(c, &self.config, sizes, [&own, &cross]);
        })?;
        let (mut cursor, replay) = lease.replayed("image pass", vec![images]);
        let mut acts = ImagePassActs::carve(&mut cursor, &self.config, sizes, [&own, &cross]);
        b.write(values, 0, acts.vision_output.reborrow())?;
        write_query_ids(b, queries, acts.ids.reborrow())?;
        let (own, cross) = (own.place(b, acts.own)?, cross.place(b, acts.cross)?);

        b.replay(replay, || {
            let [x, y] = &mut acts.x;
            let (mut x, mut y) = (x.reborrow(), y.reborrow());
            parameters.image_norm.forward(b, acts.vision_output.view(), None, acts.features.reborrow())?;
            let features = acts.features.view();
            let image = self.image_tokens(&parameters, features, &mut acts.keys_values, cross, images)?;
            let attending = [Attending { sequences: own, mask: Mask::None, first_keys: FirstKeys::Own }];
            let stream = self.stream(images * queries, &attending, Some(image));
            gather(b, self.first_attended(), acts.ids.view(), acts.block.attended.reborrow())?;
            for (index, block) in parameters.blocks.iter().enumerate() {
                let inputs = self.inputs(&parameters, index);
                if index == 0 {
                    block.forward_from_attended(b, &stream, &inputs, &mut acts.block, y.reborrow())?;
                } else {
                    block.forward(b, x.view(), &stream, &inputs, &mut acts.block, y.reborrow())?;
                }
                std::mem::swap(&mut x, &mut y);
            }
            if let Some(heads) = &parameters.heads {
                self.project(&heads.vision_projection, x.view(), acts.projected, acts.unit.reborrow())?;
            }
            Ok(())
        })?;
        // A replay runs none of the above: where the last block wrote follows from their number.
        let x = &acts.x[parameters.blocks.len() % 2];
        query_output.extend(b.read(x.view())?);
        if parameters.heads.is_some() {
            unit.extend(b.read(acts.unit.view())?);
        }
        Ok(())
    }

    /// The image pass of a few images for texts that continue them: `kept`, one for each block, takes the
    /// queries, keys and values of self-attention [I·Q, 3·D]. Replayed for as many images and the same place.
    pub(super) fn image_pass_keeping(
        &self,
        values: &[f32],
        images: usize,
        kept: &mut [M<'_, B>],
    ) -> Result<()> {
        let (b, parameters) = (&self.device, self.weights.view());
        let queries = self.config.num_query_tokens;
        let own = Sequences::uniform(images, queries);
        let cross = self.cross_sequences((0..images).collect());
        let sizes = (images, self.formed_width());
        let mut lease = self.workspace.lease(b, (images, "images"), |c| {
            ImagePassActs::carve(c, &self.config, sizes, [&own, &cross]);
        })?;
        // Rows of the same size follow one another.
        let (mut cursor, replay) =
            lease.replayed("image pass for text", vec![images, kept[0].pointer().addr()]);
        let mut acts = ImagePassActs::carve(&mut cursor, &self.config, sizes, [&own, &cross]);
        b.write(values, 0, acts.vision_output.reborrow())?;
        write_query_ids(b, queries, acts.ids.reborrow())?;
        let (own, cross) = (own.place(b, acts.own)?, cross.place(b, acts.cross)?);
        b.replay(replay, || {
            parameters.image_norm.forward(b, acts.vision_output.view(), None, acts.features.reborrow())?;
            let features = acts.features.view();
            let image = self.image_tokens(&parameters, features, &mut acts.keys_values, cross, images)?;
            let attending = [Attending { sequences: own, mask: Mask::None, first_keys: FirstKeys::Own }];
            let stream = self.stream(images * queries, &attending, Some(image));
            let [mut x, mut y] = acts.x;
            embed_queries(b, &parameters, acts.ids.view(), y.reborrow(), x.reborrow())?;
            for (index, (block, kept)) in parameters.blocks.iter().zip(kept).enumerate() {
                let inputs = self.inputs(&parameters, index);
                acts.block.attention.qkv = kept.reborrow();
                block.forward(b, x.view(), &stream, &inputs, &mut acts.block, y.reborrow())?;
                std::mem::swap(&mut x, &mut y);
            }
            Ok(())
        })
    }

    /// What the queries of the image pass attend to: the features [I·N, W], or their `keys_values`.
    fn image_tokens<'a>(
        &self,
        parameters: &Parameters<V<'_, B>>,
        features: V<'a, B>,
        keys_values: &'a mut M<'_, B>,
        sequences: PlacedSequences<'a, B>,
        images: usize,
    ) -> Result<ImageTokens<'a, B>> {
        if self.formed_width() == 0 {
            return Ok(ImageTokens::Features { features, images });
        }
        parameters.image_kv.forward(&self.device, features, keys_values.reborrow())?;
        Ok(ImageTokens::KeysValues { keys_values: keys_values.view(), sequences })
    }

    /// Runs the queries through the first block's self-attention, once for all images.
    pub(super) fn prepare_first_attended(&mut self) -> Result<()> {
        let Self { device: b, config, weights, workspace, .. } = &*self;
        let (queries, hidden) = (config.num_query_tokens, config.qformer.hidden_size);
        let parameters = weights.view();
        let mut attended = Arena::planned(b, "the queries", |cursor| {
            cursor.take::<B::Elem>(queries, hidden);
        })?;
        let own = Sequences::uniform(1, queries);
        let mut lease = workspace.lease(b, (1, "images"), |c| {
            FirstAttendedActs::carve(c, config, &own);
        })?;
        let FirstAttendedActs { mut ids, own: table, embedded, mut x, mut attention } =
            FirstAttendedActs::carve(&mut lease.cursor(), config, &own);
        write_query_ids(b, queries, ids.reborrow())?;
        embed_queries(b, &parameters, ids.view(), embedded, x.reborrow())?;
        let sequences = own.place(b, table)?;
        let attending = [Attending { sequences, mask: Mask::None, first_keys: FirstKeys::Own }];
        let stream = self.stream(queries, &attending, None);
        let (inputs, y) = (self.inputs(&parameters, 0), attended.cursor().take(queries, hidden));
        parameters.blocks[0].attention.forward(b, x.view(), &stream, &inputs, &mut attention, y)?;
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
        if self.cross_sizes().absorbs(self.device.frozen_layout()) { 0 } else { self.keys_values_width() }
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
