//! The joint pass: queries and text see one another, the queries the image, and a pair of image and
//! text gets a matching score.

use super::image_pass::SomeImages;
use super::projection::ProjectionActs;
use super::stack::{BlockActs, Given, Image, Kept, Stack, StackActs, StreamInputs, StreamPlan};
use super::text_pass::{ClsActs, FilledText, text_spans};
use super::{Parameters, QFormer};
use crate::config::Config;
use crate::device::{M, V, W};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::stream::FirstKeys;
use crate::memory::{Address, Cursor, Pass, TensorInput};
use crate::ops::Backend;
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};
use crate::ops::pool::PoolForward;
use crate::ops::similarity::{Pairing, SimilarityForward};
use serde::{Deserialize, Serialize};

/// What the matching score of an image and a text is. Both run the joint pass, in which queries and
/// text see one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// The stream of the joint pass: the query sets of all pairs, then their texts.
struct JointStream {
    plan: StreamPlan,
    /// Q
    queries: usize,
    filled: FilledText,
    /// The rows of each pair's text.
    texts: Vec<Span>,
    own: Sequences,
    cross: Sequences,
}

impl JointStream {
    /// Of pairs of an image, by its place among so many `images`, and a text.
    fn new<B: Backend>(model: &QFormer<B>, images: usize, pairs: &[(usize, &[u32])]) -> Self {
        let queries = model.config.num_query_tokens;
        let (images_of_pairs, texts): (Vec<usize>, Vec<&[u32]>) = pairs.iter().copied().unzip();
        let filled = FilledText::of::<B>(&texts);
        let texts = text_spans(&texts, pairs.len() * queries);
        let sequence = |(pair, &text): (usize, &Span)| {
            let both = [Span::new(pair * queries, queries), text];
            Sequence { queries: both, keys: both }
        };
        let own = Sequences::new(texts.iter().enumerate().map(sequence).collect());
        let longest = queries + filled.longest;
        let sizes = SequenceSizes { keys: longest, queries: longest, ..own.sizes() };
        let own = own.within(sizes);
        // Rounded up, so that other pairs of as many images have the same plan.
        let cross = model.cross_sequences(images_of_pairs);
        let most = cross.sizes().queries.next_power_of_two();
        let sizes = SequenceSizes { groups: images, queries: most, ..cross.sizes() };
        let cross = cross.within(sizes);
        let plan = StreamPlan {
            sets: pairs.len(),
            queries,
            text_rows: filled.tokens.len(),
            groups: vec![(own.sizes(), Mask::None, FirstKeys::Own)],
            cross: Some(cross.sizes()),
        };
        Self { plan, queries, filled, texts, own, cross }
    }

    fn inputs(&self) -> StreamInputs<'_> {
        StreamInputs {
            queries: self.queries,
            tokens: &self.filled.tokens,
            positions: &self.filled.places,
            sequences: &self.own,
            cross: Some(&self.cross),
        }
    }
}

/// The joint pass by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
struct JointPass {
    stream: StreamPlan,
    matching: Matching,
    /// Where the images' keys and values begin.
    keys_values: Address,
}

/// What the joint pass of P pairs works in.
struct JointPassActs<'a, B: Backend> {
    stack: StackActs<'a, B>,
    /// [P, D]: the mean over the queries
    pooled: M<'a, B>,
    /// [P, 2]
    logits: M<'a, B>,
    projection: ProjectionActs<'a, B>,
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

impl<B: Backend> Pass<B> for JointPass {
    type Model = Config;
    type Acts<'a> = JointPassActs<'a, B>;

    fn items(&self) -> (usize, &'static str) {
        (self.stream.sets, "pairs")
    }

    fn carve<'a>(&self, config: &Config, cursor: &mut Cursor<'a, B>) -> JointPassActs<'a, B> {
        let (hidden, embedding) = (config.qformer.hidden_size, config.image_text_hidden_size);
        let (pairs, query_rows) = (self.stream.sets, self.stream.query_rows());
        JointPassActs {
            stack: StackActs::carve(cursor, &self.stream, &config.qformer, Kept::Output),
            pooled: cursor.take(pairs, hidden),
            logits: cursor.take(pairs, 2),
            projection: ProjectionActs::carve(cursor, query_rows, embedding, Keep::Nothing),
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
    pub fn match_score<'a>(
        &self,
        vision_output: impl Into<TensorInput<'a, B>>,
        texts: &[Vec<u32>],
        pairs: &[(usize, usize)],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        self.require_retrieval()?;
        let vision_output = vision_output.into();
        let images = self.check_images(vision_output)?;
        self.check_texts(texts)?;
        self.check_pairs(pairs, [images, texts.len()])?;
        let mut order: Vec<usize> = (0..pairs.len()).collect();
        order.sort_by_key(|&pair| pairs[pair]);
        let mut matches = vec![Match { score: 0.0, logits: None }; pairs.len()];
        let groups =
            order.chunk_by(|&a, &b| pairs[a].0 / B::IMAGES_PER_PASS == pairs[b].0 / B::IMAGES_PER_PASS);
        for group in groups {
            let first = pairs[group[0]].0 / B::IMAGES_PER_PASS * B::IMAGES_PER_PASS;
            let last = pairs[group[group.len() - 1]].0;
            let images = SomeImages::of(vision_output, first..last + 1);
            let of_group: Vec<(usize, &[u32])> =
                group.iter().map(|&pair| (pairs[pair].0 - first, &texts[pairs[pair].1][..])).collect();
            let scores = self.device.enter(|| self.match_group(&images, &of_group, matching))?;
            group.iter().zip(scores).for_each(|(&pair, score)| matches[pair] = score);
        }
        Ok(matches)
    }

    /// Pairs of an image, by its place among `images`, and a text.
    fn match_group(
        &self,
        images: &SomeImages<'_, B>,
        pairs: &[(usize, &[u32])],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        let parameters = self.weights.view();
        self.with_keys_values(&parameters, images, |keys_values| {
            let mut matches = Vec::with_capacity(pairs.len());
            for now in pairs.chunks(B::PAIRS_PER_PASS) {
                matches.extend(self.joint_pass(&parameters, (keys_values, images.count()), now, matching)?);
            }
            Ok(matches)
        })
    }

    /// Calls `read` with the keys and values of images for all blocks [I·N, blocks·2·D].
    fn with_keys_values<R>(
        &self,
        parameters: &Parameters<W<'_, B>>,
        images: &SomeImages<'_, B>,
        read: impl FnOnce(V<'_, B>) -> Result<R>,
    ) -> Result<R> {
        let (b, count) = (&self.device, images.count());
        let mut lease = self.keys_values.lease(b, (count, "images"), |c| {
            KeysValuesActs::carve(c, self, count);
        })?;
        let mut acts = KeysValuesActs::carve(&mut lease.cursor(), self, count);
        images.write(b, acts.vision_output.reborrow())?;
        parameters.image_norm.forward(b, acts.vision_output.view(), None, acts.features.reborrow())?;
        parameters.image_kv.forward(b, acts.features.view(), acts.keys_values.reborrow())?;
        read(acts.keys_values.view())
    }

    /// The joint pass of images, each with the same text, as far as block `block`; `read` sees what that block worked in,
    /// and the keys and values of the images for all blocks [I·N, blocks·2·D].
    pub(super) fn joint_pass_to<R>(
        &self,
        images: &SomeImages<'_, B>,
        text: &[u32],
        block: usize,
        read: impl FnOnce(&BlockActs<'_, B>, V<'_, B>) -> Result<R>,
    ) -> Result<R> {
        let (parameters, config) = (self.weights.view(), &self.config.qformer);
        self.with_keys_values(&parameters, images, |keys_values| {
            let pairs: Vec<(usize, &[u32])> = (0..images.count()).map(|image| (image, text)).collect();
            let joint = JointStream::new(self, images.count(), &pairs);
            let mut lease = self.workspace.lease(&self.device, (pairs.len(), "pairs"), |cursor| {
                StackActs::carve(cursor, &joint.plan, config, Kept::Output);
            })?;
            let mut acts = StackActs::carve(&mut lease.cursor(), &joint.plan, config, Kept::Output);
            acts.write(&self.device, &joint.inputs())?;
            let stack = self.stack(&parameters, Some(Image::KeysValues(keys_values)));
            Stack { blocks: &parameters.blocks[..=block], ..stack }.forward(
                &self.device,
                &joint.plan,
                &mut acts,
                Given::nothing(),
            )?;
            read(acts.block(block), keys_values)
        })
    }

    fn joint_pass(
        &self,
        parameters: &Parameters<W<'_, B>>,
        (keys_values, images): (V<'_, B>, usize),
        pairs: &[(usize, &[u32])],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        let b = &self.device;
        let joint = JointStream::new(self, images, pairs);
        // SAFETY: beside its own memory the pass reads the model's weights and the keys and values, whose address it
        // has.
        unsafe {
            self.workspace.run(
                b,
                &self.config,
                JointPass { stream: joint.plan.clone(), matching, keys_values: Address::of(keys_values) },
                |acts| {
                    acts.cls.write(b, &joint.texts)?;
                    acts.stack.write(b, &joint.inputs())
                },
                |pass, acts| {
                    let stack = self.stack(parameters, Some(Image::KeysValues(keys_values)));
                    stack.forward(b, &pass.stream, &mut acts.stack, Given::nothing())?;
                    self.compare(parameters, pass, acts)
                },
                |acts| match matching {
                    Matching::Classifier => {
                        let logits = b.read(acts.logits.view())?;
                        Ok(logits.as_chunks().0.iter().map(|&logits| Match::of_logits(logits)).collect())
                    }
                    Matching::MaxSimilarity => {
                        let scores = b.read(acts.similarity.view())?;
                        Ok(scores.into_iter().map(|score| Match { score, logits: None }).collect())
                    }
                },
            )
        }
    }

    /// What matching makes of the stack's output.
    fn compare(
        &self,
        parameters: &Parameters<W<'_, B>>,
        pass: &JointPass,
        acts: &mut JointPassActs<'_, B>,
    ) -> Result<()> {
        let b = &self.device;
        let heads = parameters.heads.as_ref().expect("checked by heads");
        let output = acts.stack.output(parameters.blocks.len());
        let query_output = output.row_range(0..pass.stream.query_rows());
        match pass.matching {
            Matching::Classifier => {
                b.pool_forward(PoolForward { x: query_output, y: acts.pooled.reborrow() })?;
                heads.matching.forward(b, acts.pooled.view(), acts.logits.reborrow())
            }
            Matching::MaxSimilarity => {
                let unit = acts.unit.reborrow();
                acts.projection.forward(b, &heads.vision_projection, query_output, unit)?;
                self.project_cls(parameters, output, &mut acts.cls)?;
                b.similarity_forward(SimilarityForward {
                    pairing: Pairing::Matched,
                    queries: acts.unit.view(),
                    texts: acts.cls.unit.view(),
                    similarity: acts.similarity.reborrow(),
                    winner: None,
                })
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
