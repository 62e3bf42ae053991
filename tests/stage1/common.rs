//! What the tests share: the golden model and batch, and what is read of a step.

use crate::paths;
use qformer::ops::Backend;
use qformer::ops::contrastive::ContrastiveGradient;
use qformer::params::init::{key, uniform};
use qformer::params::safetensors::Checkpoint;
use qformer::params::{NamedCheckpoint, Part, TensorSource};
use qformer::tensor::HostTensor;
use qformer::train::{Batch, Hardness, Losses, Recompute, Stage1, Stage1Options};
use qformer::{Config, Matching, Result};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;

pub(crate) fn golden() -> PathBuf {
    paths::path("tests/golden/stage1")
}

pub(crate) fn config() -> Config {
    Config::load(&golden()).unwrap()
}

/// The tensors of a file: values and shape.
pub(crate) fn tensors(name: &str) -> BTreeMap<String, (Vec<f64>, Vec<usize>)> {
    let bytes = fs::read(golden().join(name)).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |tensor: &safetensors::tensor::TensorView<'_>| -> Vec<f64> {
        let data = tensor.data();
        match tensor.dtype() {
            Dtype::F32 => data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect(),
            Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            Dtype::I64 => data.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f64).collect(),
            other => panic!("{other:?}"),
        }
    };
    file.iter().map(|(name, t)| (name.to_owned(), (numbers(&t), t.shape().to_vec()))).collect()
}

/// Images and texts of the golden batch, by what of it each example takes, an image and a text, and what
/// its image is called.
pub(crate) fn examples(of: &[([usize; 2], u32)]) -> Batch {
    examples_in("batch.safetensors", of)
}

/// The same of the batch in a file.
fn examples_in(name: &str, of: &[([usize; 2], u32)]) -> Batch {
    let tensors = tensors(name);
    let (values, shape) = &tensors["vision_output"];
    let image = |i: usize| &values[i * shape[1] * shape[2]..(i + 1) * shape[1] * shape[2]];
    let ((ids, of_ids), (mask, _)) = (&tensors["input_ids"], &tensors["attention_mask"]);
    let text = |i: usize| -> Vec<u32> {
        let row = i * of_ids[1]..(i + 1) * of_ids[1];
        let real = ids[row.clone()].iter().zip(&mask[row]).filter(|(_, m)| **m == 1.0);
        real.map(|(&id, _)| id as u32).collect()
    };
    let vision_output = of.iter().flat_map(|&([i, _], _)| image(i)).map(|&x| x as f32).collect();
    let vision_output = HostTensor::new(&[of.len(), shape[1], shape[2]], vision_output).unwrap();
    let texts = of.iter().map(|&([_, t], _)| text(t)).collect();
    Batch::new(&config(), vision_output, texts, of.iter().map(|&(_, id)| id).collect()).unwrap()
}

/// The golden batch.
pub(crate) fn batch() -> Batch {
    examples(&[0, 1, 2, 3, 4].map(|i| ([i, i], i as u32)))
}

/// LAVIS's, but for dropout and the negatives' draw, which the golden steps are without.
pub(crate) fn options() -> Stage1Options {
    Stage1Options {
        weights: [1.0; 3],
        smoothing: 0.1,
        dropout: 0.0,
        hardness: Hardness::Hardest,
        contrastive_gradient: ContrastiveGradient::OneSided,
        matching: Matching::Classifier,
        recompute: Recompute::None,
        start_token: 138,
        seed: 1,
    }
}

pub(crate) fn model<B: Backend>(device: B, options: Stage1Options) -> Stage1<B> {
    moved_model(device, options, &|_, _| 0.0)
}

/// With every element of every tensor moved by so much.
pub(crate) fn moved_model<B: Backend>(
    device: B,
    options: Stage1Options,
    by: &dyn Fn(&str, usize) -> f32,
) -> Stage1<B> {
    let checkpoint = Checkpoint::open(&golden()).unwrap();
    let source = Moved { checkpoint: NamedCheckpoint::new(&checkpoint).unwrap(), by };
    Stage1::new(device, config(), options, &source).unwrap()
}

/// A checkpoint whose parameters are moved, with a scale and bias of the largest similarity.
struct Moved<'a> {
    checkpoint: NamedCheckpoint<'a>,
    by: &'a dyn Fn(&str, usize) -> f32,
}

/// What the golden checkpoint does not have.
fn begun(part: &Part) -> Option<f32> {
    match &*part.name {
        "itm_scale" => Some(10.0),
        "itm_bias" => Some(-5.0),
        _ => None,
    }
}

impl TensorSource for Moved<'_> {
    fn check(&self, parts: &[&Part]) -> Result<()> {
        let parts: Vec<&Part> = parts.iter().copied().filter(|part| begun(part).is_none()).collect();
        self.checkpoint.check(&parts)
    }

    fn read(&self, part: &Part, sink: &mut dyn FnMut(usize, &[f32])) -> Result<usize> {
        let mut moved = |first: usize, values: &[f32]| {
            let moved = |(i, x): (usize, &f32)| x + (self.by)(&part.name, first + i);
            sink(first, &values.iter().enumerate().map(moved).collect::<Vec<f32>>());
        };
        match begun(part) {
            Some(value) => {
                moved(0, &[value]);
                Ok(0)
            }
            None => self.checkpoint.read(part, &mut moved),
        }
    }
}

/// A number in (-1, 1) of each element's own.
pub(crate) fn direction(name: &str, index: usize) -> f32 {
    (2.0 * uniform(key(0, name), index as u64) - 1.0) as f32
}

/// What tensors of all layers have in common: their names without the layer's number.
pub(crate) fn kind(name: &str) -> String {
    name.split('.').filter(|part| part.parse::<usize>().is_err()).collect::<Vec<_>>().join(".")
}

pub(crate) const CLEAR: &str = "clear.safetensors";

/// Examples of the batch in which no winner and no negative is nearly another (golden/stage1/bf16.py).
pub(crate) fn clear_examples(of: Range<usize>) -> Batch {
    examples_in(CLEAR, &of.map(|i| ([i, i], i as u32)).collect::<Vec<_>>())
}

/// What a step gives: losses, and the gradients by the tensors' names.
pub(crate) struct Step {
    pub(crate) losses: Losses,
    pub(crate) gradients: BTreeMap<String, Vec<f32>>,
}

/// Step number 3 of a model.
pub(crate) fn step_of<B: Backend>(model: &mut Stage1<B>, batches: &[Batch]) -> Step {
    let losses = model.differentiate(batches, 3).unwrap();
    let mut gradients = BTreeMap::new();
    model
        .weights()
        .for_each_gradient(model.device(), |part, found| {
            gradients.insert(part.name.clone(), found.into_values());
            Ok(())
        })
        .unwrap();
    Step { losses, gradients }
}

pub(crate) fn step<B: Backend>(device: B, options: Stage1Options, batches: &[Batch]) -> Step {
    step_of(&mut model(device, options), batches)
}

/// The losses in the order of the golden values.
pub(crate) fn losses(of: &Losses) -> [f64; 4] {
    [of.total, of.contrastive, of.matching, of.captioning]
}

/// How far each tensor is off what is wanted, in parts of its length. A key's bias has no gradient, as
/// the softmax does not see it, but for rounding: it is measured by the bias of the values. Tensors
/// without a gradient are left out.
pub(crate) fn distances<'a, W: Copy + Into<f64>>(
    found: &'a BTreeMap<String, Vec<f32>>,
    wanted: &'a BTreeMap<String, Vec<W>>,
) -> impl Iterator<Item = (&'a str, f64)> {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    wanted.iter().filter_map(move |(name, wanted_values)| {
        let scale = &wanted[&name.replace("key.bias", "value.bias")];
        let scale = norm(&mut scale.iter().map(|&x| x.into()));
        let pairs = found[name].iter().zip(wanted_values);
        let off = norm(&mut pairs.map(|(&f, &w)| f64::from(f) - w.into()));
        (scale > 0.0).then_some((&**name, off / scale))
    })
}
