//! The golden checkpoints, and what is expected of them.

use crate::paths::path;
use qformer::config::{Config, FeaturesConfig, VisionConfig};
use qformer::models::language::{LanguageModel, Prompt};
use qformer::ops::Backend;
use qformer::params::NamedCheckpoint;
use qformer::params::safetensors::Checkpoint;
use qformer::tensor::NumberType;
use qformer::{HostTensor, QFormer};
use serde_json::Value;
use std::collections::BTreeMap;

/// A golden folder.
pub(crate) struct Golden {
    pub(crate) name: &'static str,
    pub(crate) expected: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f64>)>,
}

impl Golden {
    pub(crate) fn new(name: &'static str) -> Self {
        let folder = path("tests/golden").join(name);
        let expected = serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
        let mut tensors = read(&folder.join("expected.safetensors"));
        if folder.join("batch.safetensors").exists() {
            tensors.extend(read(&folder.join("batch.safetensors")));
        }
        Self { name, expected, tensors }
    }

    pub(crate) fn config(&self) -> Config {
        let folder = path("tests/golden").join(self.name);
        if folder.join("model").exists() {
            return Config::load(&folder.join("model")).unwrap();
        }
        let config = Config::load(&folder).unwrap();
        // LAVIS's batch holds features; its `ln_vision` adds 1e-5.
        let &[_, image_tokens, hidden_size] = self.shape("vision_output") else { panic!() };
        let vision =
            VisionConfig::Features(FeaturesConfig { image_tokens, hidden_size, layer_norm_eps: 1e-5 });
        Config { vision, ..config }
    }

    pub(crate) fn shape(&self, name: &str) -> &[usize] {
        &self.tensors[name].0
    }

    pub(crate) fn values(&self, name: &str) -> &[f64] {
        &self.tensors[name].1
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<u32> {
        self.values(name).iter().map(|&id| id as u32).collect()
    }

    pub(crate) fn host(&self, name: &str) -> HostTensor {
        let values = self.values(name).iter().map(|&x| x as f32).collect();
        HostTensor::new(self.shape(name), values).unwrap()
    }

    /// The language model, and the Q-Former's outputs of all images.
    pub(crate) fn open<B: Backend + Clone>(&self, device: B, dtype: NumberType) -> LanguageModel<B> {
        let (config, folder) = (self.config(), path("tests/golden").join(self.name));
        let own = folder.join("model");
        let open = |path| Checkpoint::open(path).unwrap();
        if own.exists() {
            let checkpoint = open(&own);
            let named = NamedCheckpoint::new(&checkpoint).unwrap();
            return LanguageModel::from_checkpoint(device, &config, [&named; 2], dtype, &mut |_, _| ())
                .unwrap();
        }
        let (of_qformer, of_language) = (open(&folder.join("model.safetensors")), open(&folder.join("llm")));
        let named = NamedCheckpoint::new(&of_qformer).unwrap();
        let language = NamedCheckpoint::under("language_model.", &of_language).unwrap();
        LanguageModel::from_checkpoint(device, &config, [&named, &language], dtype, &mut |_, _| ()).unwrap()
    }

    /// The Q-Former's outputs [I, Q, Dq] for what the image encoder made of all images.
    pub(crate) fn queries<B: Backend>(&self, device: B, vision_output: &HostTensor) -> HostTensor {
        let folder = path("tests/golden").join(self.name);
        let model = folder.join("model");
        let checkpoint =
            Checkpoint::open(&if model.exists() { model } else { folder.join("model.safetensors") }).unwrap();
        let model = QFormer::from_checkpoint(device, self.config(), &checkpoint, &mut |_, _| ()).unwrap();
        model.encode_image(vision_output).unwrap().query_output
    }

    /// The tokens that follow the image's in `input_ids.k`.
    pub(crate) fn words(&self, ids: &[u32]) -> Vec<u32> {
        ids[self.config().num_query_tokens..].to_vec()
    }

    /// Prompts as the file holds them, of every image.
    pub(crate) fn prompts(&self, name: &str) -> Vec<Prompt> {
        let ids = self.ids(name);
        let rows = ids.chunks(*self.shape(name).last().unwrap());
        rows.enumerate().map(|(image, row)| Prompt { image, tokens: self.words(row) }).collect()
    }
}

/// The tensors of a file.
fn read(path: &std::path::Path) -> BTreeMap<String, (Vec<usize>, Vec<f64>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let values = |tensor: &safetensors::tensor::TensorView<'_>| -> Vec<f64> {
        let data = tensor.data();
        match tensor.dtype() {
            safetensors::Dtype::F32 => {
                data.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b).into()).collect()
            }
            safetensors::Dtype::F64 => data.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b)).collect(),
            safetensors::Dtype::I64 => {
                data.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as f64).collect()
            }
            other => panic!("{other:?}"),
        }
    };
    file.tensors()
        .into_iter()
        .map(|(name, tensor)| (name, (tensor.shape().to_vec(), values(&tensor))))
        .collect()
}

/// Norm of the difference over the norm of what is expected.
pub(crate) fn error(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference: f64 = found.iter().zip(expected).map(|(&x, y)| (f64::from(x) - y).powi(2)).sum();
    (difference / expected.iter().map(|y| y * y).sum::<f64>()).sqrt()
}
