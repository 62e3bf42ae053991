//! Where the queries look: the weights of cross-attention, which no pass forms.

use super::QFormer;
use super::image_pass::SomeImages;
use super::stack::BlockActs;
use crate::device::V;
use crate::error::{Error, Result};
use crate::memory::TensorInput;
use crate::ops::Backend;
use crate::tensor::HostTensor;
use rayon::prelude::*;

impl<B: Backend> QFormer<B> {
    /// The weights of cross-attention in block `block`, counted from 0, when the queries read images, alone or
    /// together with a `text` (token ids, `[CLS]` first) [I, H, Q, N]: how much of what a query takes in through a head comes from which token of its image;
    /// they sum to 1 over the image's tokens. `vision_output` [I, N, W] is the image encoder's output before
    /// its last norm, whose first token stands for the whole image and the others for patches, row by row.
    ///
    /// # Errors
    /// Fails if the block has no cross-attention, if the features are not of this model's shape, if the model reads no
    /// text or not this one, and if there is not enough memory.
    pub fn cross_attention_maps<'a>(
        &self,
        vision_output: impl Into<TensorInput<'a, B>>,
        text: Option<&[u32]>,
        block: usize,
    ) -> Result<HostTensor> {
        let vision_output = vision_output.into();
        let images = self.check_images(vision_output)?;
        let config = &self.config.qformer;
        if block >= config.num_hidden_layers || !config.has_cross_attention(block) {
            let blocks: Vec<String> =
                config.cross_attention_layers().map(|block| block.to_string()).collect();
            return Err(Error::usage(format!(
                "layer {block} of this model has no cross-attention; those that have are {}",
                blocks.join(", ")
            )));
        }
        if let Some(text) = text {
            self.check_texts(&[text])?;
        }
        let (heads, queries, tokens) =
            (config.num_attention_heads, self.config.num_query_tokens, self.config.image_tokens());
        // Each cross-attention's keys, then its values.
        let first = 2 * config.hidden_size * (block / config.cross_attention_frequency);
        let mut maps = Vec::with_capacity(images * heads * queries * tokens);
        for some in SomeImages::passes(vision_output, images) {
            let read = |acts: &BlockActs<'_, B>, keys_values: V<'_, B>| {
                let b = &self.device;
                // Of the joint pass too: only query rows attend to images.
                let q = b.read(acts.cross_attention.q.view())?;
                let keys = b.read(keys_values.columns(first..first + config.hidden_size))?;
                Ok(weights(&q, &keys, [some.count(), heads, queries, tokens]))
            };
            let of_pass = self.device.enter(|| match text {
                None => self.image_pass_to(&some, block, read),
                Some(text) => self.joint_pass_to(&some, text, block, read),
            })?;
            maps.extend(of_pass);
        }
        HostTensor::new(&[images, heads, queries, tokens], maps)
    }
}

/// softmax(q·kᵀ/√(D/H)) [I, H, Q, N] of queries [I·Q, D] and keys [I·N, D].
fn weights(q: &[f32], keys: &[f32], [images, heads, queries, tokens]: [usize; 4]) -> Vec<f32> {
    let hidden = q.len() / (images * queries);
    let width = hidden / heads;
    let scale = 1.0 / (width as f32).sqrt();
    let mut weights = vec![0.0; images * heads * queries * tokens];
    weights.par_chunks_mut(tokens).enumerate().for_each(|(row, weights)| {
        let (query, head, image) = (row % queries, row / queries % heads, row / queries / heads);
        let of_head = |row: usize| row * hidden + head * width..row * hidden + (head + 1) * width;
        let q = &q[of_head(image * queries + query)];
        for (token, weight) in weights.iter_mut().enumerate() {
            let key = &keys[of_head(image * tokens + token)];
            *weight = scale * q.iter().zip(key).map(|(q, k)| q * k).sum::<f32>();
        }
        let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        weights.iter_mut().for_each(|weight| *weight = (*weight - largest).exp());
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|weight| *weight /= sum);
    });
    weights
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::device::{Cpu, Device};
    use crate::models::qformer::Abilities;
    use crate::params::init;
    use crate::params::sources::Initial;

    /// A small random model whose attention is far from even, and images for it.
    fn model() -> (QFormer<Cpu<f32>>, HostTensor) {
        let mut config = Config::tiny();
        config.qformer.initializer_range = 0.3;
        let source = Initial::new(&config, 7, None);
        let abilities = Abilities { text: true, retrieval: true };
        let model =
            QFormer::from_source(Cpu::new(), config.clone(), abilities, &source, &mut |_, _| ()).unwrap();
        let shape = [3, config.image_tokens(), config.vision.width()];
        let key = init::key(1, "features");
        let values = (0..shape.iter().product::<usize>() as u64).map(|i| init::uniform(key, i) as f32 - 0.5);
        (model, HostTensor::new(&shape, values.collect()).unwrap())
    }

    /// The weights are what the attention itself used: with its values they give its output.
    #[test]
    fn weights_times_values_are_the_attention_s_output() {
        let (model, images) = model();
        let (heads, queries, tokens) = (2, 8, model.config.image_tokens());
        let hidden = model.config.qformer.hidden_size;
        let text = [2, 7, 9, 3];
        for (text, block) in [(None, 0), (None, 2), (Some(&text[..]), 0), (Some(&text), 2)] {
            let maps = model.cross_attention_maps(&images, text, block).unwrap();
            assert_eq!(maps.shape(), [3, heads, queries, tokens]);
            let read = |acts: &BlockActs<'_, Cpu<f32>>, keys_values: V<'_, Cpu<f32>>| {
                let (b, first) = (&model.device, block * hidden + hidden);
                let values = b.read(keys_values.columns(first..first + hidden))?;
                Ok((values, b.read(acts.cross_attention.context.view())?))
            };
            let all = SomeImages::of((&images).into(), 0..3);
            let (values, context) = match text {
                None => model.image_pass_to(&all, block, read),
                Some(text) => model.joint_pass_to(&all, text, block, read),
            }
            .unwrap();
            let mut spread = 0.0_f32;
            for (index, map) in maps.values().chunks(tokens).enumerate() {
                let (query, head, image) =
                    (index % queries, index / queries % heads, index / queries / heads);
                assert!((map.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                spread = map.iter().fold(spread, |spread, weight| spread.max(weight * tokens as f32));
                for column in head * hidden / heads..(head + 1) * hidden / heads {
                    let value = |token: usize| values[(image * tokens + token) * hidden + column];
                    let found: f32 = map.iter().enumerate().map(|(token, w)| w * value(token)).sum();
                    let expected = context[(image * queries + query) * hidden + column];
                    // Sums of 17 products of numbers near 1, in another order.
                    assert!((found - expected).abs() < 2e-4, "{found} {expected}");
                }
            }
            assert!(spread > 2.0, "the attention of this test is even, so it shows nothing: {spread}");
        }
    }

    #[test]
    fn the_queries_look_elsewhere_with_a_text() {
        let (model, images) = model();
        let last = |text| model.cross_attention_maps(&images, text, 2).unwrap();
        let (alone, one, other) = (last(None), last(Some(&[2, 7, 9, 3])), last(Some(&[2, 11, 3])));
        assert!(alone != one && one != other);
        let message = model.cross_attention_maps(&images, Some(&[]), 2).unwrap_err().to_string();
        assert!(message.contains("0 tokens"), "{message}");
    }

    #[test]
    fn a_block_without_cross_attention_is_refused() {
        let (model, images) = model();
        let message = model.cross_attention_maps(&images, None, 1).unwrap_err().to_string();
        assert!(message.contains("layer 1") && message.contains("0, 2"), "{message}");
        assert!(model.cross_attention_maps(&images, None, 4).is_err());
    }
}
