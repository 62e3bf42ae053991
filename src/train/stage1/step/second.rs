//! The passes of the second phase: which pairs are matched and which texts are generated in each.

use super::plan::{ImageRows, PairPassSize, filled_up, together};
use crate::device::Device;
use crate::models::qformer::Matching;
use crate::models::qformer::stack::StreamPlan;
use crate::ops::pairs::{PAIRS_OF_IMAGE, StreamSizes};
use crate::train::stage1::Stage1Options;
use crate::train::stage1::batch::GlobalBatch;
use std::ops::Range;

/// Most pairs of a pass over micro-batches of up to so many images: those that there are on average, as far as the
/// device is not busy with fewer. What a pass works in does not grow with the batch beyond that.
pub(in crate::train::stage1) fn most_pairs<D: Device>(images: usize) -> usize {
    (PAIRS_OF_IMAGE * images).min(D::PAIRS_PER_PASS)
}

/// A pass of the second phase, by all that its operations follow from.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(in crate::train::stage1) struct PairPass {
    pub(in crate::train::stage1) plan: StreamPlan,
    /// Which ones of the list.
    pub(in crate::train::stage1) pairs: Range<usize>,
    pub(in crate::train::stage1) stream: StreamSizes,
    /// R, rows that predict, padding among them.
    pub(in crate::train::stage1) predicting: usize,
    /// Rows that heads read: first those that predict, then, if ITM reads them, the first ones of the pairs' texts.
    pub(in crate::train::stage1) picked: usize,
}

/// Texts of a pass, by what there is to know of them before they are laid out.
#[derive(Clone, Copy)]
pub(in crate::train::stage1) struct TextRoom {
    /// Tokens that pairs have at least, and that there is room for.
    pub(in crate::train::stage1) pair_tokens: [usize; 2],
    pub(in crate::train::stage1) caption_tokens: usize,
    /// Of the longest text.
    pub(in crate::train::stage1) longest: usize,
}

impl PairPass {
    /// The pass over these `pairs` of the list, all of `images`, and over the first `captions` texts of those.
    pub(in crate::train::stage1) fn new<D: Device>(
        pairs: Range<usize>,
        images: Range<usize>,
        captions: usize,
        tokens: TextRoom,
        rows: ImageRows,
        options: &Stage1Options,
    ) -> Self {
        let TextRoom { pair_tokens, caption_tokens, longest } = tokens;
        let tokens = pair_tokens.map(|tokens| tokens + caption_tokens);
        let content = PairPassSize { pairs: pairs.len(), images: images.len(), captions, tokens, longest };
        let predicting = filled_up::<D>(caption_tokens) - captions;
        let cls = if options.matching == Matching::MaxSimilarity { pairs.len() } else { 0 };
        Self {
            plan: together::<D>(&content, rows),
            pairs,
            stream: StreamSizes {
                queries: rows.queries,
                image_tokens: rows.tokens,
                images,
                captions,
                start_token: options.start_token,
            },
            predicting,
            picked: predicting + cls,
        }
    }

    /// The one pass of a step of one micro-batch, if its pairs are not too many and the host had to wait to know more
    /// of them: that of each image and its own text, and most likely of as many more with each hard negative.
    /// There is room for those of so many tokens in all, if it is known how many they have.
    pub(in crate::train::stage1) fn only<D: Device>(
        whole: &GlobalBatch<'_>,
        room: Option<usize>,
        rows: ImageRows,
        options: &Stage1Options,
    ) -> Option<Self> {
        let images = whole.images();
        let pairs = PAIRS_OF_IMAGE * images;
        if !D::ASYNCHRONOUS || whole.batches() > 1 || pairs > most_pairs::<D>(images) {
            return None;
        }
        let (own, longest) = (whole.tokens(), whole.longest());
        // Every text is in a pair with its image and, if it has one, with its hard negative. The images' negatives
        // are as long as the texts are, or somewhat longer.
        let of_negatives = (own + own / 8 + longest).min(images * longest);
        let most = room.map_or(2 * own + of_negatives, |room| room - own);
        let tokens = TextRoom { pair_tokens: [own, most], caption_tokens: own, longest };
        Some(Self::new::<D>(0..pairs, 0..images, images, tokens, rows, options))
    }

    /// Most passes of a step of so many images in so many micro-batches: those that were enough if all were full, and
    /// one of each micro-batch that is not.
    pub(in crate::train::stage1) fn most_passes<D: Device>([images, batches]: [usize; 2]) -> usize {
        let largest = images.div_ceil(batches);
        (PAIRS_OF_IMAGE * images).div_ceil(most_pairs::<D>(largest)) + batches
    }
}

/// The list of pairs, on the host.
pub(in crate::train::stage1) struct HostPairs {
    /// [3·B]: the text of each
    pub(in crate::train::stage1) texts: Vec<u32>,
    /// [B + 1]: the first pair of each image, and where those of the last end
    pub(in crate::train::stage1) bounds: Vec<u32>,
}

impl HostPairs {
    /// How many pairs there are.
    pub(in crate::train::stage1) fn count(&self) -> usize {
        *self.bounds.last().expect("one bound at least") as usize
    }

    /// The passes over the pairs of the micro-batch of `images`, each of at most `most` pairs; captions are in the
    /// first.
    pub(in crate::train::stage1) fn passes<D: Device>(
        &self,
        whole: &GlobalBatch<'_>,
        images: Range<usize>,
        most: usize,
        rows: ImageRows,
        options: &Stage1Options,
    ) -> Vec<PairPass> {
        let all = self.bounds[images.start] as usize..self.bounds[images.end] as usize;
        let firsts = all.clone().step_by(most);
        let pass = |first: usize| {
            let pairs = first..all.end.min(first + most);
            let captions = if first == all.start { images.len() } else { 0 };
            let of_texts = |texts: &[&[u32]]| texts.iter().map(|text| text.len()).sum();
            let pair_tokens =
                self.texts[pairs.clone()].iter().map(|&text| whole.texts[text as usize].len()).sum();
            let tokens = TextRoom {
                pair_tokens: [pair_tokens; 2],
                caption_tokens: of_texts(&whole.texts[images.start..images.start + captions]),
                longest: whole.longest(),
            };
            PairPass::new::<D>(pairs, images.clone(), captions, tokens, rows, options)
        };
        firsts.map(pass).collect()
    }
}
