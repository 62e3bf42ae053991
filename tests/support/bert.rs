//! A BERT to begin with.

use qformer::Config;
use qformer::params::safetensors::{Dtype, NewTensor, write};
use std::collections::BTreeMap;
use std::path::Path;

/// Shape and values by name.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Writes the file at `path`.
pub(crate) fn save(path: &Path, tensors: &Tensors) {
    let new =
        tensors.iter().map(|(name, (shape, values))| NewTensor::from_slice(name, Dtype::F32, shape, values));
    write(path, &BTreeMap::new(), new.collect()).unwrap();
}

/// A BERT of the tiny model's size by today's names, of values by the number of the tensor and the place in it;
/// its vocabulary is one token short of the model's.
pub(crate) fn tiny_bert(value: impl Fn(usize, usize) -> f32) -> Tensors {
    let config = Config::tiny().qformer;
    let (d, f) = (config.hidden_size, config.intermediate_size);
    let vocabulary = config.vocab_size - 1;
    let mut tensors = Tensors::new();
    let mut put = |name: String, shape: &[usize]| {
        let number = tensors.len();
        let values = (0..shape.iter().product()).map(|place| value(number, place)).collect();
        tensors.insert(name, (shape.to_vec(), values));
    };
    put("bert.embeddings.word_embeddings.weight".into(), &[vocabulary, d]);
    put("bert.embeddings.position_embeddings.weight".into(), &[config.max_position_embeddings, d]);
    put("bert.embeddings.token_type_embeddings.weight".into(), &[2, d]);
    put("bert.pooler.dense.weight".into(), &[d, d]);
    put("cls.seq_relationship.bias".into(), &[2]);
    put("cls.predictions.bias".into(), &[vocabulary]);
    put("cls.predictions.transform.dense.weight".into(), &[d, d]);
    put("cls.predictions.transform.dense.bias".into(), &[d]);
    let mut norms =
        vec!["bert.embeddings.LayerNorm".to_owned(), "cls.predictions.transform.LayerNorm".into()];
    for layer in 0..config.num_hidden_layers {
        let layer = format!("bert.encoder.layer.{layer}");
        let dense = [
            ("attention.self.query", d, d),
            ("attention.self.key", d, d),
            ("attention.self.value", d, d),
            ("attention.output.dense", d, d),
            ("intermediate.dense", f, d),
            ("output.dense", d, f),
        ];
        for (name, outputs, inputs) in dense {
            put(format!("{layer}.{name}.weight"), &[outputs, inputs]);
            put(format!("{layer}.{name}.bias"), &[outputs]);
        }
        norms.extend([format!("{layer}.attention.output.LayerNorm"), format!("{layer}.output.LayerNorm")]);
    }
    for norm in norms {
        put(format!("{norm}.weight"), &[d]);
        put(format!("{norm}.bias"), &[d]);
    }
    tensors
}
