//! BLIP-2's similarity of an image and a text: the largest of the products of the image's Q query
//! features with the text's one feature. Between unit vectors it is the largest cosine.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use crate::device::{Device, M, V};
use crate::error::Result;
use crate::tensor::{Shape, View, ViewMut};

/// Which images are compared with which texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Every image with every text: similarities [images, texts].
    All,
    /// Image i with text i: similarities [images, 1].
    Matched,
}

/// Operands of [`SimilarityOp::similarity_forward`].
pub struct SimilarityForward<'a, D: Device> {
    /// Which images are compared with which texts.
    pub pairing: Pairing,
    /// [images·Q, E]
    pub queries: V<'a, D>,
    /// [texts, E]
    pub texts: V<'a, D>,
    /// [images, texts] or [images, 1]
    pub similarity: M<'a, D>,
    /// As `similarity`: which query won, the first of equals, where a NaN counts as larger than any
    /// number; the backward pass needs it.
    pub winner: Option<ViewMut<'a, D, u32>>,
}

/// Operands of [`SimilarityOp::similarity_backward`].
pub struct SimilarityBackward<'a, D: Device> {
    /// As in the forward pass.
    pub pairing: Pairing,
    /// [images·Q, E]
    pub queries: V<'a, D>,
    /// [texts, E]
    pub texts: V<'a, D>,
    /// [images, texts] or [images, 1]
    pub winner: View<'a, D, u32>,
    /// [images, texts] or [images, 1]
    pub dsimilarity: V<'a, D>,
    /// [images·Q, E], written
    pub dqueries: M<'a, D>,
    /// [texts, E], written
    pub dtexts: M<'a, D>,
}

/// The maximum over queries, whose gradient goes to the winner alone.
pub trait SimilarityOp: Device {
    /// `similarity[i, t] = max over q of ⟨queries[i·Q + q], texts[t]⟩`
    fn similarity_forward(&self, args: SimilarityForward<'_, Self>) -> Result<()>;
    /// Gradients of the winning queries and of the texts.
    fn similarity_backward(&self, args: SimilarityBackward<'_, Self>) -> Result<()>;
}

impl Pairing {
    /// Shape of the similarities.
    fn shape(self, images: usize, texts: usize) -> (usize, usize) {
        match self {
            Pairing::All => (images, texts),
            Pairing::Matched => {
                assert_eq!(images, texts, "a text for each image");
                (images, 1)
            }
        }
    }
}

/// Queries of an image.
fn query_count(rows: usize, images: usize) -> usize {
    let count = rows / images.max(1);
    assert!(images * count == rows, "{rows} queries of {images} images");
    count
}

impl<D: Device> SimilarityForward<'_, D> {
    /// Asserts the shapes; returns Q.
    fn check(&self) -> usize {
        let Shape { rows: images, cols } = self.similarity.shape();
        assert_eq!(self.queries.cols(), self.texts.cols(), "queries and texts [.., E]");
        assert_eq!((images, cols), self.pairing.shape(images, self.texts.rows()));
        assert!(self.winner.as_ref().is_none_or(|w| w.shape() == self.similarity.shape()));
        let count = query_count(self.queries.rows(), images);
        assert!(count > 0 || images == 0, "images without queries");
        count
    }
}

impl<D: Device> SimilarityBackward<'_, D> {
    /// Asserts the shapes; returns Q.
    fn check(&self) -> usize {
        let Shape { rows: images, cols } = self.dsimilarity.shape();
        assert_eq!(self.queries.cols(), self.texts.cols(), "queries and texts [.., E]");
        assert_eq!((images, cols), self.pairing.shape(images, self.texts.rows()));
        assert_eq!(self.winner.shape(), self.dsimilarity.shape());
        assert!(self.dqueries.shape() == self.queries.shape() && self.dtexts.shape() == self.texts.shape());
        query_count(self.queries.rows(), images)
    }
}
