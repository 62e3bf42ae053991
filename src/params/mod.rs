//! Parameters: trees generic in their leaf.
//!
//! A layer's parameters are a struct such as `Linear<T> { weight: T, bias: T }`. With [`Spec`]
//! leaves it says what the tensors are called and how large they are; with [`Slot`] leaves where
//! they lie in an arena; with weights as leaves it is what the layer computes with.

mod bounds;
pub mod init;
mod load;
pub mod names;
mod pth;
pub mod safetensors;
pub mod sources;

pub use load::{NamedCheckpoint, TensorSource, Weights, reject_surplus};

use crate::device::{Device, W};
use crate::memory::Arena;
use crate::tensor::{NumberType, Packing, Shape, Weight};
use std::collections::BTreeSet;

/// A tree of parameters whose leaves can be exchanged.
pub trait Tree<T> {
    /// The same tree with other leaves.
    type With<U>: Tree<U>;

    /// The tree of `leaf`'s results, leaf by leaf in the order of the fields.
    fn map<'t, U>(&'t self, leaf: &mut dyn FnMut(&'t T) -> U) -> Self::With<U>;
}

/// The names of all tensors in a tree.
pub fn part_names(specs: &impl Tree<Spec>) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    specs.map(&mut |spec| names.extend(spec.parts.iter().map(|part| part.name.clone())));
    names
}

/// What reads a parameter, and so how it may be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A matrix [out, in] that only `gemm` and absorbed attention read: stored as the device likes.
    Weight,
    /// A table of token embeddings, which lookups read and a language model's tied head multiplies by: stored by rows,
    /// in the weights' type.
    Embedding,
    /// Anything else: stored by rows, in the type that the device computes in.
    Rows,
}

/// A tensor of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Hugging Face's name.
    pub name: String,
    /// Shape in the checkpoint.
    pub shape: Vec<usize>,
}

impl Part {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A parameter: one tensor of the checkpoint, or several that stand one under another.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The tensors, in order.
    pub parts: Vec<Part>,
    /// Shape of the whole as the graph reads it.
    pub shape: Shape,
    /// What reads it.
    pub role: Role,
}

impl Spec {
    /// Matrices [rows, cols] under one another, read by `gemm`.
    pub fn weight(parts: impl IntoIterator<Item = (String, usize)>, cols: usize) -> Self {
        let parts: Vec<Part> =
            parts.into_iter().map(|(name, rows)| Part { name, shape: vec![rows, cols] }).collect();
        let rows = parts.iter().map(|p| p.shape[0]).sum();
        Self { parts, shape: Shape::new(rows, cols), role: Role::Weight }
    }

    /// Vectors behind one another.
    pub fn vector(parts: impl IntoIterator<Item = (String, usize)>) -> Self {
        let parts: Vec<Part> = parts.into_iter().map(|(name, len)| Part { name, shape: vec![len] }).collect();
        let cols = parts.iter().map(Part::len).sum();
        Self { parts, shape: Shape::new(1, cols), role: Role::Rows }
    }

    /// A tensor of any shape, read as a matrix of so many columns.
    pub fn table(name: String, shape: &[usize], cols: usize) -> Self {
        let part = Part { name, shape: shape.to_vec() };
        let shape = Shape::new(part.len() / cols, cols);
        Self { parts: vec![part], shape, role: Role::Rows }
    }

    /// Embeddings [rows, cols] of so many tokens, which a tied head may multiply by.
    pub fn embedding(name: String, rows: usize, cols: usize) -> Self {
        let part = Part { name, shape: vec![rows, cols] };
        Self { parts: vec![part], shape: Shape::new(rows, cols), role: Role::Embedding }
    }

    /// The same numbers, in a checkpoint as one tensor of another shape.
    ///
    /// # Panics
    /// Panics if it is several tensors, or the shape has another number of elements.
    pub fn shaped_as(mut self, shape: &[usize]) -> Self {
        let [part] = &mut self.parts[..] else { panic!("one tensor has a shape") };
        assert_eq!(part.len(), shape.iter().product::<usize>());
        part.shape = shape.to_vec();
        self
    }

    /// The same tensor, read by `gemm`.
    pub fn read_by_gemm(self) -> Self {
        Self { role: Role::Weight, ..self }
    }
}

/// Where a parameter lies in its arena.
#[derive(Clone, Debug)]
pub struct Slot {
    /// What it is.
    pub spec: Spec,
    offset: usize,
    dtype: NumberType,
    packing: Packing,
}

impl Slot {
    fn view<'a, D: Device>(&self, arena: &'a Arena<D>) -> W<'a, D> {
        let pointer = arena.address(self.offset);
        // SAFETY: the arena was carved by the tree this slot is of, and is borrowed for 'a.
        unsafe { Weight::new(pointer, self.spec.shape, self.dtype, self.packing) }
    }
}
