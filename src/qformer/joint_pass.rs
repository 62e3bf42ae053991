//! The joint pass: queries and text see one another, the queries the image, and a pair of image and
//! text gets a matching score.

use super::text_pass::{ClsActs, FilledText, TextEmbeddingActs, text_spans};
use super::{Parameters, QFormer, embed_queries, write_query_ids};
use crate::arena::Cursor;
use crate::device::{M, V};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::block::BlockActs;
use crate::layers::cross_attention::ImageTokens;
use crate::layers::self_attention::{Attending, FirstKeys};
use crate::ops::Backend;
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};
use crate::ops::pool::PoolForward;
use crate::ops::similarity::{Pairing, SimilarityForward};
use crate::tensor::{HostTensor, ViewMut};
use serde::{Deserialize, Serialize};

/// What the matching score of an image and a text is. Both run the joint pass, in which queries and
/// text see one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Matching {
    /// The checkpoint's two-class head on each query's output, averaged over the queries: what LAVIS
    /// and transformers compute, and what published checkpoints were trained for.
    Classifier,
    /// The text's `[CLS]` output compared with each query's output, as contrastive similarity compares
    /// them (projected, by their cosine); the largest counts.
    MaxSimilarity,
}

/// The matching score of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Match {
    /// Probability that the two match (classifier), or the largest cosine (max-similarity).
    pub score: f32,
    /// The head's logits of "does not match" and "matches"; of the classifier only.
    pub logits: Option<[f32; 2]>,
}

/// Keys and values of a few images.
struct KeysValuesActs<'a, B: Backend> {
    /// The image encoder's output [I·N, W]
    vision_output: M<'a, B>,
    /// The same, normed [I·N, W]
    features: M<'a, B>,
    /// [I·N, blocks·2·D]
    keys_values: M<'a, B>,
}

/// What the joint pass of `pairs` pairs works in.
struct JointPassActs<'a, B: Backend> {
    /// [1, P·Q]
    query_ids: ViewMut<'a, B, u32>,
    /// [P·Q, D]
    embedded_queries: M<'a, B>,
    embedded_text: TextEmbeddingActs<'a, B>,
    /// Table of the pairs' sequences [1, words]
    own: ViewMut<'a, B, u32>,
    /// Table of the queries over their images [1, words]
    cross: ViewMut<'a, B, u32>,
    /// Shared by all blocks.
    block: BlockActs<'a, B>,
    /// [P·Q + text rows, D]: a block's input and output, in turns
    x: [M<'a, B>; 2],
    /// [P, D]: the mean over the queries
    pooled: M<'a, B>,
    /// [P, 2]
    logits: M<'a, B>,
    /// [P·Q, E]
    projected: M<'a, B>,
    /// [P·Q, E], of unit length
    unit: M<'a, B>,
    cls: ClsActs<'a, B>,
    /// [P, 1]
    similarity: M<'a, B>,
}

impl<'a, B: Backend> KeysValuesActs<'a, B> {
    fn carve(cursor: &mut Cursor<'a, B>, model: &QFormer<B>, images: usize) -> Self {
        let sizes = model.cross_sizes();
        let rows = images * sizes.image_tokens;
        Self {
            vision_output: cursor.take(rows, sizes.image_width),
            features: cursor.take(rows, sizes.image_width),
            keys_values: cursor.take(rows, model.keys_values_width()),
        }
    }
}

impl<'a, B: Backend> JointPassActs<'a, B> {
    fn carve(
        cursor: &mut Cursor<'a, B>,
        model: &QFormer<B>,
        pairs: usize,
        text_rows: usize,
        [own, cross]: [&Sequences; 2],
    ) -> Self {
        let config = &model.config;
        let (hidden, embedding) = (config.qformer.hidden_size, config.image_text_hidden_size);
        let query_rows = pairs * config.num_query_tokens;
        let rows = query_rows + text_rows;
        Self {
            query_ids: cursor.take(1, query_rows),
            embedded_queries: cursor.take(query_rows, hidden),
            embedded_text: TextEmbeddingActs::carve(cursor, text_rows, hidden),
            own: cursor.take(1, own.words()),
            cross: cursor.take(1, cross.words()),
            block: BlockActs::carve(cursor, [query_rows, text_rows], &config.qformer, Keep::Nothing),
            x: [cursor.take(rows, hidden), cursor.take(rows, hidden)],
            pooled: cursor.take(pairs, hidden),
            logits: cursor.take(pairs, 2),
            projected: cursor.take(query_rows, embedding),
            unit: cursor.take(query_rows, embedding),
            cls: ClsActs::carve(cursor, pairs, hidden, embedding),
            similarity: cursor.take(pairs, 1),
        }
    }
}

impl<B: Backend> QFormer<B> {
    /// The matching score of each pair (image, text), indices into `vision_output` [I, N, W] and
    /// `texts` (token ids, `[CLS]` first). Each image is projected once, however many pairs it is in.
    ///
    /// # Errors
    /// Fails if the checkpoint has no matching head, if an index, the features or a text are not fit,
    /// and if there is not enough memory.
    pub fn match_score(
        &self,
        vision_output: &HostTensor,
        texts: &[Vec<u32>],
        pairs: &[(usize, usize)],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        self.heads()?;
        let images = self.check_images(vision_output)?;
        self.check_texts(texts)?;
        self.check_pairs(pairs, [images, texts.len()])?;
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by_key(|&pair| pairs[pair]);
        let mut matches = vec![Match { score: 0.0, logits: None }; pairs.len()];
        let per_image = self.config.image_tokens() * self.config.vision.hidden_size;
        let groups =
            order.chunk_by(|&a, &b| pairs[a].0 / B::IMAGES_PER_PASS == pairs[b].0 / B::IMAGES_PER_PASS);
        for group in groups {
            let first = pairs[group[0]].0 / B::IMAGES_PER_PASS * B::IMAGES_PER_PASS;
            let last = pairs[group[group.len() - 1]].0;
            let values = &vision_output.values()[first * per_image..(last + 1) * per_image];
            let of_group: Vec<(usize, &[u32])> =
                group.iter().map(|&pair| (pairs[pair].0 - first, &texts[pairs[pair].1][..])).collect();
            let scores =
                self.device.enter(|| self.match_group(values, last + 1 - first, &of_group, matching))?;
            group.iter().zip(scores).for_each(|(&pair, score)| matches[pair] = score);
        }
        Ok(matches)
    }

    /// Pairs of an image, by its place among the `images` whose features are `values`, and a text.
    fn match_group(
        &self,
        values: &[f32],
        images: usize,
        pairs: &[(usize, &[u32])],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        let (b, parameters) = (&self.device, self.weights.view());
        let mut lease = self.keys_values.lease(b, (images, "images"), |c| {
            KeysValuesActs::carve(c, self, images);
        })?;
        let mut acts = KeysValuesActs::carve(&mut lease.cursor(), self, images);
        b.write(values, 0, acts.vision_output.reborrow())?;
        parameters.image_norm.forward(b, acts.vision_output.view(), None, acts.features.reborrow())?;
        parameters.image_kv.forward(b, acts.features.view(), acts.keys_values.reborrow())?;
        let mut matches = Vec::with_capacity(pairs.len());
        for now in pairs.chunks(B::PAIRS_PER_PASS) {
            let keys_values = (acts.keys_values.view(), images);
            matches.extend(self.joint_pass(&parameters, keys_values, now, matching)?);
        }
        Ok(matches)
    }

    /// Replayed for as many pairs and images, of as many rows of text and as long a text, and as many pairs of
    /// an image, where the last three are rounded up.
    fn joint_pass(
        &self,
        parameters: &Parameters<V<'_, B>>,
        (keys_values, images): (V<'_, B>, usize),
        pairs: &[(usize, &[u32])],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        let (b, queries) = (&self.device, self.config.num_query_tokens);
        let (images_of_pairs, texts): (Vec<usize>, Vec<&[u32]>) = pairs.iter().copied().unzip();
        let FilledText { tokens, places, longest } = FilledText::of::<B>(&texts);
        let (pairs, text_rows) = (pairs.len(), tokens.len());
        let query_rows = pairs * queries;
        let spans = text_spans(&texts, query_rows);
        let sequence = |(pair, &text): (usize, &Span)| {
            let both = [Span::new(pair * queries, queries), text];
            Sequence { queries: both, keys: both }
        };
        let own = Sequences::new(spans.iter().enumerate().map(sequence).collect());
        let longest = queries + longest;
        let sizes = SequenceSizes { keys: longest, queries: longest, ..own.sizes() };
        let own = own.within(sizes);
        let cross = self.cross_sequences(images_of_pairs);
        let most = cross.sizes().queries.next_power_of_two();
        let sizes = SequenceSizes { groups: images, queries: most, ..cross.sizes() };
        let cross = cross.within(sizes);
        let mut lease = self.workspace.lease(b, (pairs, "pairs"), |c| {
            JointPassActs::carve(c, self, pairs, text_rows, [&own, &cross]);
        })?;
        let sizes =
            vec![matching as usize, pairs, images, text_rows, longest, most, keys_values.pointer().addr()];
        let (mut cursor, replay) = lease.replayed("joint pass", sizes);
        let mut acts = JointPassActs::carve(&mut cursor, self, pairs, text_rows, [&own, &cross]);
        write_query_ids(b, queries, acts.query_ids.reborrow())?;
        acts.embedded_text.write(b, [&tokens, &places])?;
        acts.cls.write(b, &spans)?;
        let (own, cross) = (own.place(b, acts.own)?, cross.place(b, acts.cross)?);

        b.replay(replay, || {
            let [mut x, mut y] = acts.x;
            let (x_queries, x_text) = x.reborrow().split_rows(query_rows);
            embed_queries(b, parameters, acts.query_ids.view(), acts.embedded_queries, x_queries)?;
            self.embed_written(parameters, &mut acts.embedded_text, x_text)?;
            let attending = [Attending { sequences: own, mask: Mask::None, first_keys: FirstKeys::Own }];
            let image = ImageTokens::KeysValues { keys_values, sequences: cross };
            let stream = self.stream(query_rows, &attending, Some(image));
            for (index, block) in parameters.blocks.iter().enumerate() {
                let inputs = self.inputs(parameters, index);
                block.forward(b, x.view(), &stream, &inputs, &mut acts.block, y.reborrow())?;
                std::mem::swap(&mut x, &mut y);
            }
            let heads = parameters.heads.as_ref().expect("checked by heads");
            let query_output = x.view().row_range(0..query_rows);
            match matching {
                Matching::Classifier => {
                    b.pool_forward(PoolForward { x: query_output, y: acts.pooled.reborrow() })?;
                    heads.matching.forward(b, acts.pooled.view(), acts.logits.reborrow())
                }
                Matching::MaxSimilarity => {
                    let (projected, unit) = (acts.projected, acts.unit.reborrow());
                    self.project(&heads.vision_projection, query_output, projected, unit)?;
                    self.project_cls(parameters, x.view(), &mut acts.cls)?;
                    b.similarity_forward(SimilarityForward {
                        pairing: Pairing::Matched,
                        queries: acts.unit.view(),
                        texts: acts.cls.unit.view(),
                        similarity: acts.similarity.reborrow(),
                        winner: None,
                    })
                }
            }
        })?;
        match matching {
            Matching::Classifier => {
                let logits = b.read(acts.logits.view())?;
                Ok(logits.as_chunks().0.iter().map(|&logits| Match::of_logits(logits)).collect())
            }
            Matching::MaxSimilarity => {
                let scores = b.read(acts.similarity.view())?;
                Ok(scores.into_iter().map(|score| Match { score, logits: None }).collect())
            }
        }
    }
}

impl Match {
    /// The score is the second logit's share of the softmax.
    fn of_logits([no, yes]: [f32; 2]) -> Self {
        Self { score: 1.0 / (1.0 + (no - yes).exp()), logits: Some([no, yes]) }
    }
}
