//! The joint pass: queries and text see one another, the queries the image, and a pair of image and
//! text gets a matching score.

use super::projection::ProjectionActs;
use super::stack::{Given, Image, Kept, StackActs, StreamInputs, StreamPlan};
use super::text_pass::{ClsActs, FilledText, text_spans};
use super::{Parameters, QFormer};
use crate::config::Config;
use crate::device::{M, V, W};
use crate::error::Result;
use crate::layers::Keep;
use crate::layers::stream::FirstKeys;
use crate::memory::{Address, Cursor, Pass};
use crate::ops::Backend;
use crate::ops::attention::{Mask, Sequence, SequenceSizes, Sequences, Span};
use crate::ops::pool::PoolForward;
use crate::ops::similarity::{Pairing, SimilarityForward};
use crate::tensor::HostTensor;
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
        let per_image = self.config.image_tokens() * self.config.vision.width();
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

    fn joint_pass(
        &self,
        parameters: &Parameters<W<'_, B>>,
        (keys_values, images): (V<'_, B>, usize),
        pairs: &[(usize, &[u32])],
        matching: Matching,
    ) -> Result<Vec<Match>> {
        let (b, queries) = (&self.device, self.config.num_query_tokens);
        let (images_of_pairs, texts): (Vec<usize>, Vec<&[u32]>) = pairs.iter().copied().unzip();
        let FilledText { tokens, places, longest } = FilledText::of::<B>(&texts);
        let spans = text_spans(&texts, pairs.len() * queries);
        let sequence = |(pair, &text): (usize, &Span)| {
            let both = [Span::new(pair * queries, queries), text];
            Sequence { queries: both, keys: both }
        };
        let own = Sequences::new(spans.iter().enumerate().map(sequence).collect());
        let longest = queries + longest;
        let sizes = SequenceSizes { keys: longest, queries: longest, ..own.sizes() };
        let own = own.within(sizes);
        // Rounded up, so that other pairs of as many images have the same plan.
        let cross = self.cross_sequences(images_of_pairs);
        let most = cross.sizes().queries.next_power_of_two();
        let sizes = SequenceSizes { groups: images, queries: most, ..cross.sizes() };
        let cross = cross.within(sizes);
        let stream = StreamPlan {
            sets: pairs.len(),
            queries,
            text_rows: tokens.len(),
            attending: vec![(own.sizes(), Mask::None, FirstKeys::Own)],
            cross: Some(cross.sizes()),
        };
        let inputs = StreamInputs {
            queries,
            tokens: &tokens,
            positions: &places,
            attending: &own,
            cross: Some(&cross),
        };
        // SAFETY: beside its own memory the pass reads the model's weights and the keys and values, whose address it
        // has.
        unsafe {
            self.workspace.run(
                b,
                &self.config,
                JointPass { stream, matching, keys_values: Address::of(keys_values) },
                |acts| {
                    acts.cls.write(b, &spans)?;
                    acts.stack.write(b, &inputs)
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
