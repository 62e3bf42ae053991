//! The parameters of a language model, whatever its family, and the settings that its passes follow.

use crate::layers::mlp::Gating;
use crate::layers::{Linear, Mlp, Norm};
use crate::params::Tree;

/// What the passes of a model follow, beside its parameters.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Architecture {
    /// V
    pub(crate) vocabulary: usize,
    /// E: width of the token embeddings, and so of soft prompts.
    pub(crate) embedding: usize,
    /// D
    pub(crate) hidden: usize,
    /// H
    pub(crate) heads: usize,
    /// I: width of all heads together.
    pub(crate) inner: usize,
    /// F
    pub(crate) intermediate: usize,
    /// Whether the feed-forward layers are gated.
    pub(crate) gating: Gating,
    /// Factor of the scores of attention.
    pub(crate) scale: f64,
    /// Where the norms of a block are.
    pub(crate) norms: NormPlace,
    /// Row of the table of positions that the first token has; of models that have one.
    pub(crate) first_position: usize,
    /// Most tokens of a sequence, soft prompt included, if the model has a bound.
    pub(crate) longest: Option<usize>,
    /// The token that the decoder of an encoder-decoder begins with; none in decoder-only models.
    pub(crate) start: Option<u32>,
}

/// Where the norms of a block are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NormPlace {
    /// Before a layer, within its residual connection.
    Before,
    /// After the sum of a layer and its residual.
    After,
}

/// Self-attention of a block, with its norm.
#[derive(Clone, Debug)]
pub(crate) struct SelfAttention<T> {
    /// [1, D]
    pub(crate) norm: Norm<T>,
    /// Queries, keys and values side by side: weight [3·I, D]
    pub(crate) qkv: Linear<T>,
    /// Weight [D, I]
    pub(crate) output: Linear<T>,
}

/// Attention of a decoder's block to the encoder's output, with its norm; keys and values are all blocks' together.
#[derive(Clone, Debug)]
pub(crate) struct CrossAttention<T> {
    /// [1, D]
    pub(crate) norm: Norm<T>,
    /// Weight [I, D]
    pub(crate) query: Linear<T>,
    /// Weight [D, I]
    pub(crate) output: Linear<T>,
}

/// A block.
#[derive(Clone, Debug)]
pub(crate) struct Block<T> {
    pub(crate) attention: SelfAttention<T>,
    /// Of an encoder-decoder's decoder.
    pub(crate) cross: Option<CrossAttention<T>>,
    /// [1, D]
    pub(crate) mlp_norm: Norm<T>,
    pub(crate) mlp: Mlp<T>,
}

/// Blocks one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Stack<T> {
    pub(crate) blocks: Vec<Block<T>>,
    /// After the last block [1, D].
    pub(crate) norm: Option<Norm<T>>,
}

/// All parameters.
#[derive(Clone, Debug)]
pub(crate) struct Parameters<T> {
    /// Token embeddings [V, E]
    pub(crate) words: T,
    /// Learned positions [rows, D]
    pub(crate) positions: Option<T>,
    /// From the embeddings to the blocks where they are not as wide: weight [D, E]
    pub(crate) project_in: Option<Linear<T>>,
    /// Of an encoder-decoder.
    pub(crate) encoder: Option<Stack<T>>,
    pub(crate) decoder: Stack<T>,
    /// Keys and values of the encoder's output for all of the decoder's blocks: weight [blocks·2·I, D]
    pub(crate) cross_kv: Option<Linear<T>>,
    /// From the blocks to the head where they are not as wide: weight [E, D]
    pub(crate) project_out: Option<Linear<T>>,
    /// The head [V, E]; absent where it is the token embeddings
    pub(crate) head: Option<T>,
}

impl<T> Tree<T> for SelfAttention<T> {
    type With<U> = SelfAttention<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> SelfAttention<U> {
        SelfAttention { norm: self.norm.map(leaf), qkv: self.qkv.map(leaf), output: self.output.map(leaf) }
    }
}

impl<T> Tree<T> for CrossAttention<T> {
    type With<U> = CrossAttention<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> CrossAttention<U> {
        CrossAttention {
            norm: self.norm.map(leaf),
            query: self.query.map(leaf),
            output: self.output.map(leaf),
        }
    }
}

impl<T> Tree<T> for Block<T> {
    type With<U> = Block<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Block<U> {
        Block {
            attention: self.attention.map(leaf),
            cross: self.cross.as_ref().map(|cross| cross.map(leaf)),
            mlp_norm: self.mlp_norm.map(leaf),
            mlp: self.mlp.map(leaf),
        }
    }
}

impl<T> Tree<T> for Stack<T> {
    type With<U> = Stack<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Stack<U> {
        Stack {
            blocks: self.blocks.iter().map(|block| block.map(leaf)).collect(),
            norm: self.norm.as_ref().map(|norm| norm.map(leaf)),
        }
    }
}

impl<T> Tree<T> for Parameters<T> {
    type With<U> = Parameters<U>;

    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Parameters<U> {
        Parameters {
            words: leaf(&self.words),
            positions: self.positions.as_ref().map(&mut *leaf),
            project_in: self.project_in.as_ref().map(|linear| linear.map(leaf)),
            encoder: self.encoder.as_ref().map(|stack| stack.map(leaf)),
            decoder: self.decoder.map(leaf),
            cross_kv: self.cross_kv.as_ref().map(|linear| linear.map(leaf)),
            project_out: self.project_out.as_ref().map(|linear| linear.map(leaf)),
            head: self.head.as_ref().map(&mut *leaf),
        }
    }
}
