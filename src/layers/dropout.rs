//! Dropout throughout a pass: every place in it has a mask of its own.

use crate::device::Device;
use crate::ops::dropout::Dropout;
use crate::tensor::View;

/// A place of a block that drops out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// What enters the first block.
    Embedding,
    /// Probabilities of self-attention.
    Attention,
    /// Output of self-attention.
    AttentionOutput,
    /// Probabilities of cross-attention.
    CrossAttention,
    /// Output of cross-attention.
    CrossAttentionOutput,
    /// Output of the query rows' feed-forward layer.
    QueryFeedForward,
    /// Output of the text rows' feed-forward layer.
    TextFeedForward,
}

/// Places of a block, with room for one more.
const PLACES: u32 = 8;
/// Blocks of a pass, at most.
const BLOCKS: u32 = 1 << 10;

/// Dropout throughout a pass.
pub struct PassDropout<'a, D: Device> {
    /// p of attention's probabilities
    pub probabilities: f64,
    /// p of all else
    pub hidden: f64,
    /// Which pass of the step: no two have the same.
    pub pass: u32,
    /// [1, 2]: seed and step
    pub key: View<'a, D, u32>,
}

impl<D: Device> Clone for PassDropout<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for PassDropout<'_, D> {}

impl<'a, D: Device> PassDropout<'a, D> {
    /// Dropout at a place of a block; absent where nothing is dropped.
    pub fn at(&self, block: usize, place: Place) -> Option<Dropout<'a, D>> {
        let block =
            u32::try_from(block).ok().filter(|&block| block < BLOCKS).expect("a model has few blocks");
        let probability = match place {
            Place::Attention | Place::CrossAttention => self.probabilities,
            _ => self.hidden,
        };
        let site = (self.pass * BLOCKS + block) * PLACES + place as u32;
        (probability > 0.0).then_some(Dropout { probability, site, key: self.key })
    }
}
