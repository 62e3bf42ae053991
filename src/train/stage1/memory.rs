//! How much memory a step takes, known before there is one.

use super::batch::MOST_BATCHES;
use super::step::acts::{Constants, FirstPhaseActs, SecondPhaseActs, WholeActs};
use super::step::plan::{FirstPhaseInputs, ImageRows};
use super::step::second::{PairPass, TextRoom, most_pairs};
use super::{Stage1Options, Stage1Parameters};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::memory::Arena;
use crate::ops::Backend;
use crate::train::StepSize;
use crate::train::optimizer::VectorBytes;

/// Most images of a micro-batch, and tokens of an image: enough for any machine, and few enough that
/// sizes are counted in 64 bits.
const MOST_IMAGES: usize = 1 << 16;

/// Refuses steps of a size that no machine takes.
fn check(size: StepSize, config: &Config) -> Result<()> {
    let longest = config.qformer.max_position_embeddings;
    for (what, value, least, most) in [
        ("images in a micro-batch", size.images, 1, MOST_IMAGES),
        ("micro-batches in a step", size.batches, 1, MOST_BATCHES),
        ("tokens of an image", size.image_tokens, 1, MOST_IMAGES),
        ("tokens in the longest text", size.text_tokens, 2, longest),
    ] {
        if !(least..=most).contains(&value) {
            return Err(Error::usage(format!(
                "{value} {what} are asked for; {least} to {most} are possible"
            )));
        }
    }
    Ok(())
}

/// Bytes of a device's memory by what they are for. What libraries and the device's own software keep
/// comes on top.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// The numbers that are trained.
    pub parameters: usize,
    /// Their gradients.
    pub gradients: usize,
    /// The optimiser's two moments.
    pub moments: usize,
    /// The parameters as the graph reads them, where it computes in narrower numbers.
    pub weights: usize,
    /// What spans the micro-batches: contrastive features, folded projections of the images.
    pub whole_batch: usize,
    /// Images, queries and texts, each alone: activations and gradients of a micro-batch.
    pub first_phase: usize,
    /// Pairs and captions: activations and gradients of a pass.
    pub second_phase: usize,
    /// Constants and scalars.
    pub other: usize,
}

impl MemoryPlan {
    /// What [`Stage1`](super::Stage1) holds when steps of this size have run. Nothing is allocated.
    ///
    /// # Errors
    /// Fails if the model cannot be trained with these options, or by steps of this size.
    pub fn of<B: Backend>(b: &B, config: &Config, options: &Stage1Options, size: StepSize) -> Result<Self> {
        options.check(config)?;
        check(size, config)?;
        let StepSize { images, batches, image_tokens, text_tokens } = size;
        let vectors = VectorBytes::planned::<B>(&Stage1Parameters::spec(config, options.matching));
        let rows = ImageRows { queries: config.num_query_tokens, tokens: image_tokens };
        let texts = vec![vec![0; text_tokens]; images];
        let first = FirstPhaseInputs::of::<B>(&texts, rows).plan;
        let (pairs, captions) = (most_pairs::<B>(images), images * text_tokens);
        let least = if B::ASYNCHRONOUS { captions } else { pairs * text_tokens };
        let tokens = TextRoom {
            pair_tokens: [least, pairs * text_tokens],
            caption_tokens: captions,
            longest: text_tokens,
        };
        let second = PairPass::new::<B>(0..pairs, 0..images, images, tokens, rows, options);
        let width = config.vision.width();
        let constants = Arena::<B>::bytes(|c| {
            Constants::carve(c, width);
        });
        Ok(Self {
            parameters: vectors.parameters,
            gradients: vectors.gradients,
            moments: vectors.moments,
            weights: vectors.weights,
            whole_batch: Arena::<B>::bytes(|c| {
                WholeActs::carve(c, [images * batches, batches], images * batches * text_tokens, config);
            }),
            first_phase: Arena::<B>::bytes(|c| {
                FirstPhaseActs::carve(c, b, &first, rows, config, options.recompute);
            }),
            second_phase: Arena::<B>::bytes(|c| {
                SecondPhaseActs::carve(c, b, &second, config, options);
            }),
            other: vectors.scalars + constants,
        })
    }

    /// All of it, which is held throughout.
    pub fn peak(&self) -> usize {
        self.purposes().iter().map(|(_, bytes)| bytes).sum()
    }

    /// What each part is for, in words, with its bytes.
    pub fn purposes(&self) -> [(&'static str, usize); 8] {
        [
            ("parameters", self.parameters),
            ("gradients", self.gradients),
            ("moments", self.moments),
            ("weights", self.weights),
            ("whole batch", self.whole_batch),
            ("first phase", self.first_phase),
            ("second phase", self.second_phase),
            ("other", self.other),
        ]
    }
}
