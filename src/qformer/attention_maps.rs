//! Where the queries look: the weights of cross-attention, which no pass forms.

use super::image_pass::ImagePassActs;
use super::{QFormer, embed_queries, write_query_ids};
use crate::error::{Error, Result};
use crate::layers::cross_attention::ImageTokens;
use crate::layers::self_attention::{Attending, FirstKeys};
use crate::ops::Backend;
use crate::ops::attention::{Mask, Sequences};
use crate::tensor::HostTensor;
use rayon::prelude::*;
use std::ops::Range;

impl<B: Backend> QFormer<B> {
    /// The weights of cross-attention in block `block`, counted from 0, when the queries read images alone
    /// [I, H, Q, N]: how much of what a query takes in through a head comes from which token of its image;
    /// they sum to 1 over the image's tokens. `vision_output` [I, N, W] is the image encoder's output before
    /// its last norm, whose first token stands for the whole image and the others for patches, row by row.
    ///
    /// # Errors
    /// Fails if the block has no cross-attention, if the features are not of this model's shape, and if
    /// there is not enough memory.
    pub fn cross_attention_maps(&self, vision_output: &HostTensor, block: usize) -> Result<HostTensor> {
        let images = self.check_images(vision_output)?;
        let config = &self.config.qformer;
        if block >= config.num_hidden_layers || !config.has_cross_attention(block) {
            let blocks: Vec<String> =
                config.cross_attention_layers().map(|block| block.to_string()).collect();
            return Err(Error::usage(format!(
                "block {block} of this model has no cross-attention; those that have are {}",
                blocks.join(", ")
            )));
        }
        let (heads, queries, tokens) =
            (config.num_attention_heads, self.config.num_query_tokens, self.config.image_tokens());
        let mut maps = Vec::with_capacity(images * heads * queries * tokens);
        let per_image = tokens * self.config.vision.hidden_size;
        for values in vision_output.values().chunks(B::IMAGES_PER_PASS * per_image) {
            let images = values.len() / per_image;
            let of_pass = self.device.enter(|| {
                self.pass_to(values, images, block, |acts, columns| {
                    let b = &self.device;
                    let q = b.read(acts.block.cross_attention.q.view())?;
                    let keys = b.read(acts.keys_values.view().columns(columns[0].clone()))?;
                    Ok(weights(&q, &keys, [images, heads, queries, tokens]))
                })
            })?;
            maps.extend(of_pass);
        }
        HostTensor::new(&[images, heads, queries, tokens], maps)
    }

    /// The image pass as far as block `block`; `read` sees what that block worked in, and which columns of
    /// the keys and values are its keys, and which its values.
    fn pass_to<R>(
        &self,
        values: &[f32],
        images: usize,
        block: usize,
        read: impl FnOnce(&ImagePassActs<'_, B>, [Range<usize>; 2]) -> Result<R>,
    ) -> Result<R> {
        let (b, parameters) = (&self.device, self.weights.view());
        let (queries, hidden) = (self.config.num_query_tokens, self.config.qformer.hidden_size);
        let own = Sequences::uniform(images, queries);
        let cross = self.cross_sequences((0..images).collect());
        let sizes = (images, self.keys_values_width());
        let mut lease = self.workspace.lease(b, (images, "images"), |c| {
            ImagePassActs::carve(c, &self.config, sizes, [&own, &cross]);
        })?;
        let mut acts = ImagePassActs::carve(&mut lease.cursor(), &self.config, sizes, [&own, &cross]);
        b.write(values, 0, acts.vision_output.reborrow())?;
        write_query_ids(b, queries, acts.ids.reborrow())?;
        parameters.image_norm.forward(b, acts.vision_output.view(), None, acts.features.reborrow())?;
        parameters.image_kv.forward(b, acts.features.view(), acts.keys_values.reborrow())?;
        let ImagePassActs {
            keys_values, ids, own: own_table, cross: cross_table, block: block_acts, x, ..
        } = &mut acts;
        let (own, cross) = (own.place(b, own_table.reborrow())?, cross.place(b, cross_table.reborrow())?);
        let image = ImageTokens::KeysValues { keys_values: keys_values.view(), sequences: cross };
        let attending = [Attending { sequences: own, mask: Mask::None, first_keys: FirstKeys::Own }];
        let stream = self.stream(images * queries, &attending, Some(image));
        let [x, y] = x;
        let (mut x, mut y) = (x.reborrow(), y.reborrow());
        embed_queries(b, &parameters, ids.view(), y.reborrow(), x.reborrow())?;
        for (index, layer) in parameters.blocks.iter().take(block + 1).enumerate() {
            let inputs = self.inputs(&parameters, index);
            layer.forward(b, x.view(), &stream, &inputs, block_acts, y.reborrow())?;
            std::mem::swap(&mut x, &mut y);
        }
        let first = 2 * hidden * (block / self.config.qformer.cross_attention_frequency);
        read(&acts, [first..first + hidden, first + hidden..first + 2 * hidden])
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
    use crate::params::init;
    use crate::params::sources::Initial;
    use crate::qformer::Abilities;

    /// A small random model whose attention is far from even, and images for it.
    fn model() -> (QFormer<Cpu<f32>>, HostTensor) {
        let mut config = Config::tiny();
        config.qformer.initializer_range = 0.3;
        let source = Initial::new(&config, 7, None);
        let abilities = Abilities { text: true, retrieval: true };
        let model =
            QFormer::from_source(Cpu::new(), config.clone(), abilities, &source, &mut |_, _| ()).unwrap();
        let shape = [3, config.image_tokens(), config.vision.hidden_size];
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
        for block in [0, 2] {
            let maps = model.cross_attention_maps(&images, block).unwrap();
            assert_eq!(maps.shape(), [3, heads, queries, tokens]);
            let (values, context) = model
                .pass_to(images.values(), 3, block, |acts, [_, columns]| {
                    let b = &model.device;
                    let values = b.read(acts.keys_values.view().columns(columns))?;
                    Ok((values, b.read(acts.block.cross_attention.context.view())?))
                })
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
    fn a_block_without_cross_attention_is_refused() {
        let (model, images) = model();
        let message = model.cross_attention_maps(&images, 1).unwrap_err().to_string();
        assert!(message.contains("block 1") && message.contains("0, 2"), "{message}");
        assert!(model.cross_attention_maps(&images, 4).is_err());
    }
}
