//! The passes of the second phase: which pairs are matched and which texts are generated in each.

use super::Stage1Options;
use super::captioning::Predictions;
use super::contrastive::HardNegatives;
use super::plan::{ImageRows, Pair, Plan};
use crate::device::Device;
use crate::qformer::Matching;
use std::ops::Range;

/// Pairs of an image on average: with its own text, with a hard negative text, and as a hard negative.
const PAIRS_OF_IMAGE: usize = 3;

/// Most pairs of a pass over micro-batches of up to so many images: those that there are on average, as far as the
/// device is not busy with fewer. What a pass works in does not grow with the batch beyond that.
pub(super) fn most_pairs<D: Device>(images: usize) -> usize {
    (PAIRS_OF_IMAGE * images).min(D::PAIRS_PER_PASS)
}

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

    /// Most passes of a step of so many images in so many micro-batches: those that were enough if all were full, and
    /// one of each micro-batch that is not.
    pub(super) fn most_passes<D: Device>([images, batches]: [usize; 2]) -> usize {
        let largest = images.div_ceil(batches);
        (PAIRS_OF_IMAGE * images).div_ceil(most_pairs::<D>(largest)) + batches
    }
}

/// The pairs of a micro-batch, by passes of at most `most`: every one of its `images` with its own text,
/// with the texts whose hard negative it is, and with its hard negative text. Where there is no negative there
/// is no pair. Pairs of one image stand together.
pub(super) fn passes(negatives: &HardNegatives, images: Range<usize>, most: usize) -> Vec<Vec<Pair>> {
    let own = images.clone().map(|image| Pair { image, text: image, label: 1 });
    let of_texts = negatives.images.iter().enumerate().map(|(text, &image)| (image as usize, text));
    let of_texts = of_texts.filter(|(image, _)| images.contains(image));
    let of_images = images.clone().map(|image| (image, negatives.texts[image] as usize));
    let of_images = of_images.filter(|&(_, text)| text < negatives.texts.len());
    let negative = of_texts.chain(of_images).map(|(image, text)| Pair { image, text, label: 0 });
    let within = |pair: Pair| Pair { image: pair.image - images.start, ..pair };
    let mut pairs: Vec<Pair> = own.chain(negative).map(within).collect();
    pairs.sort_by_key(|pair| pair.image);
    pairs.chunks(most).map(<[Pair]>::to_vec).collect()
}
