//! The pairs of images and texts that matching learns from, found out of hard negatives, and the stream that they
//! and captions are: which rows it has, and which of them attend to one another. All of it is whole numbers, made
//! where the negatives are, so that nobody waits for them.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use super::attention::SEQUENCE_WORDS;
use crate::device::Device;
use crate::error::Result;
use crate::ops::contrastive::NO_NEGATIVE;
use crate::tensor::{Shape, View, ViewMut};
use std::ops::Range;

/// What stands for image and text of a pair that is not there.
pub const ABSENT: u32 = NO_NEGATIVE;

/// Most pairs of an image on average: with its own text, with a hard negative text, and as a hard negative.
pub const PAIRS_OF_IMAGE: usize = 3;

/// Most tokens of a text of filler.
pub const FILLER: usize = 32;

/// The padding token, of which filler is.
pub const PADDING: u32 = 0;

/// Operands of [`PairsOp::pairs_list`].
pub struct PairsList<'a, D: Device> {
    /// [1, B]: for each image, or [`NO_NEGATIVE`]
    pub negative_texts: View<'a, D, u32>,
    /// [1, B]: for each text, or [`NO_NEGATIVE`]
    pub negative_images: View<'a, D, u32>,
    /// [2, 3·B], written: image and text of each pair. For one image after the other: the image with its own text,
    /// with the texts whose hard negative it is, and with its hard negative. [`ABSENT`] fills the rest.
    pub pairs: ViewMut<'a, D, u32>,
    /// [1, B + 1], written: the first pair of each image, and where those of the last end
    pub bounds: ViewMut<'a, D, u32>,
}

/// A part of the list's pairs.
pub struct ListedPairs<'a, D: Device> {
    /// [2, P], the list's from `first` on
    pub pairs: View<'a, D, u32>,
    /// Where they begin in the list.
    pub first: usize,
    /// [1, B + 1], the list's
    pub bounds: View<'a, D, u32>,
}

/// The texts of a batch.
pub struct Texts<'a, D: Device> {
    /// Their tokens, one text after the other [1, tokens or more]
    pub tokens: View<'a, D, u32>,
    /// [1, B + 1]: where each begins, and where the last ends
    pub starts: View<'a, D, u32>,
}

/// Of how many rows and numbers a stream is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StreamSizes {
    /// Q, rows of an image's queries
    pub queries: usize,
    /// N, tokens of an image
    pub image_tokens: usize,
    /// Which of the batch's images there are: all that pairs name.
    pub images: Range<usize>,
    /// Captions, the texts of the first ones of `images`.
    pub captions: usize,
    /// What a caption begins with in place of its first token.
    pub start_token: u32,
}

/// Operands of [`PairsOp::pairs_stream`]: a stream of P·Q query rows, a set a pair, and T rows of text: of the captions,
/// of the pairs in their order, then of filler, texts of padding of up to [`FILLER`] rows. A text that finds no room
/// has no rows, and neither have those after it.
pub struct PairsStream<'a, D: Device> {
    /// The pairs.
    pub listed: ListedPairs<'a, D>,
    /// All texts.
    pub texts: Texts<'a, D>,
    /// Rows and numbers.
    pub sizes: StreamSizes,
    /// [1, P·Q], written: 0 to Q − 1 for each set
    pub query_ids: ViewMut<'a, D, u32>,
    /// [1, T], written
    pub tokens: ViewMut<'a, D, u32>,
    /// [1, T], written: places within the texts, 0 for filler
    pub positions: ViewMut<'a, D, u32>,
    /// [1, words], written: table of the pairs, queries and text together, and of filler, each alone in its group
    pub matched: ViewMut<'a, D, u32>,
    /// [1, words], written: table of the captions over queries [images·Q] of an earlier stream and themselves
    pub generated: ViewMut<'a, D, u32>,
    /// [1, words], written: table of the query sets over the tokens of their images, a group an image. Those of absent
    /// pairs read the last one's.
    pub cross: ViewMut<'a, D, u32>,
    /// [1, R] or [1, R + P], written: the rows of captions that predict, all but the last of each, then row 0 up to R;
    /// then the first row of each pair's text, or row 0
    pub picked: ViewMut<'a, D, u32>,
    /// [1, T], written: where the row is in `picked`, or how many those are
    pub places: ViewMut<'a, D, u32>,
    /// [1, R], written: the tokens that are predicted, [`IGNORED`](crate::ops::cross_entropy::IGNORED) for the others
    pub predicted: ViewMut<'a, D, u32>,
    /// [1, P], written: 1 for an image with its own text, 0 for another, or
    /// [`LEFT_OUT`](crate::ops::matching::LEFT_OUT)
    pub labels: ViewMut<'a, D, u32>,
    /// [1, 1], written: rows that captions and pairs need
    pub needed: ViewMut<'a, D, u32>,
}

/// Pairs and their streams.
pub trait PairsOp: Device {
    /// The pairs of a batch.
    fn pairs_list(&self, args: PairsList<'_, Self>) -> Result<()>;
    /// The stream of some of them.
    fn pairs_stream(&self, args: PairsStream<'_, Self>) -> Result<()>;
}

/// Sequences that a table of so many words is for, if each is a group.
fn grouped_alone(words: usize) -> usize {
    assert!(words % (SEQUENCE_WORDS + 1) == 1, "a table of {words} words");
    words / (SEQUENCE_WORDS + 1)
}

impl<D: Device> PairsList<'_, D> {
    /// B
    fn check(&self) -> usize {
        let images = self.negative_texts.cols();
        let row = Shape::new(1, images);
        assert!(self.negative_texts.shape() == row && self.negative_images.shape() == row);
        assert_eq!(self.pairs.shape(), Shape::new(2, PAIRS_OF_IMAGE * images));
        assert_eq!(self.bounds.shape(), Shape::new(1, images + 1));
        images
    }
}

/// How many there are of what a stream has.
struct Counts {
    pairs: usize,
    /// T
    rows: usize,
    /// R
    predicting: usize,
    /// Room for sequences of pairs and filler.
    matched: usize,
}

impl<D: Device> PairsStream<'_, D> {
    fn check(&self) -> Counts {
        let StreamSizes { queries, images, captions, .. } = &self.sizes;
        let (pairs, rows) = (self.listed.pairs.cols(), self.tokens.cols());
        let (predicting, matched) = (self.predicted.cols(), grouped_alone(self.matched.cols()));
        assert_eq!(self.listed.pairs.rows(), 2, "pairs [2, P]");
        assert_eq!(self.listed.bounds.shape(), self.texts.starts.shape(), "bounds and starts [1, B + 1]");
        assert!(images.end < self.texts.starts.cols() && *captions <= images.len() && !images.is_empty());
        assert_eq!(self.query_ids.cols(), pairs * queries, "ids of queries [1, P·Q]");
        assert!(self.positions.cols() == rows && self.places.cols() == rows, "rows of text");
        assert_eq!(grouped_alone(self.generated.cols()), *captions, "table of captions");
        assert_eq!(self.cross.cols(), images.len() + 1 + pairs * SEQUENCE_WORDS, "table of query sets");
        assert!(matched >= pairs, "table of pairs");
        let picked = self.picked.cols();
        assert!(picked == predicting || picked == predicting + pairs, "{picked} rows picked");
        assert_eq!(self.labels.cols(), pairs, "labels [1, P]");
        assert_eq!(self.needed.shape(), Shape::new(1, 1));
        Counts { pairs, rows, predicting, matched }
    }
}
