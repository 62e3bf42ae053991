//! The contrastive loss of a batch, image to text and text to image, with its hard negatives
//! (BLIP-2, section 3.2; LAVIS `blip2_qformer.py`).
//!
//! The similarity of an image and a text is the largest of the products of the image's Q query
//! features with the text's feature; a logit is a similarity divided by the temperature. A pair with
//! equal ids is a positive. Of a row of N logits (an image's, over all texts) with P positives, the
//! targets are y = (1 − smoothing)·positive/P + smoothing/N, and the cross-entropy is −Σ y·ln softmax;
//! a row without a positive counts as 0. Columns (a text's logits, over all images) likewise.
//!
//! Of what there is for every pair, memory holds the winning query alone, a byte.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, S, SM, V};
use crate::error::Result;
use crate::random::philox;
use crate::tensor::{Shape, View, ViewMut};
use serde::{Deserialize, Serialize};

/// Most queries of an image: a winner is a byte.
pub const MAX_QUERIES: usize = 255;

/// What stands for a negative where every pair is a positive.
pub const NO_NEGATIVE: u32 = u32::MAX;

/// A batch of images and texts to be told apart.
pub struct ContrastiveBatch<'a, D: Device> {
    /// [images·Q, E], rows of length 1
    pub queries: V<'a, D>,
    /// [texts, E], rows of length 1
    pub texts: V<'a, D>,
    /// [1, 1], positive
    pub temperature: S<'a, D>,
    /// [1, images]
    pub image_ids: View<'a, D, u32>,
    /// [1, texts]
    pub text_ids: View<'a, D, u32>,
    /// Part of the targets that is spread evenly, in [0, 1).
    pub smoothing: f64,
}

impl<D: Device> Clone for ContrastiveBatch<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for ContrastiveBatch<'_, D> {}

/// How the hard negative of an image or a text is chosen among the pairs that are not positives.
pub enum Negatives<'a, D: Device> {
    /// Drawn in proportion to the softmax of their logits, anew for every key. The draw is exact: the
    /// largest of logit + Gumbel noise (Gumbel, 1954), the noise of pair (image, text) being that of
    /// word 0 of the counter [text, image, site, 0] for the image's draw and of word 1 for the text's.
    Sampled {
        /// [1, 2]: seed and step
        key: View<'a, D, u32>,
        /// Which place of the graph: no two places of a step have the same.
        site: u32,
    },
    /// The most similar, the first of equals.
    Hardest,
}

/// Which features the loss of a direction is differentiated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ContrastiveGradient {
    /// Image-to-text by the queries and text-to-image by the texts, the other side being taken for
    /// constant, as LAVIS does; the temperature gets both.
    OneSided,
    /// Each direction by both.
    Full,
}

/// Operands of [`ContrastiveOp::contrastive_forward`].
pub struct ContrastiveForward<'a, D: Device> {
    /// Images and texts.
    pub batch: ContrastiveBatch<'a, D>,
    /// How negatives are chosen.
    pub negatives: Negatives<'a, D>,
    /// [2, images]: log-sum-exp of an image's logits, and the number of its positives
    pub image_statistics: SM<'a, D>,
    /// [2, texts]: log-sum-exp of a text's logits, and the number of its positives
    pub text_statistics: SM<'a, D>,
    /// [images, texts]: which query won, the first of equals
    pub winner: ViewMut<'a, D, u8>,
    /// [1, 1]: mean of the images' mean cross-entropy and the texts'
    pub loss: SM<'a, D>,
    /// [1, 2]: images, and texts, whose largest logit (the first of equals) is a positive
    pub recalled: ViewMut<'a, D, u32>,
    /// [1, images]: a text that is no positive, [`NO_NEGATIVE`] if there is none
    pub negative_texts: ViewMut<'a, D, u32>,
    /// [1, texts]: an image that is no positive, [`NO_NEGATIVE`] if there is none
    pub negative_images: ViewMut<'a, D, u32>,
    /// [1, [`workspace_words`]]: scratch
    pub workspace: ViewMut<'a, D, u32>,
}

/// Operands of [`ContrastiveOp::contrastive_backward`].
pub struct ContrastiveBackward<'a, D: Device> {
    /// The forward's.
    pub batch: ContrastiveBatch<'a, D>,
    /// Which features a direction is differentiated by.
    pub gradient: ContrastiveGradient,
    /// Weight of this loss in the whole: the gradient of the whole by `loss`.
    pub weight: f64,
    /// [2, images], the forward's
    pub image_statistics: S<'a, D>,
    /// [2, texts], the forward's
    pub text_statistics: S<'a, D>,
    /// [images, texts], the forward's
    pub winner: View<'a, D, u8>,
    /// [images·Q, E], written; of equal queries the winner alone gets a gradient
    pub dqueries: M<'a, D>,
    /// [texts, E], written
    pub dtexts: M<'a, D>,
    /// [1, 1], added to
    pub dtemperature: SM<'a, D>,
    /// [1, [`workspace_words`]]: scratch
    pub workspace: ViewMut<'a, D, u32>,
}

/// The contrastive loss.
pub trait ContrastiveOp: Device {
    /// The loss, how often the most similar is a positive, and hard negatives.
    fn contrastive_forward(&self, args: ContrastiveForward<'_, Self>) -> Result<()>;
    /// Gradients of the loss, times `weight`.
    fn contrastive_backward(&self, args: ContrastiveBackward<'_, Self>) -> Result<()>;
}

/// Texts of a block of pairs: a block's part of an image's row of logits.
pub(crate) const TEXTS_OF_BLOCK: usize = 128;
/// Images that a block takes at a time.
pub(crate) const IMAGES_OF_STEP: usize = 4;
/// Most blocks that share a text's column of logits.
const MOST_IMAGE_BLOCKS: usize = 64;
/// Words of what is known of a line of logits: twin of `Part` in kernels/contrastive.cuh.
pub(crate) const PART_WORDS: usize = 8;

/// Images of a block of pairs: a block's part of a text's column of logits.
pub(crate) fn images_of_block(images: usize) -> usize {
    images.div_ceil(MOST_IMAGE_BLOCKS).next_multiple_of(IMAGES_OF_STEP).max(IMAGES_OF_STEP)
}

/// Parts into which the rows of logits, and the columns, are cut.
pub(crate) fn parts(images: usize, texts: usize) -> [usize; 2] {
    [texts.div_ceil(TEXTS_OF_BLOCK), images.div_ceil(images_of_block(images))]
}

/// Rows of queries, or texts, of a block of the backward pass: twin of `OWN_ROWS` in
/// kernels/contrastive_dense.cuh …
pub(crate) const ROWS_OF_DENSE_BLOCK: usize = 128;
/// … and of a warp, which has queries of one image: twin of `WARP_ROWS`.
pub(crate) const ROWS_OF_SLOT: usize = 16;
/// Fewest images that such a block goes over, if there are as many: what it writes must be little
/// beside what it reads.
const LEAST_IMAGES_OF_PART: usize = 16;
/// Blocks of texts beyond which the images are not cut further.
const ENOUGH_TEXT_BLOCKS: usize = 128;

/// Images that a block of texts goes over in the backward pass.
pub(crate) fn images_of_part(images: usize, texts: usize) -> usize {
    let wanted = (ENOUGH_TEXT_BLOCKS / texts.div_ceil(ROWS_OF_DENSE_BLOCK)).max(1);
    images.div_ceil(wanted.min((images / LEAST_IMAGES_OF_PART).max(1)))
}

/// Words of the forward pass: twin of `Workspace` in kernels/contrastive.cuh.
fn forward_words(images: usize, texts: usize) -> usize {
    let [of_row, of_column] = parts(images, texts);
    PART_WORDS * (of_row * images + of_column * texts) + 2 * (images + texts)
}

/// Words of the backward pass: twin of `BackwardWorkspace` in kernels/contrastive_gradients.cuh.
fn backward_words(images: usize, texts: usize, [queries, width]: [usize; 2]) -> usize {
    let slots = images * queries.div_ceil(ROWS_OF_SLOT);
    let parts = images.div_ceil(images_of_part(images, texts));
    slots.next_multiple_of(4) + parts * texts * width.next_multiple_of(4)
}

/// Words of 4 bytes of the workspace that either pass over so many images and texts needs; `features`
/// are an image's queries and their width, [Q, E].
///
/// Forward: what each block of pairs found out about its part of each row and column, and two words for
/// each row and column, in all about images·texts/16 words where both are large, at most 64 blocks of
/// rows sharing a column. Backward: parts of the texts' gradients, at most 16 Ki rows or as many as there
/// are texts.
pub fn workspace_words(images: usize, texts: usize, features: [usize; 2]) -> usize {
    forward_words(images, texts).max(backward_words(images, texts, features))
}

/// Sizes of a batch.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub images: usize,
    pub texts: usize,
    /// Of an image.
    pub queries: usize,
}

impl<D: Device> ContrastiveBatch<'_, D> {
    fn check(&self) -> Sizes {
        let (images, texts) = (self.image_ids.cols(), self.text_ids.cols());
        assert!(images > 0 && texts > 0, "{images} images and {texts} texts");
        let queries = self.queries.rows() / images;
        assert_eq!(self.queries.rows(), images * queries, "queries [images·Q, E]");
        assert!((1..=MAX_QUERIES).contains(&queries), "{queries} queries of an image");
        assert_eq!(self.texts.shape(), Shape::new(texts, self.queries.cols()), "texts [texts, E]");
        assert_eq!(self.temperature.shape(), Shape::new(1, 1), "one temperature");
        assert!(self.image_ids.rows() == 1 && self.text_ids.rows() == 1, "ids [1, images] and [1, texts]");
        assert!((0.0..1.0).contains(&self.smoothing), "smoothing of {}", self.smoothing);
        Sizes { images, texts, queries }
    }

    fn workspace_words(&self, Sizes { images, texts, queries }: Sizes) -> usize {
        workspace_words(images, texts, [queries, self.texts.cols()])
    }
}

impl<D: Device> ContrastiveForward<'_, D> {
    fn check(&self) -> Sizes {
        let sizes @ Sizes { images, texts, .. } = self.batch.check();
        assert_eq!(self.image_statistics.shape(), Shape::new(2, images));
        assert_eq!(self.text_statistics.shape(), Shape::new(2, texts));
        assert_eq!(self.winner.shape(), Shape::new(images, texts));
        assert_eq!(self.loss.shape(), Shape::new(1, 1));
        assert_eq!(self.recalled.shape(), Shape::new(1, 2));
        assert_eq!(self.negative_texts.shape(), Shape::new(1, images));
        assert_eq!(self.negative_images.shape(), Shape::new(1, texts));
        assert_eq!(self.workspace.shape(), Shape::new(1, self.batch.workspace_words(sizes)));
        if let Negatives::Sampled { key, .. } = &self.negatives {
            assert_eq!(key.shape(), Shape::new(1, 2), "seed and step");
        }
        sizes
    }
}

impl<D: Device> ContrastiveBackward<'_, D> {
    fn check(&self) -> Sizes {
        let sizes @ Sizes { images, texts, .. } = self.batch.check();
        assert_eq!(self.image_statistics.shape(), Shape::new(2, images));
        assert_eq!(self.text_statistics.shape(), Shape::new(2, texts));
        assert_eq!(self.winner.shape(), Shape::new(images, texts));
        assert_eq!(self.dqueries.shape(), self.batch.queries.shape());
        assert_eq!(self.dtexts.shape(), self.batch.texts.shape());
        assert_eq!(self.dtemperature.shape(), Shape::new(1, 1));
        assert_eq!(self.workspace.shape(), Shape::new(1, self.batch.workspace_words(sizes)));
        sizes
    }
}

/// Gumbel noise of a pair: for the image's draw, and for the text's. Twin of `gumbel` in
/// kernels/contrastive.cu.
fn noise(image: usize, text: usize, site: u32, key: [u32; 2]) -> [f64; 2] {
    let [first, second, ..] = philox([text as u32, image as u32, site, 0], key);
    [first, second].map(|word| {
        // Of a number in (0, 1) that is finest near 0, where the noise is large.
        let uniform = (f64::from(word) + 0.5) / (f64::from(u32::MAX) + 1.0);
        -(-(-uniform).ln_1p()).ln()
    })
}
