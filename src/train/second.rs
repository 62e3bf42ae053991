//! The passes of the second phase: which pairs are matched and which texts are generated in each.

use super::Stage1Options;
use super::captioning::Predictions;
use super::contrastive::HardNegatives;
use super::plan::{ImageRows, Pair, Plan};
use crate::device::Device;
use crate::qformer::Matching;
use std::ops::Range;

/// Pairs of an image on average: with its own text, with a hard negative text, and as a hard negative.
pub(super) const PAIRS_OF_IMAGE: usize = 3;

/// A pass of the second phase.
pub(super) struct Second {
    pub(super) plan: Plan,
    /// [P]: 1 where a pair matches, else 0
    pub(super) labels: Vec<u32>,
    pub(super) predictions: Predictions,
    /// Rows that heads read: first those that predict, filler among them, then, if ITM reads them, the first ones of the
    /// pairs' texts.
    pub(super) picked: Vec<u32>,
}

impl Second {
    /// The pass over `pairs`, whose texts are of all `texts`, and over `captions`, one of each image of
    /// the micro-batch or none.
    pub(super) fn new<D: Device>(
        pairs: &[Pair],
        texts: &[&[u32]],
        captions: &[Vec<u32>],
        rows: ImageRows,
        options: &Stage1Options,
    ) -> Self {
        let plan = Plan::together::<D>(pairs, texts, captions, rows, options.start_token);
        let predictions = Predictions::of::<D>(&plan, captions.len());
        let mut picked = predictions.rows.clone();
        if options.matching == Matching::MaxSimilarity {
            picked.extend(plan.cls_rows(pairs.len()));
        }
        Self { labels: pairs.iter().map(|pair| pair.label).collect(), plan, predictions, picked }
    }

    /// All numbers that its operations follow from.
    pub(super) fn sizes(&self) -> Vec<usize> {
        let mut sizes = self.plan.sizes();
        sizes.extend([self.labels.len(), self.predictions.rows.len(), self.picked.len()]);
        sizes
    }

    /// Most passes of a step: were all full, there would be one a micro-batch, and each micro-batch has
    /// one at most that is not.
    pub(super) fn most_passes(batches: usize) -> usize {
        2 * batches
    }
}

/// The pairs of a micro-batch, by passes of at most `most`: every one of its `images` with its own text,
/// all in the first pass, with the texts whose hard negative it is, and with its hard negative text. Where
/// there is no negative there is no pair. Pairs of one image stand together in each pass.
pub(super) fn passes(negatives: &HardNegatives, images: Range<usize>, most: usize) -> Vec<Vec<Pair>> {
    let own = images.clone().map(|image| Pair { image, text: image, label: 1 });
    let of_texts = negatives.images.iter().enumerate().map(|(text, &image)| (image as usize, text));
    let of_texts = of_texts.filter(|(image, _)| images.contains(image));
    let of_images = images.clone().map(|image| (image, negatives.texts[image] as usize));
    let of_images = of_images.filter(|&(_, text)| text < negatives.texts.len());
    let negative = of_texts.chain(of_images).map(|(image, text)| Pair { image, text, label: 0 });
    let pairs: Vec<Pair> = own.chain(negative).collect();
    let sorted = |pass: &[Pair]| {
        let within = |pair: &Pair| Pair { image: pair.image - images.start, ..*pair };
        let mut pass: Vec<Pair> = pass.iter().map(within).collect();
        pass.sort_by_key(|pair| pair.image);
        pass
    };
    pairs.chunks(most).map(sorted).collect()
}
